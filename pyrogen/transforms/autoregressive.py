r"""The masked autoregressive flow, sampled in parallel.

Each element is shifted and scaled by a function of those before it, in some order:

.. math:: y_i = \mu_i(y_{<i}) + e^{s_i(y_{<i})}\, x_i, \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right| = \sum_i s_i .

The density of data takes one pass of the network, since all :math:`y_{<i}` are known. A draw is the
fixed point of :math:`y \mapsto g(y) = \mu(y) + e^{s(y)} x`. Iterated from anywhere, the first
element is right after one round, the second after two, and all :math:`D` after :math:`D` rounds,
exactly; mostly nothing changes any more long before that, and the iteration stops.

The gradient of a draw follows from the implicit function theorem. With :math:`J = \partial g /
\partial y`, which is strictly triangular, a gradient :math:`u` with respect to the draw becomes
:math:`v = u + J^\top v`, found by the same kind of iteration, and :math:`v` is passed on to one
evaluation of :math:`g` at the fixed point. No round of the iteration is kept for it. (Under
``torch.func`` all :math:`D` rounds are done and differentiated, which is exact too.)

``Inverse(MaskedAutoregressive(...))`` is the inverse autoregressive flow: draws by one pass, the
density of its own draws too (:class:`~pyrogen.distributions.FlowDistribution`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrogen.nn.shapes import batch_shape
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet, broadcast_context

__all__ = ["MaskedAutoregressive"]

_LOG_SCALE_BOUND = 7.0


class MaskedAutoregressive(Bijection):
    r"""Shifts and scales each element by a masked network of those before it (MAF).

    Log scales are bounded smoothly, :math:`s = r / (1 + |r| / 7)`, so that no round of the
    iteration overflows.

    Args:
        network: Pyro's ``AutoRegressiveNN``, or ``ConditionalAutoRegressiveNN`` for a conditional
            flow, with ``param_dims=[1, 1]``: shift and unbounded log scale.

    Attributes:
        input_dim: number of elements :math:`D`.

    Raises:
        TypeError: if ``network`` is of another kind.
        ValueError: if its ``param_dims`` are others.

    References:
        G. Papamakarios, T. Pavlakou, I. Murray, *Masked autoregressive flow for density
        estimation*, 2017, arXiv:1705.07057.
        Y. Song, C. Meng, R. Liao, S. Ermon, *Accelerating feedforward computation via parallel
        nonlinear equation solving*, 2021, arXiv:2002.03629.

    Example:
        >>> from pyro.nn import AutoRegressiveNN
        >>> flow = MaskedAutoregressive(AutoRegressiveNN(5, [32]))
        >>> x = torch.randn(3, 5)
        >>> bool((flow.inv(flow(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(self, network: ConditionalAutoRegressiveNN) -> None:
        if not isinstance(network, ConditionalAutoRegressiveNN):
            raise TypeError(
                "network: expected pyro.nn.AutoRegressiveNN or ConditionalAutoRegressiveNN, got "
                f"{type(network).__name__}"
            )
        if list(network.param_dims) != [1, 1]:
            raise ValueError(
                f"network: expected param_dims=[1, 1] (shift and log scale), got "
                f"{list(network.param_dims)}"
            )
        conditional = not isinstance(network, AutoRegressiveNN)
        super().__init__(context_dim=network.context_dim if conditional else 0)
        self.network = network
        self.input_dim: int = network.input_dim

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """From data to base, by one pass of the network."""
        y, context = self._check(y, context)
        loc, log_scale = self._predict(y, context)
        return (y - loc) * (-log_scale).exp(), log_scale.sum(-1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """From base to data, by iteration; gradients by the implicit function theorem."""
        y = self.forward_value(x, context)
        y, context = self._check(y, context)
        return y, self._predict(y, context)[1].sum(-1)

    def forward_value(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """From base to data, by iteration; gradients by the implicit function theorem."""
        x, context = self._check(x, context)
        if _transformed():
            return _iterate(lambda y: self._step(y, x, context), torch.zeros_like(x))
        with torch.no_grad():
            fixed = _iterate(lambda y: self._step(y, x, context), torch.zeros_like(x))
        if not torch.is_grad_enabled():
            return fixed
        step = self._step(fixed, x, context)
        y: Tensor = _ImplicitGradient.apply(step, fixed, x.detach(), context, self._step)
        return y

    def _step(self, y: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        loc, log_scale = self._predict(y, context)
        return loc + log_scale.exp() * x

    def _predict(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, raw = self.network(y) if context is None else self.network(y, context)
        return loc, raw / (1 + raw.abs() / _LOG_SCALE_BOUND)

    def _check(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        batch_shape(value, (self.input_dim,), "MaskedAutoregressive")
        return broadcast_context(value, context, 1)


class _ImplicitGradient(torch.autograd.Function):
    """The fixed point of a step, with the gradient that the implicit function theorem gives it."""

    @staticmethod
    def forward(
        ctx: Any,
        step: Tensor,
        fixed: Tensor,
        x: Tensor,
        context: Tensor | None,
        function: Callable[..., Tensor],
    ) -> Tensor:
        """Returns the fixed point; ``step`` is ``function`` evaluated there once, with gradient."""
        ctx.save_for_backward(fixed, x, context)
        ctx.function = function
        return fixed.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Solves ``v = u + J^T v``, where ``J`` is strictly triangular."""
        fixed, x, context = ctx.saved_tensors
        with torch.enable_grad():
            y = fixed.detach().requires_grad_()
            step = ctx.function(y, x, None if context is None else context.detach())

        def add(v: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(step, y, v, retain_graph=True)[0]
            return gradients[0] + product

        return _iterate(add, gradients[0]), None, None, None, None


def _iterate(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Applies a strictly triangular map until nothing changes, or once for each element.

    While a graph is captured or ``torch.func`` transforms, no value can be looked at, and all
    rounds are done.
    """
    value = start
    for _ in range(start.shape[-1]):
        previous, value = value, function(value)
        if not _capturing() and torch.equal(previous, value):
            break
    return value


def _capturing() -> bool:
    return torch.compiler.is_compiling() or get_proxy_mode() is not None or _transformed()


def _transformed() -> bool:
    """Whether a transform of ``torch.func`` is under way: vmap, grad, ..."""
    return peek_interpreter_stack() is not None
