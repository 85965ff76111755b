r"""Variational inference of paths: Girsanov's divergence in place of two densities.

Where a model has a path :math:`x \sim p` and its guide another law :math:`q` of the same noise, an
ELBO needs :math:`\log q(x) - \log p(x)`, which is, path by path,

.. math:: \sum_k \tfrac12 \lVert u_k \rVert^2 h_k + \sum_k u_k \cdot \Delta W_k .

* The first sum alone is an estimate of the divergence of low variance early in training.
* The second, of mean zero, is a control variate: near the posterior, it cancels what is left of the
  variance of the estimate.
* If the parameters of :math:`u` in the second sum get no gradient, so is that of its gradient
  (sticking the landing).

With ``persistent`` walkers, every gradient step continues the paths of the last one, for laws that
become stationary, as in a ground state. What a path leads to after its end then matters too: the
cost to go has at the end :math:`x_T` the gradient :math:`-u_T / g`, which enters the gradient of
the objective, and not its value.

References:
    X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic
    differential equations*, 2020, arXiv:2001.01328. W. Xu, R. T. Q. Chen, X. Li,
    D. Duvenaud, *Infinitely deep Bayesian neural networks with stochastic differential equations*,
    2021, arXiv:2102.06559.
    A. Barr, W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
    arXiv:2006.09044.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO, RenyiELBO, ReweightedWakeSleep
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import is_validation_enabled
from torch import Size, Tensor
from torch.distributions import constraints

from pyrogen.distributions import Path
from pyrogen.errors import NonFiniteError
from pyrogen.losses._scoring import Score, visit
from pyrogen.losses._stateful import Carried, StatefulELBO

__all__ = ["PathELBO"]


class PathELBO(StatefulELBO):
    r"""An ELBO whose latent paths are scored by Girsanov's theorem.

    At each :class:`~pyrogen.distributions.Path` site of model and guide, ``log p - log q`` is
    ``-kl_weight`` times their log-ratio in one of three forms; every other site is scored as ever.
    All are estimates of the same bound, that of ``Trace_ELBO``.

    Args:
        martingale: with the term of mean zero, a control variate near the posterior.
        sticking_the_landing: with it, and without its gradient in the guide's parameters.
        kl_weight: weight of the divergence of paths; 1 is the bound on the evidence.
        persistent: paths begin where those of the last gradient step ended, first at the model's
            beginning; the cost to go enters the gradient.
        elbo: the estimate that all this enters; ``Trace_ELBO()`` by default.

    Raises:
        TypeError: if ``elbo`` is no ELBO.
        ValueError: if importance weights are to be made without the martingale, persistent paths
            have several particles, or a path has a site in one of the two programs only.
        NonFiniteError: if the loss is not finite, with the site and the number of gradient steps.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyrogen.distributions import Path
        >>> from pyrogen.processes import Brownian
        >>> law = Path(Brownian(), torch.zeros(1), torch.linspace(0.0, 1.0, 21))
        >>> def model():
        ...     x = pyro.sample("x", law)
        ...     pyro.sample("y", dist.Normal(x[-1], 1.0).to_event(1), obs=torch.ones(1))
        >>> def guide():  # towards the measured end; the best drift is (1 - x) / (2 - t)
        ...     pull = pyro.param("pull", torch.tensor(0.0))
        ...     pyro.sample("x", law.steered(lambda x, t: pull * (1 - x) / (2 - t.unsqueeze(-1))))
        >>> loss = PathELBO(sticking_the_landing=True)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
        >>> losses = [svi.step() for _ in range(150)]
        >>> abs(float(pyro.param("pull").detach()) - 1) < 0.1
        True
    """

    kind: ClassVar[type[TorchDistribution]] = Path

    def __init__(
        self,
        martingale: bool = False,
        sticking_the_landing: bool = False,
        kl_weight: float = 1.0,
        persistent: bool = False,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        self.martingale = martingale or sticking_the_landing
        self.sticking_the_landing = sticking_the_landing
        if not (kl_weight >= 0 and math.isfinite(kl_weight)):
            raise ValueError(f"kl_weight: expected a number of at least 0, got {kl_weight!r}")
        self.kl_weight = float(kl_weight)
        self.persistent = persistent
        self._check_options()

    def _check_options(self) -> None:
        if isinstance(self.elbo, (RenyiELBO, ReweightedWakeSleep)) and not self.martingale:
            raise ValueError(
                f"martingale: expected True with {type(self.elbo).__name__}, whose weights need "
                "the whole log-ratio, got False"
            )
        if self.persistent and self.elbo.num_particles != 1:
            raise ValueError(
                "num_particles: expected 1 with persistent paths, got "
                f"{self.elbo.num_particles}; for more of them make their plate larger"
            )

    def __repr__(self) -> str:
        """What is minimised."""
        names = ("martingale", "sticking_the_landing", "kl_weight", "persistent")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"PathELBO({options}, elbo={type(self.elbo).__name__})"

    # What is carried: for each path site, where its paths begin.

    def start(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Places persistent walkers at the model's beginning."""
        if self.carried or not self.persistent:
            return
        with torch.no_grad():
            proposals = _Proposals({}, self.steps)
            sites = visit(self.kind, model, proposals(guide), args, kwargs)
            self.carried = {each.name: each.fn.sample()[..., 0, :].contiguous() for each in sites}

    def advance(
        self, carried: Mapping[str, Tensor], model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Carried:
        """There is nothing to do ahead of a step."""
        return dict(carried)

    def in_place(
        self,
        method: Any,
        model: Callable[..., Any],
        guide: Any,
        args: Any,
        kwargs: Any,
        score: Callable[[str, Any, Tensor], Tensor] | None = None,
        carried: Carried | None = None,
    ) -> Any:
        """Calls a method of the ELBO with the log-ratios in place."""
        carried = dict(self.carried) if carried is None else carried
        proposals = _Proposals(carried, self.steps)
        score = partial(self._score, proposals, carried)
        result = super().in_place(method, model, proposals(guide), args, kwargs, score)
        proposals.refuse_unscored()
        return result

    def step(
        self,
        method: Callable[..., Any],
        carried: Mapping[str, Tensor],
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, Carried]:
        """What a method of the ELBO returns, and where paths go on."""
        following = dict(carried)
        result = self.in_place(method, model, guide, args, kwargs, carried=following)
        return result, following

    def score_and_carry(self, carried: Carried, name: str, fn: Any, value: Tensor) -> Tensor:
        """The log-density of a path that no guide proposed."""
        return fn.log_prob(value)  # type: ignore[no-any-return]

    def latent(self, name: str, fn: Any, score: Score) -> Score:
        """The log-ratio itself."""
        return score

    def _score(
        self, proposals: _Proposals, carried: Carried, name: str, fn: Path, value: Tensor
    ) -> Tensor:
        proposals.scored.add(name)
        proposed = proposals.found.get(name)
        if proposed is None:
            return self.score_and_carry(carried, name, fn, value)
        if name in carried:
            fn = fn.started_at(carried[name])
        ratio = proposed.log_ratio(value, fn, self.martingale, self.sticking_the_landing)
        if name in carried:
            end = value[..., -1, :]
            to_go = (_end_control(proposed, fn, end.detach()) * end).sum(-1)
            ratio = ratio - (to_go - to_go.detach())
            carried[name] = end.detach()
        return -self.kl_weight * ratio


def _end_control(q: Path, p: Path, end: Tensor) -> Tensor:
    """``u / g`` at the end, the slope of what is to come."""
    with torch.no_grad():
        t = q.times[-1]
        context, expected = ([each[..., -1, :] for each in law.context] for law in (q, p))
        control = q.process.drift(end, t, *context) - p.process.drift(end, t, *expected)
        return control / q.process.diffusion_at(end, t).square()


class _Proposals(Messenger):
    """Remembers the laws of paths that a guide proposes, and leaves their score to the model's
    site."""

    def __init__(self, carried: Mapping[str, Tensor], steps: int) -> None:
        super().__init__()
        self._carried, self._steps = dict(carried), steps
        self.found: dict[str, Path] = {}
        self.scored: set[str] = set()

    def refuse_unscored(self) -> None:
        """Raises ValueError if the score of a law is nowhere."""
        if left := sorted(self.found.keys() - self.scored):
            raise ValueError(
                f"sites {left}: expected a Path in the model too, got one in the guide only"
            )

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, Path) and not msg["is_observed"]:
            if name in self._carried:
                fn = fn.started_at(self._carried[name])
            self.found[name] = fn
            msg["fn"] = _Proposed(fn)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] not in self.found or not is_validation_enabled():
            return
        lost = ~msg["value"].isfinite().flatten(-2).all(-1)
        if bool(lost.any()):
            raise NonFiniteError(
                f"step {self._steps}: {int(lost.sum())} of {lost.numel()} paths of site "
                f"{msg['name']!r} are not finite; expected a drift that keeps them together, or "
                "smaller time steps; lower the learning rate",
                msg["name"],
                self._steps,
            )


class _Proposed(TorchDistribution):
    """A law of paths whose log-density is part of another score."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, fn: Path) -> None:
        self._fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self._fn.has_rsample

    @property
    def support(self) -> Any:
        return self._fn.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _Proposed:
        return _Proposed(self._fn.expand(Size(batch_shape)))

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        return self._fn.rsample(sample_shape)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        return self._fn.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(self.batch_shape)
