r"""One flow over all latent variables of a program.

The latent sites :math:`z_1, z_2, \ldots` of a model are read as one vector. A flow on the
unconstrained reals and the bijections :math:`g_i` onto the supports make a joint density,

.. math:: \epsilon \sim N(0, I), \qquad u = \mu + \sigma \odot f(\epsilon), \qquad z_i = g_i(u_i) ,

so that the posterior may be correlated, skewed and curved across sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_median
from pyro.nn import PyroModule
from torch import Tensor

from pyrogen.distributions import FlowDistribution
from pyrogen.guides._flows import make_flow
from pyrogen.guides._unconstrained import Constrain, Latent, latents
from pyrogen.transforms import ActNorm
from pyrogen.transforms._chain import Chain

__all__ = ["FlowGuide"]


class FlowGuide(PyroModule):
    r"""Guide for the latent sites of any model of static structure: a joint normalising flow.

    The model is run twice at construction, to learn the names, supports, shapes and plates of its
    latent sites, and is not kept. All parameters exist from then on. The joint draw is an auxiliary
    site, and each latent site a point mass at its part of it, as in Pyro's automatic guides.

    Discrete sites marked for enumeration are left to ``TraceEnum_ELBO``.

    Args:
        model: the program.
        args: arguments to run it with.
        kwargs: keyword arguments to run it with.
        flow: ``"planar"``, ``"radial"``, ``"sylvester"``, ``"iaf"``, ``"spline"``,
            ``"continuous"``, or a function from the number of unconstrained dimensions to a list of
            transforms. The steps of ``"continuous"`` adapt to values, so it cannot be compiled
            (:class:`pyrogen.losses.Compiled`).
        num_flows: number of layers, at least 1.
        init_scale: :math:`\sigma` to start from, in unconstrained units, > 0.
        init_loc_fn: where :math:`\mu` starts, one of Pyro's ``init_to_...`` functions.

    Attributes:
        dim: number of unconstrained dimensions.
        site_names: names of the latent sites.

    Raises:
        TypeError: if ``model`` is not callable.
        ValueError: if ``flow`` is unknown or a number is not positive; if the model has no latent
            site, a discrete one that is not enumerated, one in a subsampled plate, or one whose
            shape or support changes from run to run.

    References:
        D. J. Rezende, S. Mohamed, *Variational inference with normalizing flows*, 2015,
        arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.optim import Adam
        >>> def model(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Exponential(rate), obs=x)
        >>> x = torch.tensor([0.1, 0.7, 0.4])
        >>> guide = FlowGuide(model, (x,), flow="sylvester", num_flows=1)
        >>> svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
        >>> losses = [svi.step(x) for _ in range(100)]
        >>> sum(losses[-20:]) < sum(losses[:20])
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        flow: str | Callable[[int], Iterable[Any]] = "spline",
        num_flows: int = 2,
        init_scale: float = 0.1,
        init_loc_fn: Callable[..., Any] = init_to_median,
    ) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model: expected a Pyro program, got {type(model).__name__}")
        if not init_scale > 0:
            raise ValueError(f"init_scale: expected a positive number, got {init_scale}")
        sites = latents(model, args, kwargs, init_loc_fn)
        loc = _unconstrain(sites)
        self.dim = len(loc)
        self.site_names = [site.name for site in sites]
        self.transforms = Chain(make_flow(flow, self.dim, num_flows)).to(loc)
        # A module of its own, since a site of the model may well be called "loc".
        self.affine = ActNorm(self.dim).to(loc)
        with torch.no_grad():
            self.affine.loc.copy_(loc)
            self.affine.log_scale.fill_(math.log(init_scale))
        self.constrain = Constrain(sites)

    def distribution(self) -> FlowDistribution:
        """Returns q of all sites together.

        Its event is the vector of the values of the sites in the order of ``site_names``, each
        flattened.
        """
        zeros = torch.zeros_like(self.affine.loc)
        base = dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
        return FlowDistribution(base, [*self.transforms.condition(), self.affine, self.constrain])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site.

        Args:
            args: for the model's signature; not looked at.
            kwargs: for the model's signature; not looked at.

        Returns:
            The values of the latent sites.
        """
        name = f"_{self._pyro_name or 'flow_guide'}_latent"
        joint = pyro.sample(name, self.distribution(), infer={"is_auxiliary": True})
        sites = self.constrain.sites
        parts = joint.split([site.shape.numel() for site in sites], -1)
        plates = {
            frame: pyro.plate(frame.name, frame.size, dim=frame.dim)
            for frame in dict.fromkeys(frame for site in sites for frame in site.frames)
        }
        return {
            site.name: _sample(site, part, [plates[frame] for frame in site.frames])
            for site, part in zip(sites, parts, strict=True)
        }


def _sample(site: Latent, part: Tensor, plates: Iterable[Any]) -> Tensor:
    """Samples one site, in its plates, at its part ``[*batch, size]`` of the joint draw."""
    split = len(site.shape) - site.event_dim
    batch, event = site.shape[:split], site.shape[split:]
    value = part.reshape((*torch.broadcast_shapes(part.shape[:-1], batch), *event))
    with ExitStack() as stack:
        for plate in plates:
            stack.enter_context(plate)
        drawn: Tensor = pyro.sample(site.name, dist.Delta(value, event_dim=site.event_dim))
    return drawn


def _unconstrain(sites: list[Latent]) -> Tensor:
    """Returns the initial values of all sites as one unconstrained vector."""
    parts = [site.transform.inv(site.initial).flatten() for site in sites]
    return torch.cat(parts).detach().clone()
