r"""Continuous normalising flows: a bijection that is the solution of a differential equation.

.. math:: \frac{dx}{dt} = f(x, t; c), \qquad
   \frac{d}{dt} \log p(x) = -\operatorname{tr} \frac{\partial f}{\partial x}, \qquad
   y = x(1), \quad
   \log \left| \det \frac{\partial y}{\partial x} \right|
   = \int_0^1 \operatorname{tr} \frac{\partial f}{\partial x}\, dt .

Any smooth :math:`f` makes a bijection; the inverse runs from 1 to 0. The trace is exact, or
Hutchinson's estimate :math:`\varepsilon^\top \nabla f\, \varepsilon` with one :math:`\varepsilon`
for the whole path, which makes the log-determinant unbiased (but not the density). For Rademacher
:math:`\varepsilon` its variance is :math:`2 \sum_{i \ne j} S_{ij}^2` and for Gaussian
:math:`2 \|S\|_F^2`, where :math:`S` is the symmetric part of :math:`\int \nabla f\, dt`.

Two costs keep the field easy to solve, the kinetic energy :math:`\int \|f\|^2 dt` and the size of
the Jacobian :math:`\int \|\nabla f\|_F^2 dt`.

References: R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, *Neural ordinary differential
equations*, 2018 (arXiv:1806.07366); W. Grathwohl et al., *FFJORD*, 2018 (arXiv:1810.01367);
C. Finlay, J.-H. Jacobsen, L. Nurbekyan, A. M. Oberman, *How to train your neural ODE: the world of
Jacobian and kinetic regularization*, 2020 (arXiv:2002.02798).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrogen.transforms._bijection import Bijection
from pyrogen.transforms._dopri import Inputs, solve
from pyrogen.transforms._field import CompiledField, Field, probe_like
from pyrogen.transforms._ode import ADAPTIVE, FIXED, Solver, is_recorded

__all__ = ["ContinuousFlow", "Solution"]


class Solution(NamedTuple):
    """A point carried along a flow, and what was summed up on the way; each ``[*batch]``.

    Attributes:
        value: where the point ends, ``[*batch, *event]``.
        log_det: log-determinant of the forward map (from 0 to 1), also where the way was back.
        kinetic: the integral of the squared speed.
        jacobian: the integral of the squared Frobenius norm of the Jacobian (its estimate where
            the trace is estimated).

    Example:
        >>> from pyrogen.nn import TimeMLP
        >>> flow = ContinuousFlow(TimeMLP(2, hidden=(16,)), method="rk4", steps=4)
        >>> solution = flow.solve(torch.randn(5, 2))
        >>> solution.value.shape, solution.kinetic.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    value: Tensor
    log_det: Tensor
    kinetic: Tensor
    jacobian: Tensor


class ContinuousFlow(Bijection):
    r"""The flow of a differential equation from t = 0 to 1.

    Args:
        dynamics: module that maps ``x [*batch, *event]`` and the scalar tensor ``t`` to the shape
            of ``x``; with ``context_dim > 0`` it takes ``(x, t, context)``. Smooth.
        event_dim: number of event dimensions of ``x``.
        context_dim: size of the context, 0 for none.
        trace: ``"exact"`` costs one product with the Jacobian per event element, done in a batch;
            ``"hutchinson"`` one in all, and makes log-determinants random.
        probe: the random vectors of ``"hutchinson"``: ``"rademacher"`` (least variance) or
            ``"gaussian"``.
        method: adaptive (``"dopri5"``, ``"dopri8"``, ``"bosh3"``, ``"fehlberg2"``,
            ``"adaptive_heun"``) or of fixed steps (``"rk4"``, ``"midpoint"``, ``"euler"``). A
            program with fixed steps can be captured (``losses.Compiled``), but learn a density by
            an adaptive method: training exploits coarse fixed steps, as their log-determinant is
            not that of the map, until the likelihood reported is none.
        atol: absolute tolerance of an adaptive method, per step, for every element of the value and
            every log-determinant: an estimated error may be ``atol + rtol * |element|``.
        rtol: relative tolerance, likewise.
        steps: number of fixed steps; only for fixed methods, and required there. Judge what was
            trained with few by the held-out log-likelihood at many more.
        max_steps: how many steps an adaptive method may take.
        adjoint: gradients by solving the adjoint equation back in time: memory does not grow with
            the steps, and the gradient is exact up to the tolerances only. Otherwise the gradient
            is that of the steps taken.
        compile: run the field and its gradient as compiled graphs, which pays where it is called
            often; its gradient cannot be differentiated again. Has no effect inside a captured
            program, which is compiled as a whole.

    Raises:
        TypeError: if ``dynamics`` is no module (its parameters would not be found).
        ValueError: for an unknown option, or ``steps`` that do not go with ``method``; on call, if
            ``dynamics`` changes the shape of ``x``.
        RuntimeError: on call, if an adaptive method exceeds ``max_steps``.
        NonFiniteError: on call, if an adaptive solution becomes infinite or NaN.

    References:
        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
        continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.

    Example:
        >>> from pyrogen.nn import TimeMLP
        >>> flow = ContinuousFlow(TimeMLP(2, hidden=(16,)), atol=1e-6, rtol=1e-6)
        >>> x = torch.randn(5, 2)
        >>> y, log_det = flow.forward_and_log_det(x)
        >>> back, same = flow.inverse_and_log_det(y)
        >>> bool((back - x).abs().max() < 1e-3), bool((same - log_det).abs().max() < 1e-2)
        (True, True)
        >>> solution = flow.solve(y, inverse=True)  # with the costs, to be added to a loss:
        >>> penalty = 0.01 * (solution.kinetic + solution.jacobian)
    """

    def __init__(
        self,
        dynamics: nn.Module,
        event_dim: int = 1,
        context_dim: int = 0,
        trace: str = "exact",
        probe: str = "rademacher",
        method: str = "dopri5",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        steps: int | None = None,
        max_steps: int = 1000,
        adjoint: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(event_dim, context_dim)
        if not isinstance(dynamics, nn.Module):
            raise TypeError(
                f"dynamics: expected a torch.nn.Module, got {type(dynamics).__name__}; the "
                "parameters of a plain function would not be trained"
            )
        _check_choice("trace", trace, ("exact", "hutchinson"))
        _check_choice("probe", probe, ("rademacher", "gaussian"))
        _check_choice("method", method, (*ADAPTIVE, *FIXED))
        _check_solver(method, atol, rtol, steps, max_steps)
        self.dynamics = dynamics
        self.trace = trace
        self.probe = probe
        self.solver = Solver(method, atol, rtol, steps, max_steps, adjoint)
        self.compiled = compile
        self._fields: dict[int, CompiledField] = {}
        self.num_evaluations = 0  # of the field, in the last solution

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solves from 0 to 1, the state together with its log-density."""
        value, log_det = self._integrate(x, context, 2, inverse=False)
        return value, log_det

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solves from 1 to 0, the state together with its log-density."""
        value, log_det = self._integrate(y, context, 2, inverse=True)
        return value, log_det

    def forward_value(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Solves from 0 to 1, without the trace."""
        return self._integrate(x, context, 1, inverse=False)[0]

    def inverse_value(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Solves from 1 to 0, without the trace."""
        return self._integrate(y, context, 1, inverse=True)[0]

    def solve(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> Solution:
        """Solves for the value, the log-determinant and the two costs together.

        Args:
            x: where to start, ``[*batch, *event]``.
            context: ``[*batch, context_dim]`` or ``None``.
            inverse: start at t = 1 and end at 0, as data do.
        """
        return Solution(*self._integrate(x, context, 4, inverse))

    def _integrate(
        self, x: Tensor, context: Tensor | None, terms: int, inverse: bool
    ) -> tuple[Tensor, ...]:
        x, context = self._expanded(x, context)
        hutchinson = self.trace == "hutchinson" and terms > 1
        inputs = Inputs(x, probe_like(x, self.probe) if hutchinson else None, context)
        start, end = (1.0, 0.0) if inverse else (0.0, 1.0)
        if self.solver.method == "dopri5" and not self.solver.adjoint:
            self.solver.check_uncaptured()
            solution, self.num_evaluations = solve(
                self._field(terms), inputs, start, end, self.solver
            )
            value, *sums = solution
        else:
            value, *sums = self._solve(inputs, start, end, terms)
        return (value, *(-total if inverse else total for total in sums))

    def _solve(self, inputs: Inputs, start: float, end: float, terms: int) -> tuple[Tensor, ...]:
        x, probe, context = inputs
        field = self._field(terms)
        self.num_evaluations = 0

        def derivative(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self.num_evaluations += 1
            derivatives: tuple[Tensor, ...] = field(state[0], t, probe, context)
            return derivatives

        zero = x.new_zeros(x.shape[: x.dim() - self.domain.event_dim])
        dependencies: list[Tensor] = [p for p in self.dynamics.parameters() if p.requires_grad]
        if context is not None and context.requires_grad:
            dependencies.append(context)
        state = (x, *(zero for _ in range(terms - 1)))
        return self.solver.solve(derivative, state, start, end, dependencies)

    def _expanded(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both with the batch dimensions that they have together."""
        event_dim = self.domain.event_dim
        split = x.dim() - event_dim
        if split < 0 or not x.is_floating_point():
            raise ValueError(
                f"ContinuousFlow: expected a floating-point tensor of at least {event_dim} "
                f"dimensions, got {x.dtype} of shape {list(x.shape)}"
            )
        got = 0 if context is None else context.shape[-1]
        if got != self.context_dim:
            raise ValueError(
                f"ContinuousFlow: expected a context of size {self.context_dim}, got size {got}"
            )
        if context is None:
            return x, None
        batch = torch.broadcast_shapes(x.shape[:split], context.shape[:-1])
        return x.expand(*batch, *x.shape[split:]), context.expand(*batch, -1)

    def _field(self, terms: int) -> Field | CompiledField:
        if not self.compiled or is_recorded():
            return Field(self.dynamics, self.domain.event_dim, terms)
        if terms not in self._fields:
            self._fields[terms] = CompiledField(Field(self.dynamics, self.domain.event_dim, terms))
        return self._fields[terms]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fields": {}}  # graphs are made anew where they are needed


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")


def _check_solver(method: str, atol: float, rtol: float, steps: int | None, max_steps: int) -> None:
    if method in FIXED and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps: expected a positive integer for method {method!r}, got {steps}")
    if method in ADAPTIVE and steps is not None:
        raise ValueError(
            f"steps: expected None for the adaptive method {method!r}, got {steps}; choose one of "
            f"{list(FIXED)}, or limit the steps by max_steps"
        )
    if atol <= 0 or rtol < 0 or max_steps < 1:
        raise ValueError(
            "atol, rtol, max_steps: expected atol > 0, rtol >= 0 and max_steps >= 1, got "
            f"{atol}, {rtol}, {max_steps}"
        )
