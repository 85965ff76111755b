r"""Ordinary differential equations between two times, with an error for every way to fail.

Adaptive methods are torchdiffeq's, and so is the adjoint equation. Explicit methods of fixed steps
are written out here, because torchdiffeq reads the values of its time grid, which a captured graph
cannot do; the default adaptive method has a module of its own (``_dopri``), because it is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrogen.errors import GraphError, NonFiniteError

__all__ = ["ADAPTIVE", "FIXED", "Solver", "is_recorded"]

State = tuple[Tensor, ...]
Derivative = Callable[[Tensor, State], State]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
# For each stage its time and the weights of the stages before it; then the weights of the sum.
_TABLEAUS: dict[str, tuple[tuple[tuple[float, tuple[float, ...]], ...], tuple[float, ...]]] = {
    "euler": (((0.0, ()),), (1.0,)),
    "midpoint": (((0.0, ()), (0.5, (0.5,))), (0.0, 1.0)),
    "rk4": (  # the 3/8 rule, as in torchdiffeq
        ((0.0, ()), (1 / 3, (1 / 3,)), (2 / 3, (-1 / 3, 1.0)), (1.0, (1.0, -1.0, 1.0))),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}
FIXED = tuple(_TABLEAUS)


@dataclass(frozen=True)
class Solver:
    """How to integrate.

    Attributes:
        method: one of ``ADAPTIVE`` or ``FIXED``.
        atol: absolute tolerance per step of an adaptive method.
        rtol: relative tolerance per step of an adaptive method.
        steps: how many steps a fixed method takes.
        max_steps: how many steps an adaptive method may take.
        adjoint: gradients by the adjoint equation instead of through the steps.
    """

    method: str
    atol: float
    rtol: float
    steps: int | None
    max_steps: int
    adjoint: bool

    def solve(
        self, f: Derivative, state: State, start: float, end: float, parameters: Sequence[Tensor]
    ) -> State:
        """Integrates from ``start`` to ``end``.

        Args:
            f: ``(t, state)`` to the derivative of each tensor of the state.
            state: the first tensor, and the second if there is one, decide on the step size.
            start: time of ``state``.
            end: time of the result.
            parameters: what else ``f`` depends on, for the adjoint equation.

        Raises:
            RuntimeError: if an adaptive method needs more than ``max_steps`` steps.
            NonFiniteError: if the state becomes infinite or NaN.
            GraphError: if an adaptive method is being captured.
        """
        if self.steps is not None and not self.adjoint:
            return _fixed(f, state, start, end, self.steps, self.method)
        self.check_uncaptured()
        return self._torchdiffeq(f, state, start, end, parameters)

    def check_uncaptured(self) -> None:
        """Refuses to be captured, for a method whose steps depend on values."""
        if is_recorded():
            raise GraphError(
                f"the steps of the solver {self.method!r} depend on values; expected fixed steps "
                'where a program is captured. Give the flow method="rk4" and steps=..., or run the '
                "program uncompiled with ContinuousFlow(..., compile=True)"
            )

    def check_step(self, tried: int, t: float, h: float, slopes: State) -> None:
        """Refuses to try another step, of size ``h``, where that leads nowhere.

        Args:
            tried: how many steps were tried before.
            t: the time reached.
            h: size of the step.
            slopes: derivatives at that time.
        """
        stuck = abs(h) < torch.finfo(slopes[0].dtype).eps
        if not stuck and tried < self.max_steps:
            return
        if not _finite(slopes):
            raise _not_finite(t)
        raise self._too_many(tried, t, h)

    def _too_many(self, tried: int, t: float, h: float, where: str = "from 0 to 1") -> RuntimeError:
        return RuntimeError(
            f"{self.method} has made {tried} steps and stands at t = {t:.3g} with step size "
            f"{h:.1e}; expected at most max_steps = {self.max_steps} {where}. Loosen atol = "
            f"{self.atol} and rtol = {self.rtol} (below 1e-6 they ask for double precision), "
            "penalise the kinetic energy or the Jacobian of the dynamics, take fixed steps "
            '(method="rk4", steps=...), or raise max_steps'
        )

    def _torchdiffeq(
        self, f: Derivative, state: State, start: float, end: float, parameters: Sequence[Tensor]
    ) -> State:
        x = state[0]
        times = torch.tensor([start, end], dtype=x.dtype, device=x.device)
        watched = _Watched(f, self)
        options: dict[str, Any]
        if self.steps is None:
            options = {"step_t": times[1:], "norm": _norm}
        else:
            options = {"step_size": abs(end - start) / self.steps}
        how = {"atol": self.atol, "rtol": self.rtol, "method": self.method, "options": options}
        if not self.adjoint:
            path = torchdiffeq.odeint(watched, state, times, **how)
        else:
            backward = dict(options)
            if self.steps is None:
                backward = {"step_t": times[:1], "norm": "seminorm"}
            path = torchdiffeq.odeint_adjoint(
                watched,
                state,
                times,
                **how,
                adjoint_params=tuple(parameters),
                adjoint_options=backward,
            )
        return tuple(values[-1] for values in path)


class _Watched:
    """A derivative, and what is to be looked after at each step, in the way torchdiffeq asks it."""

    def __init__(self, f: Derivative, solver: Solver) -> None:
        self._f = f
        self._solver = solver
        self._taken = {"from 0 to 1": 0, "of the adjoint equation": 0}

    def __call__(self, t: Tensor, state: State) -> State:
        return self._f(t, state)

    def callback_step(self, t: Tensor, state: State, dt: Tensor) -> None:
        """Called before each step."""
        stuck = bool(t + dt == t)
        if not _finite(state) or (stuck and not _finite(self._f(t.to(state[0].dtype), state))):
            raise _not_finite(float(t))
        self._count("from 0 to 1", t, dt, stuck)

    def callback_step_adjoint(self, t: Tensor, state: State, dt: Tensor) -> None:
        """Called before each step of the adjoint equation."""
        self._count("of the adjoint equation", t, dt, stuck=bool(t + dt == t))

    def _count(self, where: str, t: Tensor, dt: Tensor, stuck: bool) -> None:
        solver = self._solver
        self._taken[where] += 1
        if solver.steps is None and (stuck or self._taken[where] > solver.max_steps):
            raise solver._too_many(self._taken[where] - 1, float(t), float(dt), where)


def _finite(state: State) -> bool:
    return all(bool(part.isfinite().all()) for part in state)


def _not_finite(t: float) -> NonFiniteError:
    return NonFiniteError(
        f"the solution of the differential equation is not finite at t = {t:.3g}. Lower the "
        "learning rate, or bound the dynamics (by tanh, or by a penalty on their kinetic energy)"
    )


@torch.no_grad()  # no gradient through the choice of the first step
def _norm(state: State) -> Tensor:
    """The largest element of value and log-determinant; costs go along."""
    return torch.stack([part.abs().amax() for part in state[:2]]).amax()


def _fixed(f: Derivative, state: State, start: float, end: float, steps: int, method: str) -> State:
    stages, weights = _TABLEAUS[method]
    h = (end - start) / steps
    for step in range(steps):
        slopes: list[State] = []
        for time, row in stages:
            t = state[0].new_full((), start + (step + time) * h)
            slopes.append(f(t, _moved(state, slopes, row, h)))
        state = _moved(state, slopes, weights, h)
    return state


def _moved(state: State, slopes: Sequence[State], weights: Sequence[float], h: float) -> State:
    for slope, weight in zip(slopes, weights, strict=True):
        if weight:
            state = tuple(x + (h * weight) * dx for x, dx in zip(state, slope, strict=True))
    return state


def is_recorded() -> bool:
    """Whether the operations done now are being captured in a graph."""
    return get_proxy_mode() is not None
