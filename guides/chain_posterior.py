r"""The posterior of a Markov chain as a chain of its own, along the model's or against it.

The model's chain goes from :math:`z_T` to :math:`z_0`, which makes the datum :math:`x`. The guide
is

.. math:: q(z_{0:T} \mid x) = q(z_T \mid x) \prod_{k=T}^{1} q(z_{k-1} \mid z_k, x)
   \qquad\text{or}\qquad
   q(z_{0:T} \mid x) = q(z_0 \mid x) \prod_{k=1}^{T} q(z_k \mid z_{k-1}, x) ,

along the model and against it. Along it, each law of the guide stands beside the model's law of
the same state given the same one, and ``TraceMeanField_ELBO`` adds up their divergences in closed
form. Against it there is no such pair, and ``Trace_ELBO`` compares the two chains by their
densities along the states drawn.

Both ways can be exact: the posterior of a Markov chain is a Markov chain, in either direction.
Along the model its steps have to look ahead, at the datum, which is what the context is for.
Against the model, once :math:`z_0` is drawn the datum says no more, and its steps need no context.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrogen.checks import check_data
from pyrogen.distributions._steps import Transition, normal_step
from pyrogen.nn.shapes import positive_ints

__all__ = ["ChainPosterior"]

_DIRECTIONS = ("along", "against")


class ChainPosterior(PyroModule):
    """Guide of :class:`pyrogen.models.MarkovChain`, with its sites ``"z_T"``, ..., ``"z_0"``.

    Args:
        transition: ``(z, k) -> (mean, std)``, or ``(z, k, context)`` if there is a context. Along
            the model, of :math:`z_{k-1}` given :math:`z_k`; against it, of :math:`z_k` given
            :math:`z_{k-1}`. Such as :class:`pyrogen.nn.GaussianStep`, or a fixed function.
        encoder: network ``[n, *event_shape] -> [n, 2 D + C]``: means and raw scales of the state
            that the guide begins with, then the context.
        latent_dim: the number D of dimensions of a state.
        num_steps: T.
        direction: ``"along"`` the model, from ``z_T``; or ``"against"`` it, from ``z_0``.
        context_dim: the number C of features that each step sees of the datum.
        event_shape: shape of one datum, to check data against; ``None`` takes the encoder's
            attribute ``in_shape`` if it has one.

    Raises:
        TypeError: if ``encoder`` is no ``torch.nn.Module``, or the transition cannot be called.
        ValueError: if a size is not positive or the direction is unknown; on call, if there are no
            data, or the encoder returns another size.

    References:
        D. P. Kingma, T. Salimans, B. Poole, J. Ho, *Variational diffusion models*, 2021,
        arXiv:2107.00630 (a chain against the model).

    Example:
        >>> import torch
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrogen.models import MarkovChain
        >>> from pyrogen.nn import MLP, GaussianStep, TimeMLP
        >>> model = MarkovChain(GaussianStep(TimeMLP(2), 5), torch.nn.Linear(2, 3), 2, num_steps=5)
        >>> step = GaussianStep(TimeMLP(2, context_dim=4), num_steps=5)
        >>> guide = ChainPosterior(step, MLP(3, 2 * 2 + 4), 2, num_steps=5, context_dim=4)
        >>> TraceMeanField_ELBO().loss(model, guide, torch.randn(10, 3)) > 0
        True
    """

    def __init__(
        self,
        transition: Transition,
        encoder: nn.Module,
        latent_dim: int,
        num_steps: int,
        direction: str = "along",
        context_dim: int = 0,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not callable(transition):
            raise TypeError(
                f"transition: expected a module or a function, got {type(transition).__name__}"
            )
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}")
        if direction not in _DIRECTIONS:
            raise ValueError(
                f"direction: expected one of {', '.join(_DIRECTIONS)}, got {direction!r}"
            )
        self.latent_dim, self.num_steps = positive_ints(
            (latent_dim, num_steps), "latent_dim, num_steps"
        )
        self.transition = transition
        self.encoder = encoder
        self.direction = direction
        self.context_dim = context_dim
        shape = getattr(encoder, "in_shape", None) if event_shape is None else event_shape
        self.event_shape = None if shape is None else tuple(shape)

    def begin(self, data: Tensor) -> tuple[TorchDistribution, tuple[Tensor, ...]]:
        """The law of the state that the guide begins with, and the context, if there is one.

        Args:
            data: ``[n, *event_shape]``.
        """
        code: Tensor = self.encoder(data)
        width = 2 * self.latent_dim + self.context_dim
        if code.shape[-1] != width:
            raise ValueError(
                f"encoder: expected output [*, {width}] (2 * latent_dim + context_dim), got "
                f"{list(code.shape)}"
            )
        parts = [self.latent_dim, self.latent_dim, self.context_dim]
        loc, raw, context = code.split(parts, dim=-1)
        law: TorchDistribution = dist.Normal(loc, softplus(raw)).to_event(1)
        return law, (context,) if self.context_dim else ()

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> None:
        """Samples the chain given data.

        Args:
            data: ``[n, *event_shape]``.
            num_samples: only for the model's signature; must be ``None``.

        Raises:
            ValueError: if there are no data, or ``num_samples`` is given.
        """
        if data is None or num_samples is not None:
            got = "no data" if data is None else f"num_samples={num_samples}"
            raise ValueError(
                f"guide: expected data to infer the chain from and no num_samples, got {got}; to "
                "draw events call the model without data: model(None, num_samples=...)"
            )
        check_data(data, tuple(data.shape[1:]) if self.event_shape is None else self.event_shape)
        law, context = self.begin(data)
        plate = pyro.plate("data", law.batch_shape[-1], dim=-1)
        along = self.direction == "along"
        steps = range(self.num_steps, 0, -1) if along else range(1, self.num_steps + 1)
        with plate:
            z = pyro.sample(f"z_{self.num_steps if along else 0}", law)
        for k in steps:
            law = normal_step(self.transition, z, k, *context)
            with plate:
                z = pyro.sample(f"z_{k - 1 if along else k}", law)
