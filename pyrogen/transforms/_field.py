r"""The derivative of a state and of its log-density along a field of velocities.

.. math:: \frac{d}{dt} \big(x, \ell, K, J\big)
   = \big(f,\ \operatorname{tr} \nabla f,\ \|f\|^2,\ \|\nabla f\|_F^2\big) .

The Jacobian is met through products :math:`\varepsilon^\top \nabla f` only: with all unit vectors
at once for the exact trace, with one random :math:`\varepsilon` for Hutchinson's estimate
:math:`\varepsilon^\top \nabla f\, \varepsilon`, whose mean is the trace where
:math:`E\, \varepsilon \varepsilon^\top = I`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from pyrogen.graph import Captured

__all__ = ["CompiledField", "Field", "probe_like"]

Derivatives = tuple[Tensor, ...]


class Field(nn.Module):
    """Computes the derivatives of a state: the value, and as many of the others as are wanted.

    Args:
        dynamics: ``(x, t)`` or ``(x, t, context)`` to the shape of ``x``.
        event_dim: number of event dimensions of ``x``.
        terms: 1 for the value alone, 2 with the trace, 4 with the two costs.
    """

    def __init__(self, dynamics: nn.Module, event_dim: int, terms: int) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.event_dim = event_dim
        self.terms = terms

    def forward(
        self, x: Tensor, t: Tensor, probe: Tensor | None = None, context: Tensor | None = None
    ) -> Derivatives:
        """Returns ``terms`` derivatives: the shape of ``x`` first, its batch shape for the others.

        Args:
            x: ``[*batch, *event]``.
            t: scalar.
            probe: random vectors of the shape of ``x``, or ``None`` for the exact trace.
            context: ``[*batch, context_dim]`` or ``None``.
        """

        def velocity(x: Tensor) -> Tensor:
            return self._velocity(x, t, context)

        if self.terms == 1:
            return (velocity(x),)
        if self.terms == 2 and probe is None and getattr(self.dynamics, "knows_divergence", False):
            more = () if context is None else (context,)
            known: Derivatives = self.dynamics.value_and_divergence(x, t, *more)  # type: ignore[operator]
            return known
        v, pull_back = vjp(velocity, x)  # type: ignore[misc]
        if probe is None:
            trace, norm = _exact(pull_back, v, self.event_dim)
        else:
            trace, norm = _projected(pull_back, v, probe, self.event_dim)
        return (v, trace, _sum_event(v.square(), self.event_dim), norm)[: self.terms]

    def _velocity(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        v = self.dynamics(x, t) if context is None else self.dynamics(x, t, context)
        if not isinstance(v, Tensor) or v.shape != x.shape:
            got = list(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(
                f"dynamics: expected the shape of x, {list(x.shape)}, got {got}; the time is a "
                "scalar tensor and must be broadcast"
            )
        return v


def _exact(pull_back: Callable[..., Any], v: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Trace and squared norm of the Jacobian, from its rows."""
    event = v.shape[v.dim() - event_dim :]
    size = event.numel()
    unit = torch.eye(size, dtype=v.dtype, device=v.device)
    batch = v.shape[: v.dim() - event_dim]
    unit = unit.reshape(size, *(1 for _ in batch), *event).expand(size, *v.shape)
    (rows,) = vmap(pull_back)(unit)
    rows = rows.reshape(size, *batch, size)
    return rows.diagonal(dim1=0, dim2=-1).sum(-1), rows.square().sum((0, -1))


def _projected(
    pull_back: Callable[..., Any], v: Tensor, probe: Tensor, event_dim: int
) -> tuple[Tensor, Tensor]:
    """Hutchinson's estimates of the same."""
    (row,) = pull_back(probe)
    return _sum_event(row * probe, event_dim), _sum_event(row.square(), event_dim)


def _sum_event(x: Tensor, event_dim: int) -> Tensor:
    return x.flatten(x.dim() - event_dim).sum(-1) if event_dim else x


def probe_like(x: Tensor, kind: str) -> Tensor:
    """Random vectors of mean zero and covariance one: ``"rademacher"`` or ``"gaussian"``."""
    if kind == "gaussian":
        return torch.randn_like(x)
    return torch.empty_like(x).bernoulli_(0.5) * 2 - 1


class CompiledField:
    """A field whose values and gradients run as two compiled graphs.

    The gradient recomputes the value, so that between the passes only the states are kept.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self._value = Captured(field)
        self._gradient = Captured(_Pullback(field))

    def __call__(
        self, x: Tensor, t: Tensor, probe: Tensor | None = None, context: Tensor | None = None
    ) -> Derivatives:
        if not torch.is_grad_enabled():
            values: Derivatives = self._value(x, t, probe, context)
            return values
        parameters = [p for p in self.field.parameters() if p.requires_grad]
        results: Derivatives = _Evaluate.apply(self, x, t, probe, context, *parameters)
        return results

    def value(self, *inputs: Tensor | None) -> Derivatives:
        """The derivatives, without gradient."""
        values: Derivatives = self._value(*inputs)
        return values

    def gradient(
        self, inputs: tuple[Tensor | None, ...], weights: tuple[Tensor, ...]
    ) -> dict[int, Tensor]:
        """The gradient of the weighted sum of all derivatives, by the identity of its leaf."""
        _, leaves, gradients = self._gradient.value_and_grad(inputs, weights)
        return {id(leaf): grad for leaf, grad in zip(leaves, gradients, strict=True)}


class _Pullback(nn.Module):
    """The objective whose gradient is the product of a Jacobian with ``weights``."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, inputs: tuple[Any, ...], weights: tuple[Tensor, ...]) -> Tensor:
        values = self.field(*inputs)
        return torch.stack([(a * b).sum() for a, b in zip(values, weights, strict=True)]).sum()


class _Evaluate(torch.autograd.Function):
    """A compiled field inside autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        field: CompiledField,
        x: Tensor,
        t: Tensor,
        probe: Tensor | None,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> Derivatives:
        ctx.field = field
        ctx.save_for_backward(x, t, probe, context, *parameters)
        return field.value(x, t, probe, context)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Any, ...]:
        x, t, probe, context, *parameters = ctx.saved_tensors
        x = x.detach().requires_grad_()
        if context is not None:
            context = context.detach().requires_grad_(ctx.needs_input_grad[4])
        found = ctx.field.gradient((x, t.detach(), probe, context), weights)
        of_parameters = [found.get(id(p)) for p in parameters]
        return None, found.get(id(x)), None, None, found.get(id(context)), *of_parameters
