r"""Laws of paths, and the divergence of one from another.

An Itô process that starts at :math:`x_0` and is looked at on a grid :math:`t_0 < \dots < t_T` has,
by Euler's and Maruyama's step, the law

.. math:: p(x_{1:T} \mid x_0) = \prod_{k=0}^{T-1}
   N\!\left(x_{k+1};\; x_k + f(x_k, t_k)\, h_k,\; g(x_k, t_k)^2\, h_k\right), \qquad
   h_k = t_{k+1} - t_k .

Two such laws :math:`q, p` with the same noise :math:`g` and drifts :math:`f_q, f_p` have, with
:math:`u = (f_q - f_p) / g` and the noise :math:`\Delta W = (\Delta x - f_q h) / g` that a path has
under :math:`q`, the log-ratio (Girsanov)

.. math:: \log \frac{q(x)}{p(x)} = \sum_k \tfrac12 \lVert u_k \rVert^2 h_k
   + \sum_k u_k \cdot \Delta W_k .

The second sum is a martingale under :math:`q`, of mean zero, so that the first alone is an estimate
of the divergence :math:`\mathrm{KL}(q \| p)`. With both the estimate is exact, path by path, where
:math:`q` is the posterior. If the noise differs, no path of one is one of the other, and the
divergence is infinite.

References:
    I. V. Girsanov, *On transforming a certain class of stochastic processes by absolutely
    continuous substitution of measures*, 1960, doi:10.1137/1105027. X. Li, T.-K. L. Wong,
    R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic differential equations*, 2020,
    arXiv:2001.01328.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Size, Tensor
from torch.distributions import Distribution, constraints, kl_divergence, register_kl
from torch.utils.weak import WeakTensorKeyDictionary

from pyrogen.distributions._sticking import stuck
from pyrogen.processes import LinearProcess, Process, Steered, simulate
from pyrogen.processes._torchsde import ITO, STRATONOVICH, by_torchsde
from pyrogen.processes.simulate import check_method, on_grid

__all__ = ["Path"]

_TORCHSDE = "torchsde:"
_GRADIENTS = ("direct", "checkpointed", "adjoint")


class Path(TorchDistribution):
    r"""The law of a process on a grid of times.

    Args:
        process: drift and diffusion.
        initial: where paths start: a point ``[*batch, D]``, or a distribution of event ``[D]``.
        times: ``[T + 1]``, increasing.
        context: what the drift is told besides, ``[*batch, T, C]`` or ``[*batch, 1, C]``, or
            several such tensors; on step ``k`` the drift is ``f(x, t, context[..., k, :])``.
        solver: ``"euler"``; ``"exact"``, for processes whose transitions are known, such as linear
            ones; ``"heun"``; or ``"torchsde:<method>"``. The last two have no density on the grid.
        gradient: how paths are differentiated: ``"direct"``; ``"checkpointed"``, with the memory of
            about ``sqrt(T)`` steps; or ``"adjoint"``, torchsde's, with that of one step.
        validate_args: check values; ``None`` follows Pyro's setting.

    Attributes:
        process: drift and diffusion.
        initial: where paths start.
        times: ``[T + 1]``.
        context: a tuple.

    Shapes: events are paths ``[T + 1, D]``, the beginning included. A drift is called with states
    ``[*batch, D]`` and a scalar time while paths are drawn, and with ``[*batch, T, D]`` and times
    that broadcast against ``[*batch, T]`` while they are scored.

    Raises:
        TypeError: if ``process`` is no :class:`~pyrogen.processes.Process`.
        ValueError: for shapes that do not fit, times that do not increase, an unknown solver or
            gradient, or one that this process does not have. :meth:`log_prob` and
            :meth:`log_ratio` also for a solver without density, for grids that differ, and for a
            diffusion that differs.

    Example:
        >>> from pyrogen.processes import OrnsteinUhlenbeck
        >>> times = torch.linspace(0.0, 1.0, 51)
        >>> prior = Path(OrnsteinUhlenbeck(rate=1.0, scale=0.2), torch.zeros(3), times)
        >>> posterior = prior.steered(lambda x, t: torch.full_like(x, 0.3))
        >>> path = posterior.rsample()
        >>> path.shape
        torch.Size([51, 3])
        >>> # three dimensions, each c^2 T / (2 sigma^2)
        >>> posterior.log_ratio(path, prior, martingale=False)
        tensor(3.3750)
        >>> torch.allclose(
        ...     posterior.log_ratio(path, prior),
        ...     posterior.log_prob(path) - prior.log_prob(path),
        ...     atol=1e-3,
        ... )
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        process: Process,
        initial: Tensor | Distribution,
        times: Tensor,
        context: Tensor | Sequence[Tensor] | None = None,
        solver: str = "euler",
        gradient: str = "direct",
        validate_args: bool | None = None,
    ) -> None:
        given = () if context is None else context
        self.process, self.initial, self.times = process, initial, times
        self.context = (given,) if isinstance(given, Tensor) else tuple(given)
        self.solver, self.gradient = solver, gradient
        self._drawn = _Drawn()
        _check_process(process, solver, gradient)
        size = _check_initial(initial)
        _check_times(times)
        start = initial.shape[:-1] if isinstance(initial, Tensor) else initial.batch_shape
        batch = torch.broadcast_shapes(start, *_check_context(self.context, len(times) - 1))
        super().__init__(batch, Size((len(times), size)), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the gradient passes through draws: unless it does not through the beginning."""
        return isinstance(self.initial, Tensor) or bool(self.initial.has_rsample)

    @property
    def has_density(self) -> bool:
        """Whether the law on the grid is known: that of Euler's steps, and exact ones."""
        return self.solver in ("euler", "exact")

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Path:
        """Returns the law with ``batch_shape``."""
        new: Path = self._get_checked_instance(Path, _instance)
        batch_shape = Size(batch_shape)
        new.__dict__.update(self._parts())
        new.context, new._drawn = self.context, _Drawn()
        new.initial = (
            self.initial.expand((*batch_shape, *self.event_shape[1:]))
            if isinstance(self.initial, Tensor)
            else self.initial.expand(batch_shape)
        )
        super(Path, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _parts(self) -> dict[str, Any]:
        names = ("process", "times", "solver", "gradient")
        return {name: getattr(self, name) for name in names}

    def started_at(self, initial: Tensor | Distribution) -> Path:
        """The same law from another beginning.

        Args:
            initial: a point ``[*batch, D]``, or a distribution of event ``[D]``.
        """
        return Path(initial=initial, context=self.context, **self._parts())

    def steered(self, control: Callable[..., Tensor], context: Tensor | None = None) -> Path:
        """The law with a control added to the drift, with the same noise and beginning.

        Args:
            control: ``u(x, t)``, or ``u(x, t, context)``, of the shape of ``x``.
            context: what the control is told, ``[*batch, T or 1, C]``.
        """
        parts = self._parts()
        parts["process"] = Steered(self.process, control, len(self.context))
        if self.solver == "exact":
            parts["solver"] = "euler"  # the transitions are known no longer
        added = () if context is None else (context,)
        return Path(initial=self.initial, context=(*self.context, *added), **parts)

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws paths ``[*sample_shape, *batch, T + 1, D]``."""
        return self._draw(Size(sample_shape), "rsample")

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws paths ``[*sample_shape, *batch, T + 1, D]``, without gradient."""
        with torch.no_grad():
            return self._draw(Size(sample_shape), "sample")

    def _draw(self, sample_shape: Size, how: str) -> Tensor:
        length, size = self.event_shape
        shape = Size((*sample_shape, *self.batch_shape))
        if isinstance(self.initial, Tensor):
            start = self.initial.expand((*shape, size))
        else:
            fn: Any = self.initial.expand(self.batch_shape)
            start = getattr(fn, how)(sample_shape)
        if self.solver.startswith(_TORCHSDE):
            method, adjoint = self.solver[len(_TORCHSDE) :], self.gradient == "adjoint"
            path = by_torchsde(self.process, start, self.times, self.context, method, adjoint)
            self._drawn = _Drawn(path)
            return path
        # Of one step after the other, so that what a step takes lies together in memory.
        by_step = (length - 1, *shape, size)
        # With its gradient, what steered a path need not be computed once more to score it.
        steered = isinstance(self.process, Steered) and self.solver == "euler"
        kept = steered and self.gradient == "direct" and torch.is_grad_enabled()
        controls: list[Tensor] | None = [] if kept else None
        path = simulate(
            self.process,
            start,
            self.times,
            torch.randn(by_step, dtype=start.dtype, device=start.device).movedim(0, -2),
            self.context,
            self.solver,
            checkpointed=self.gradient == "checkpointed",
            controls=controls,
        )
        self._drawn = _Drawn(path, controls)
        return path

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the states after the first, and of that if it is random, ``[*batch]``.

        Args:
            value: paths ``[*, T + 1, D]``.
        """
        if self._validate_args:
            self._validate_sample(value)
        self._refuse_density("log_prob")
        before, after = value[..., :-1, :], value[..., 1:, :]
        mean, std = self._transitions(before)
        if self.solver == "exact":  # a bridge is certain of its end, which has no density
            certain = std == 0
            std = torch.where(certain, 1.0, std)
            each = torch.where(certain, 0.0, _normal_log_prob(after, mean, std))
        else:
            each = _normal_log_prob(after, mean, std)
        return each.sum((-2, -1)) + self._initial_log_prob(value[..., 0, :])

    def log_ratio(
        self,
        path: Tensor,
        other: Path,
        martingale: bool = True,
        sticking_the_landing: bool = False,
    ) -> Tensor:
        r"""``log q(path) - log p(path)`` of this law ``q`` and another, by Girsanov's theorem.

        Args:
            path: ``[*batch, T + 1, D]``; its mean over paths drawn from ``q`` is the divergence.
            other: the law ``p``, on the same grid and with the same noise.
            martingale: without it, the part whose mean under ``q`` is zero is left out (and of the
                beginning, the divergence stands for the log-ratio where it is known).
            sticking_the_landing: parameters of ``q`` get no gradient from the martingale, only what
                comes through the path, which must be drawn by :meth:`rsample`. Where ``q`` is the
                posterior, the gradient of a bound is then zero for each path.

        Returns:
            ``[*batch]``, in nats.
        """
        self._check_same(other, path)
        # Euler's steps take the control at their beginning, of others the integral is closer.
        states = path[..., :-1, :] if self.has_density else path
        given = self._controls(other, states, self._drawn.controls(path))
        ratio = 0.5 * (given.u.square() * self._weights()).sum((-2, -1))
        if martingale:
            self._refuse_density("the martingale of log_ratio")
            noise = (path.diff(dim=-2) - given.drift() * self._weights()) / given.g
            if sticking_the_landing:
                noise = noise.detach()  # which it is for paths that were drawn
                ratio = ratio + stuck(lambda x: self._martingale(other, x, noise), states)
            else:
                ratio = ratio + (given.u * noise).sum((-2, -1))
        return ratio + self._initial_ratio(path[..., 0, :], other, martingale, sticking_the_landing)

    def _martingale(self, other: Path, states: Tensor, noise: Tensor) -> Tensor:
        return (self._controls(other, states).u * noise).sum((-2, -1))

    def _controls(self, other: Path, states: Tensor, known: Tensor | None = None) -> _Controls:
        """What drives this law away from another, at states ``[*batch, T or T + 1, D]``.

        ``known`` is what steered the path there, if it was kept.
        """
        g = self.process.diffusion_at(*self._at(states)[:2])
        steering = self.process
        if isinstance(steering, Steered) and steering.base is other.process:
            if known is None or known.shape != states.shape:
                known = self._along(states, steering.control)
            control: Tensor = known
            return _Controls(control / g, g, lambda: other._along(states) + control)
        drift = self._along(states)
        return _Controls((drift - other._along(states)) / g, g, lambda: drift)

    def _along(self, states: Tensor, field: Callable[..., Tensor] | None = None) -> Tensor:
        """The drift, or another field, at all states of paths at once."""
        field = self.process.drift if field is None else field
        found = field(*self._at(states))
        if found.shape != states.shape or (
            states.shape[-1] == states.shape[-2]
            and is_validation_enabled()
            and not self._agrees(states, field, found)
        ):
            raise ValueError(
                f"drift: expected {list(states.shape)} for states of that shape and times that "
                f"broadcast against {list(states.shape[:-1])}, got {list(found.shape)}; inside "
                "the drift a time stands beside a state as t.unsqueeze(-1)"
            )
        return found

    def _agrees(self, states: Tensor, field: Callable[..., Tensor], found: Tensor) -> bool:
        """Whether a field is at all times what it is at one, where shapes do not tell."""
        x, t, *context = self._at(states)
        with torch.no_grad():
            last = field(x[..., -1, :], t.flatten()[-1], *[each[..., -1, :] for each in context])
        return torch.allclose(last.expand_as(found[..., -1, :]), found[..., -1, :], 1e-3, 1e-4)

    def _weights(self) -> Tensor:
        """Of what is integrated over time: steps ``[T, 1]``, or the trapezoidal rule ``[T + 1, 1]``
        where the law is not that of Euler's steps."""
        steps = self.times.diff().unsqueeze(-1)
        if self.has_density:
            return steps
        none = torch.zeros_like(steps[:1])
        return 0.5 * (torch.cat([steps, none]) + torch.cat([none, steps]))

    def _at(self, states: Tensor) -> tuple[Tensor, ...]:
        """States, times and context of all steps, and of the end if it is among the states."""
        count, context = states.shape[-2], self.context
        if count == len(self.times):
            context = tuple(torch.cat([each, each[..., -1:, :]], -2) for each in context)
            context = tuple(
                each if each.shape[-2] == count else each[..., :1, :] for each in context
            )
        return (states, on_grid(self.times[:count], states), *context)

    def _transitions(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each next state."""
        if self.solver == "exact":
            process: Any = self.process
            times = on_grid(self.times[:-1], before), on_grid(self.times[1:], before)
            law = process.transition(before, *times)
            return law.mean, law.stddev
        h = self.times.diff().unsqueeze(-1)
        mean = torch.addcmul(before, self._along(before), h)
        g = self.process.diffusion_at(before, on_grid(self.times[:-1], before))
        return mean, (g * h.sqrt()).expand_as(mean)

    def _initial_log_prob(self, start: Tensor) -> Tensor:
        if not isinstance(self.initial, Tensor):
            return self.initial.log_prob(start)
        if self._validate_args and not torch.allclose(start, self.initial.expand_as(start)):
            raise ValueError("value: expected a path that starts at the initial state")
        return start.new_zeros(())

    def _initial_ratio(self, start: Tensor, other: Path, exact: bool, sticking: bool) -> Tensor:
        mine, theirs = self.initial, other.initial
        if mine is theirs:
            return start.new_zeros(())
        if isinstance(theirs, Tensor):
            self._check_point(theirs)
            return start.new_zeros(())
        if isinstance(mine, Tensor):  # a point that is learned: the most probable beginning
            return -theirs.log_prob(start)
        if not exact:
            try:
                return kl_divergence(mine, theirs)
            except NotImplementedError:
                pass
        density = stuck(mine.log_prob, start) if sticking else mine.log_prob(start)
        return density - theirs.log_prob(start)

    def _check_point(self, theirs: Tensor) -> None:
        if not isinstance(self.initial, Tensor):
            raise ValueError(
                "initial: expected the point at which the other law starts, got a distribution; "
                "their divergence would be infinite"
            )
        if is_validation_enabled() and not torch.allclose(
            *torch.broadcast_tensors(self.initial, theirs)
        ):
            raise ValueError(
                "initial: expected the point at which the other law starts, got another; their "
                "divergence would be infinite"
            )

    def _check_same(self, other: Path, path: Tensor) -> None:
        """Whether two laws are of paths that both can take."""
        if not isinstance(other, Path):
            raise TypeError(f"other: expected a Path, got {type(other).__name__}")
        mine, theirs = self.times, other.times
        if mine is not theirs and (
            mine.shape != theirs.shape
            or (is_validation_enabled() and not torch.allclose(mine, theirs))
        ):
            raise ValueError(
                f"times: expected the same grid in both laws of paths, got {len(mine)} times from "
                f"{_ends(mine)} and {len(theirs)} from {_ends(theirs)}"
            )
        if self.event_shape != other.event_shape:
            raise ValueError(
                f"expected paths of one shape, got {list(self.event_shape)} and "
                f"{list(other.event_shape)}"
            )
        if is_validation_enabled() and not _shares_noise(self.process, other.process):
            before = path[..., :-1, :].detach()
            t = on_grid(mine[:-1], before)
            g, expected = (p.diffusion_at(before, t) for p in (self.process, other.process))
            g, expected = torch.broadcast_tensors(g, expected)
            if not torch.allclose(g, expected, rtol=1e-4):
                raise ValueError(
                    "diffusion: expected the same in both laws of paths, got others: the paths of "
                    "one are none of the other's, and their divergence would be infinite. Build "
                    "the guide's law from the model's: prior.steered(control)"
                )

    def _refuse_density(self, what: str) -> None:
        if not self.has_density:
            raise ValueError(
                f"{what}: expected solver 'euler' or 'exact', whose law on the grid is known, got "
                f"{self.solver!r}; the divergence without its martingale needs no density"
            )


class _Controls(NamedTuple):
    """``u``, the diffusion, and the drift at the same states."""

    u: Tensor
    g: Tensor
    drift: Callable[[], Tensor]


class _Drawn:
    """The path that was drawn last and what steered it, as long as it is used elsewhere."""

    def __init__(self, path: Tensor | None = None, controls: list[Tensor] | None = None) -> None:
        self._known: Any = WeakTensorKeyDictionary()
        if path is not None:
            self._known[path] = controls

    def path(self) -> Tensor | None:
        """The path."""
        return next(iter(self._known), None)

    def controls(self, path: Tensor) -> Tensor | None:
        """What steered each step of it, ``[*batch, T, D]``, if that was kept."""
        steps = self._known.get(path)
        return torch.stack(steps).movedim(0, -2) if steps else None


@register_kl(Path, Path)  # type: ignore[untyped-decorator]
def _kl_path_path(q: Path, p: Path) -> Tensor:
    r"""``sum_k 1/2 |u_k|^2 h_k`` along the path that was drawn from ``q`` last, or a new one."""
    drawn = q._drawn.path()
    path = q.rsample() if drawn is None else drawn
    return q.log_ratio(path, p, martingale=False)


def _normal_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    scaled = (value - mean) / std
    return -0.5 * scaled.square() - std.log() - 0.5 * math.log(2 * math.pi)


def _shares_noise(mine: Process, theirs: Process) -> bool:
    while isinstance(mine, Steered) and mine is not theirs:
        mine = mine.base
    return mine is theirs


def _ends(times: Tensor) -> str:
    return f"{float(times[0]):g} to {float(times[-1]):g}"


def _check_process(process: Process, solver: str, gradient: str) -> None:
    if not isinstance(process, Process):
        raise TypeError(f"process: expected a Process, got {type(process).__name__}")
    if gradient not in _GRADIENTS:
        raise ValueError(f"gradient: expected one of {_GRADIENTS}, got {gradient!r}")
    if not solver.startswith(_TORCHSDE):
        check_method(process, solver)
        if gradient == "adjoint":
            raise ValueError(
                "gradient 'adjoint': expected a solver of torchsde, such as "
                f"'torchsde:reversible_heun', got {solver!r}; or gradient='checkpointed'"
            )
        return
    method = solver[len(_TORCHSDE) :]
    if method not in ITO + STRATONOVICH:
        raise ValueError(f"solver: torchsde has {ITO + STRATONOVICH}, got {method!r}")
    if method in STRATONOVICH and process.state_dependent:
        raise ValueError(
            f"solver: expected one of torchsde's for Itô's equations, {ITO}, as the diffusion "
            f"depends on the state, got {method!r}"
        )
    if gradient == "adjoint" and not (process.networks() or isinstance(process, LinearProcess)):
        raise ValueError(
            "gradient 'adjoint': expected a drift (or a control) that is a torch.nn.Module, whose "
            "parameters are known, got a function; or gradient='direct'"
        )
    if gradient == "checkpointed":
        raise ValueError(
            f"gradient: expected 'direct' or 'adjoint' with {solver!r}, got {gradient!r}"
        )


def _check_initial(initial: Any) -> int:
    """The number of dimensions of a state."""
    shape = initial.shape if isinstance(initial, Tensor) else getattr(initial, "event_shape", None)
    if shape is None:
        raise TypeError(
            f"initial: expected a tensor or a distribution, got {type(initial).__name__}"
        )
    if not shape or (not isinstance(initial, Tensor) and len(shape) != 1):
        raise ValueError(
            "initial: expected a point [*batch, D] or a distribution of event [D], got shape "
            f"{list(shape)}; use .to_event(1)"
        )
    return int(shape[-1])


def _check_times(times: Tensor) -> None:
    if not isinstance(times, Tensor) or times.dim() != 1 or len(times) < 2:
        got = list(times.shape) if isinstance(times, Tensor) else type(times).__name__
        raise ValueError(f"times: expected shape [T + 1] with T at least 1, got {got}")
    if is_validation_enabled() and not bool((times.diff() > 0).all()):
        raise ValueError("times: expected increasing times, got some that are not")


def _check_context(context: Sequence[Tensor], steps: int) -> list[Size]:
    """The batch shapes of the contexts."""
    for each in context:
        if each.dim() < 2 or each.shape[-2] not in (1, steps):
            raise ValueError(
                f"context: expected [*batch, {steps}, C] (one for each step) or [*batch, 1, C], "
                f"got {list(each.shape)}"
            )
    return [each.shape[:-2] for each in context]
