"""Objectives that score a site without its log-density, within any ELBO."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO, Trace_ELBO
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Size, Tensor
from torch.distributions import constraints

from pyrogen.checks import nonfinite_site
from pyrogen.distributions import EnergyBased
from pyrogen.distributions.energy import innermost
from pyrogen.errors import NonFiniteError

__all__ = ["ScoringELBO", "Visited", "expanded", "visit"]

Score = Callable[[Tensor], Tensor]


class ScoringELBO(ELBO):
    r"""An ELBO in which sites of one kind are scored by a surrogate of their log-density.

    In the estimate :math:`\mathbb{E}_q[\log p(x, z) - \log q(z)]` the term of each such site of the
    model is replaced by :meth:`score`, whose gradient is what the site is trained by. Plates,
    scales and masks weight it as they weight a log-density, and every other site is scored as ever,
    so that one program may mix both.

    Args:
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: if the model has no such site.
        NonFiniteError: if the loss is infinite or NaN, with the site and the number of steps.

    Attributes:
        kind: the distributions that are scored so.
    """

    kind: ClassVar[type[TorchDistribution]] = EnergyBased
    progress: ClassVar[tuple[str, ...]] = ("steps",)
    """Attributes that change from step to step, and are no options."""

    suspects: ClassVar[str] = "their sum"
    """What is not finite in a loss that is not, when no site is to blame."""

    def __init__(self, elbo: ELBO | None = None) -> None:
        self.elbo: Any = Trace_ELBO() if elbo is None else elbo
        if not isinstance(self.elbo, ELBO):
            raise TypeError(f"elbo: expected an ELBO, got {type(elbo).__name__}")
        super().__init__(num_particles=self.elbo.num_particles)
        self.steps = 0

    @abstractmethod
    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """What stands for the log-density.

        Args:
            name: of the site.
            fn: its distribution, already expanded by its plates.
            value: ``[*batch, *event]``.

        Returns:
            ``[*batch]``, a function of the parameters of ``fn`` and, where the value depends on
            parameters, of the value.
        """

    def latent(self, name: str, fn: Any, score: Score) -> Score:
        """What stands for the log-density of a latent site, as a function of the guide's draw.

        By default the density up to its constant, with the gradient of the surrogate in the
        parameters of ``fn``.

        Args:
            name: of the site.
            fn: its distribution.
            score: the surrogate of an observed site.
        """
        return _Latent(fn, score)

    def loss(self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The estimate, without gradient."""
        result = self.in_place(self.elbo.loss, model, guide, args, kwargs)
        return self.finite(result, model, guide, args, kwargs)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The estimate as a tensor with a gradient."""
        return self.in_place(self.elbo.differentiable_loss, model, guide, args, kwargs)

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The estimate; its gradient is added to the parameters."""
        result = self.in_place(self.elbo.loss_and_grads, model, guide, args, kwargs)
        self.finite(result, model, guide, args, kwargs)
        self.steps += 1
        return result

    def in_place(
        self,
        method: Any,
        model: Callable[..., Any],
        guide: Any,
        args: Any,
        kwargs: Any,
        score: Callable[[str, Any, Tensor], Tensor] | None = None,
    ) -> Any:
        """Calls a method of the ELBO with the surrogates in place, those of ``self.score`` if no
        others are given."""
        scoring = _Scoring(self.kind, self.score if score is None else score, self.latent)
        result = method(scoring(model), guide, *args, **kwargs)
        if not scoring.found:
            raise ValueError(
                f"{type(self).__name__}: expected a model with a site of {self.kind.__name__}, got "
                "none; an ordinary ELBO trains this one"
            )
        return result

    def finite(self, result: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """``result``, if it is.

        Raises:
            NonFiniteError: if not, with the site and the number of gradient steps so far.
        """
        if isinstance(result, float) and not math.isfinite(result):
            site = nonfinite_site(model, guide, args, kwargs)
            where = f"site {site!r}" if site else f"no single site ({self.suspects})"
            raise NonFiniteError(
                f"step {self.steps}: the loss is {result}; not finite at {where}. Look at the data "
                "of that site, lower the learning rate, or bound its energy",
                site,
                self.steps,
            )
        return result

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(
            _Scoring(self.kind, self.score, self.latent)(model), guide, args, kwargs
        )


def expanded(fn: Any, value: Tensor) -> Tensor:
    """The value with the batch dimensions of its site, ``[*batch, *event]``."""
    split = value.dim() - len(fn.event_shape)
    batch = torch.broadcast_shapes(value.shape[:split], fn.batch_shape)
    return value.expand((*batch, *fn.event_shape))


class Visited(NamedTuple):
    """A site of a run: its name, its distribution, its value, and whether the run drew numbers on
    which the distribution may depend."""

    name: str
    fn: Any
    value: Tensor
    by_chance: bool


def visit(
    kind: type[TorchDistribution],
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> list[Visited]:
    """Runs guide and model once, and returns each site of one kind."""
    scoring = _Scoring(kind, lambda name, fn, value: value, lambda name, fn, score: score)
    with poutine.block():
        guided = poutine.trace(guide).get_trace(*args, **kwargs)
        traced = poutine.trace(poutine.replay(scoring(model), trace=guided))
        nodes: Any = traced.get_trace(*args, **kwargs).nodes
    by_chance = any(map(_is_drawn, [*guided.nodes.values(), *nodes.values()]))
    return [
        Visited(name, fn, nodes[name]["value"], by_chance) for name, fn in scoring.found.items()
    ]


def _is_drawn(node: Any) -> bool:
    if node["type"] != "sample" or node["is_observed"]:
        return False
    fn = node["fn"]  # a plate that takes all of its elements draws nothing
    return not isinstance(fn, _Subsample) or (fn.subsample_size or fn.size) < fn.size


class _Scoring(Messenger):
    """Gives sites of one kind a surrogate for their log-density."""

    def __init__(
        self,
        kind: type[TorchDistribution],
        score: Callable[[str, Any, Tensor], Tensor],
        latent: Callable[[str, Any, Score], Score],
    ) -> None:
        super().__init__()
        self._kind, self._score, self._latent = kind, score, latent
        self.found: dict[str, Any] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn, name, kind = msg["fn"], msg["name"], self._kind
        if isinstance(fn, kind):
            self.found[name] = fn
            score: Score = partial(self._score, name, fn)
            if not msg["is_observed"]:
                score = self._latent(name, fn, score)
            msg["fn"] = _Scored(fn, score)
        elif isinstance(innermost(fn), kind):
            raise ValueError(
                f"site {name!r}: expected {kind.__name__} itself, got {type(fn).__name__} around "
                "it; give the base its event dimensions (base.to_event(...)) and mask the site "
                "with poutine.mask"
            )


class _Latent:
    """The surrogate of a latent site: it trains the distribution at the guide's draw, which itself
    is scored by the density up to its constant.

    Score-function gradients and importance weights read the value, pathwise gradients the slope at
    the draw. What else a surrogate holds there, such as chains that start at it, would bias them.
    """

    def __init__(self, fn: Any, score: Score) -> None:
        self._fn, self._score = fn, score

    def __call__(self, value: Tensor) -> Tensor:
        fixed = value.detach()
        score = self._score(fixed)
        with torch.no_grad():
            density: Tensor = self._fn.unnormalized_log_prob(fixed)
        total: Tensor = density + (score - score.detach())
        if not value.requires_grad:
            return total
        with torch.no_grad():  # of which graph-based ELBOs need not know where it comes from
            at = detach_provenance(fixed)
            slope = torch.func.grad(lambda x: self._fn.unnormalized_log_prob(x).sum())(at)
        path: Tensor = slope * (value - fixed)
        dims = len(self._fn.event_shape)
        return total + (path.flatten(-dims).sum(-1) if dims else path)


class _Scored(TorchDistribution):
    """A distribution with a surrogate for its log-density."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, fn: Any, score: Score) -> None:
        self._fn, self._score = fn, score
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._fn.support

    def log_prob(self, value: Tensor) -> Tensor:
        score = self._score(value)
        return score.expand(torch.broadcast_shapes(score.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        return self._fn.sample(Size(sample_shape))  # type: ignore[no-any-return]
