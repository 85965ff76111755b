r"""An inverse problem: one score-based site of a Pyro model, and what all other sites say of it.

The likelihood :math:`p(y \mid x)` of the site is the product of the densities of all other sites,
with their masks and scales. Where these are normal, :math:`y \sim N(m(x), R)`, the residual

.. math:: r(x) = R^{-1/2} (y - m(x))

is known too, in units of the noise; what is masked has the residual 0, as with infinite noise.
Derivatives of :math:`m` come from differentiating the model: no matrix is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Size, Tensor
from torch.func import vjp

from pyrogen.distributions import ScoreBased
from pyrogen.distributions.energy import innermost
from pyrogen.kernels._score_site import elementary
from pyrogen.kernels._vectorize import vectorized

__all__ = ["InverseProblem"]


class InverseProblem:
    """A model of static structure with one latent site, a :class:`ScoreBased`.

    Args:
        model: the model.
        args: its arguments.
        kwargs: likewise.
        vectorize: run the model for all chains at once, instead of one by one.

    Attributes:
        name: of the latent site.
        prior: its distribution, expanded by its plates.

    Raises:
        ValueError: if the model has another latent site, or none.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        vectorize: bool = True,
    ) -> None:
        self._model = model
        self._args, self._kwargs = tuple(args), dict(kwargs)
        self._vectorize = vectorize
        trace = self._trace(None)
        self.name: str = _the_latent_site(trace)
        self.prior: ScoreBased = trace.nodes[self.name]["fn"]

    @property
    def shape(self) -> Size:
        """The shape of the site, with its plates."""
        shape: Size = self.prior.shape()
        return shape

    def check(self, gaussian: bool) -> None:
        """Looks at the values of two runs.

        Args:
            gaussian: whether the likelihood has to be that of a normal observation.

        Raises:
            ValueError: if no other site is observed, the latent site is weighted or masked, or the
                likelihood is not normal with a noise of its own.
        """
        zeros = self.prior.like.new_zeros(self.shape)
        first, second = self._trace(zeros), self._trace(zeros + 0.5)
        node = first.nodes[self.name]
        if node["mask"] is not None or bool(torch.as_tensor(node["scale"] != 1).any()):
            raise ValueError(
                f"site {self.name!r}: expected a prior that counts once, got one under "
                "poutine.scale, poutine.mask or a subsampled plate"
            )
        others = dict(self._others(first))
        if not others:
            raise ValueError(
                f"guidance: expected a model with a likelihood of site {self.name!r}, got no other "
                "site; observe something of it by pyro.sample(..., obs=y), or leave guidance out"
            )
        for name, found in others.items() if gaussian else ():
            scales = _scale(name, found["fn"]), _scale(name, second.nodes[name]["fn"])
            if not torch.equal(*scales):
                raise ValueError(
                    f"site {name!r}: expected noise that is the same everywhere, got one that "
                    f"depends on site {self.name!r}; use guidance 'dps' or 'twisted-smc'"
                )

    def log_likelihood(self, x: Tensor) -> Tensor:
        """The logarithm of the likelihood, in nats.

        Args:
            x: ``[chains, *shape]``.

        Returns:
            ``[chains]``.
        """
        return self._of_all(self._log_likelihood, x)

    def residual(self, x: Tensor) -> Tensor:
        """What is observed less its mean, in units of the noise.

        Args:
            x: ``[chains, *shape]``.

        Returns:
            ``[chains, observations]``.
        """
        return self._of_all(self._residual, x)

    def linearized(self, x: Tensor) -> Linearized:
        """The residual at ``x [chains, *shape]``, and its derivative."""
        return Linearized(self.residual, x)

    def _of_all(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self._vectorize:
            return vectorized(function, x)
        return torch.stack([function(chain) for chain in x])

    def _log_likelihood(self, x: Tensor) -> Tensor:
        trace = self._trace(x)
        names = {name for name, _ in self._others(trace)}
        with pyro.validation_enabled(False):
            total: Tensor = trace.log_prob_sum(lambda name, node: name in names)
        return total

    def _residual(self, x: Tensor) -> Tensor:
        parts = [_whitened(name, node) for name, node in self._others(self._trace(x))]
        return torch.cat([part.reshape(-1) for part in parts])

    def _trace(self, x: Tensor | None) -> Any:
        with pyro.validation_enabled(False), poutine.block(), _Substitution(x):
            return poutine.trace(self._model).get_trace(*self._args, **self._kwargs)

    def _others(self, trace: Any) -> Iterator[tuple[str, Any]]:
        for name, node in trace.nodes.items():
            is_plate = isinstance(node.get("fn"), _Subsample)
            if node["type"] != "sample" or name == self.name or is_plate:
                continue
            if not node["infer"].get("_deterministic"):
                yield name, node


class Linearized:
    r"""A residual :math:`r`, and its derivative :math:`-B` in both directions.

    Args:
        residual: ``[chains, *shape] -> [chains, observations]``.
        x: where, ``[chains, *shape]``.

    Attributes:
        residual: there, ``[chains, observations]``.
    """

    def __init__(self, residual: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.residual, self._pull = vjp(residual, x)  # type: ignore[misc]
        _, self._push = vjp(lambda u: self._pull(u)[0], torch.zeros_like(self.residual))  # type: ignore[misc]

    def back(self, u: Tensor) -> Tensor:
        """``B' u``, ``[chains, *shape]``."""
        result: Tensor = self._pull(u)[0]
        return -result

    def forth(self, v: Tensor) -> Tensor:
        """``B v``, ``[chains, observations]``."""
        result: Tensor = self._push(v)[0]
        return -result


class _Substitution(Messenger):
    """Gives latent score-based sites a value, zeros if none."""

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self._value = value

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] and isinstance(fn, ScoreBased):
            msg["value"] = fn.like.new_zeros(fn.shape()) if self._value is None else self._value
            msg["done"] = True


def _the_latent_site(trace: Any) -> str:
    latent: list[tuple[str, bool]] = []
    partial: list[str] = []
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"]:
            continue
        if isinstance(fn := node["fn"], _Subsample):
            partial += [name] if (fn.subsample_size or fn.size) < fn.size else []
        elif isinstance(innermost(fn), ScoreBased) and not isinstance(fn, ScoreBased):
            raise ValueError(
                f"site {name!r}: expected a ScoreBased itself, got {type(fn).__name__} around it; "
                "use a plate for independent draws"
            )
        else:
            latent.append((name, isinstance(fn, ScoreBased)))
    if partial:
        raise ValueError(f"plates {partial}: expected all of the data, got a minibatch")
    names = [name for name, _ in latent]
    if len(latent) != 1 or not latent[0][1]:
        raise ValueError(
            "expected a model with exactly one latent site, a ScoreBased, got "
            + (f"the latent sites {names}" if names else "none")
            + "; condition the model on the others, or sample all with HMC"
        )
    return names[0]


def _scale(name: str, fn: Any) -> Tensor:
    base = elementary(fn)
    if isinstance(base, torch.distributions.Normal):
        return base.scale
    if isinstance(base, torch.distributions.MultivariateNormal):
        scale: Tensor = base.scale_tril
        return scale
    raise ValueError(
        f"site {name!r}: expected a Normal or MultivariateNormal, whose noise this guidance takes "
        f"into account, got {type(base).__name__}; use guidance 'dps' or 'twisted-smc'"
    )


def _whitened(name: str, node: Any) -> Tensor:
    fn, value = node["fn"], node["value"]
    base, scale = elementary(fn), _scale(name, fn)
    mask = _mask(node).expand(value.shape)
    error = torch.where(mask, value, 0.0) - torch.where(mask, base.loc, 0.0)
    if isinstance(base, torch.distributions.Normal):
        white = error / scale
    else:
        columns = error.unsqueeze(-1)
        white = torch.linalg.solve_triangular(scale, columns, upper=False).squeeze(-1)
    weight = torch.as_tensor(node["scale"], dtype=white.dtype, device=white.device)
    weighted: Tensor = white * weight.sqrt().reshape(weight.shape + (1,) * fn.event_dim)
    return weighted


def _mask(node: Any) -> Tensor:
    """Which elements of the value count: all masks on the site, and within its distribution."""
    fn = node["fn"]
    found = [(node["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            found.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    mask = torch.ones((), dtype=torch.bool, device=node["value"].device)
    for given, dims in found:
        if given is not None:
            part = torch.as_tensor(given, device=mask.device)
            mask = mask & part.reshape(part.shape + (1,) * dims)
    return mask
