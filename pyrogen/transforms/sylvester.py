r"""Sylvester flows: planar flows of many units.

.. math:: y = x + Q R_1 \tanh(R_2 Q^\top x + b),

with :math:`Q \in \mathbb{R}^{D \times M}` of orthonormal columns, made of Householder reflections,
and :math:`R_1, R_2` upper triangular. By Sylvester's identity the determinant is that of an
:math:`M \times M` triangular matrix,

.. math:: \log \left| \det \frac{\partial y}{\partial x} \right|
   = \sum_{i=1}^M \log\left(1 + \tanh'(a_i)\, (R_1)_{ii} (R_2)_{ii}\right), \qquad
   a = R_2 Q^\top x + b ,

and with diagonals in (-1, 1) the map is a bijection. In the basis :math:`Q` it is triangular, so
that it is inverted one unit after the other, each a monotone equation in one unknown.

Pyro's ``Sylvester`` multiplies its matrices in another order, in which the Jacobian is not
triangular: its log-determinant is not that of its map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrogen.transforms._amortized import Amortized
from pyrogen.transforms._bijection import Bijection

__all__ = ["Sylvester"]

# A bracket of width 2 shrinks below single precision; Newton steps on the whole system follow.
_BISECTIONS = 30
_NEWTON_STEPS = 3


class Sylvester(Bijection):
    r"""Sylvester flow of the Householder kind, its parameters learned or read off a context.

    Args:
        input_dim: D, the size of an event.
        num_units: M, from 1 to D; ``None`` means D.
        num_reflections: number of Householder reflections that make :math:`Q`; ``None`` means M.
        context_dim: size of the context that all parameters depend on, 0 for none.

    Raises:
        ValueError: if a size is out of range.

    References:
        R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling, *Sylvester normalizing flows for
        variational inference*, 2018, arXiv:1803.05649.

    Example:
        >>> transform = Sylvester(3)
        >>> x = torch.randn(5, 3)
        >>> y, log_det = transform.forward_and_log_det(x)
        >>> torch.allclose(transform.inv(y), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        input_dim: int,
        num_units: int | None = None,
        num_reflections: int | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_dim=1, context_dim=context_dim)
        if input_dim < 1:
            raise ValueError(f"input_dim: expected a positive integer, got {input_dim}")
        units = input_dim if num_units is None else num_units
        reflections = units if num_reflections is None else num_reflections
        if not 1 <= units <= input_dim:
            raise ValueError(f"num_units: expected 1 to {input_dim} (input_dim), got {units}")
        if reflections < 1:
            raise ValueError(f"num_reflections: expected a positive integer, got {reflections}")
        self.input_dim, self.num_units, self.num_reflections = input_dim, units, reflections
        small = [0.1 * torch.randn(n) for n in (units**2, units**2, units)]
        axes = torch.randn(reflections * input_dim)
        self.parameters_of = Amortized([*small, axes], context_dim)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps ``[*batch, D]`` forward."""
        first, second, bias, axes = self._matrices(context)
        step, log_det = _step(first, second, bias, self._project(axes, x))
        return x + self._lift(axes, step), log_det

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps ``[*batch, D]`` back: unit by unit, then by Newton's method on all of them."""
        first, second, bias, axes = self._matrices(context)
        target = self._project(axes, y)
        w = _solve(first, second, bias, target)
        step, log_det = _step(first, second, bias, w)
        return y - self._lift(axes, step), log_det

    def _matrices(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, bias, axes = self.parameters_of(context)
        axes = axes.unflatten(-1, (self.num_reflections, self.input_dim))
        axes = axes / axes.norm(dim=-1, keepdim=True)
        return self._triangular(first), self._triangular(second), bias, axes

    def _triangular(self, raw: Tensor) -> Tensor:
        matrix = raw.unflatten(-1, (self.num_units, self.num_units))
        return matrix.triu(1) + matrix.diagonal(dim1=-2, dim2=-1).tanh().diag_embed()

    def _project(self, axes: Tensor, x: Tensor) -> Tensor:
        """Returns Qᵀ x, ``[*, M]``."""
        for axis in axes.unbind(-2):
            x = x - 2 * axis * (axis * x).sum(-1, keepdim=True)
        return x[..., : self.num_units]

    def _lift(self, axes: Tensor, w: Tensor) -> Tensor:
        """Returns Q w, ``[*, D]``."""
        x = torch.nn.functional.pad(w, (0, self.input_dim - self.num_units))
        for axis in reversed(axes.unbind(-2)):
            x = x - 2 * axis * (axis * x).sum(-1, keepdim=True)
        return x


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _step(first: Tensor, second: Tensor, bias: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns R₁ tanh(R₂ w + b) and the log-determinant of the map w + that."""
    h = torch.tanh(_times(second, w) + bias)
    diagonals = first.diagonal(dim1=-2, dim2=-1) * second.diagonal(dim1=-2, dim2=-1)
    return _times(first, h), torch.log1p((1 - h.square()) * diagonals).sum(-1)


def _solve(first: Tensor, second: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Returns w with w + R₁ tanh(R₂ w + b) = target, ``[*, M]``, differentiable in all of them."""
    with torch.no_grad():
        w = _substitute(first, second, bias, target)
        for _ in range(_NEWTON_STEPS - 1):
            w = _newton(first, second, bias, target, w)
    # At the solution the derivative of a Newton step is that of the solution.
    return _newton(first, second, bias, target, w)


def _newton(first: Tensor, second: Tensor, bias: Tensor, target: Tensor, w: Tensor) -> Tensor:
    h = torch.tanh(_times(second, w) + bias)
    with torch.no_grad():
        slope = (1 - h.square()).unsqueeze(-1)
        eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
        jacobian = eye + first @ (slope * second)
    residual = w + _times(first, h) - target
    shape = torch.broadcast_shapes(jacobian.shape[:-2], residual.shape[:-1])
    residual = residual.expand(*shape, -1).unsqueeze(-1)
    jacobian = jacobian.expand(*shape, -1, -1)
    return w - torch.linalg.solve_triangular(jacobian, residual, upper=True).squeeze(-1)


def _substitute(first: Tensor, second: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Solves from the last unit to the first by bisection; each equation is increasing."""
    shape = torch.broadcast_shapes(target.shape, bias.shape)
    target, bias = target.expand(shape), bias.expand(shape)
    w, h = torch.zeros_like(target), torch.zeros_like(target)
    for i in reversed(range(shape[-1])):
        a, b = first[..., i, i], second[..., i, i]
        offset = bias[..., i] + (second[..., i, :] * w).sum(-1)
        goal = target[..., i] - (first[..., i, :] * h).sum(-1)
        low, high = goal - a.abs(), goal + a.abs()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = middle + a * torch.tanh(b * middle + offset) > goal
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        w[..., i] = (low + high) / 2
        h[..., i] = torch.tanh(b * w[..., i] + offset)
    return w
