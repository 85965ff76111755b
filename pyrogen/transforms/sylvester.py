r"""The Sylvester flow: a residual layer of one hidden layer with a determinant in closed form.

.. math:: y = x + Q R \tanh(\tilde R Q^\top x + b), \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right|
   = \sum_i \log\left(1 + \tanh'(a_i)\, \tilde R_{ii} R_{ii}\right), \quad
   a = \tilde R Q^\top x + b,

with :math:`Q` of :math:`M` orthonormal columns (a product of Householder reflections) and
:math:`R, \tilde R` upper triangular, :math:`|R_{ii}|, |\tilde R_{ii}| < 1`, so that the map is
invertible. In the coordinates :math:`u = Q^\top x` it is triangular: its inverse is found element
by element, from the last to the first, each the root of an increasing function.

Pyro's ``Sylvester`` multiplies the triangular matrices in the other order, :math:`Q R \tilde R
Q^\top`, for which this determinant does not hold.

References:
    R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling, *Sylvester normalizing flows for
    variational inference*, 2018, arXiv:1803.05649.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import batch_shape, positive_ints
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet, broadcast_context

__all__ = ["Sylvester"]

_BISECTIONS = 26  # leave an error of 3e-8, whose square is what Newton's step leaves
_BOUND = 0.999


class Sylvester(Bijection):
    r"""A residual layer :math:`y = x + Q R \tanh(\tilde R Q^\top x + b)`.

    Args:
        dim: number of elements :math:`D`.
        rank: number of hidden units :math:`M \le D`; ``None`` means ``dim``.
        num_reflections: Householder reflections that make up :math:`Q`; ``None`` means ``rank``.
        context_dim: size of the context that an affine map turns into all parameters, 0 for none.

    Raises:
        ValueError: if a size is not positive or ``rank`` is above ``dim``; on call, if the event is
            of another size.

    References:
        R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling, *Sylvester normalizing flows for
        variational inference*, 2018, arXiv:1803.05649.

    Example:
        >>> layer = Sylvester(4, rank=2)
        >>> x = torch.randn(3, 4)
        >>> bool((layer.inv(layer(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        rank: int | None = None,
        num_reflections: int | None = None,
        context_dim: int = 0,
    ) -> None:
        rank = dim if rank is None else rank
        num_reflections = rank if num_reflections is None else num_reflections
        positive_ints((dim, rank, num_reflections), "dim, rank, num_reflections")
        if rank > dim:
            raise ValueError(f"rank: expected at most dim = {dim}, got {rank}")
        super().__init__(context_dim=context_dim)
        self.dim, self.rank = dim, rank
        self._sizes = [num_reflections * dim, rank * rank, rank * rank, rank]
        # A reflection needs a direction, also where the context is zero.
        initial = 0.1 * torch.randn(sum(self._sizes))
        self.bias = nn.Parameter(initial)
        self.hypernet = (
            nn.Linear(context_dim, sum(self._sizes), bias=False) if context_dim else None
        )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Adds the residual."""
        x, context = self._check(x, context)
        return _forward(x, self._matrices(context))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Solves for one element after the other, then polishes by a step of Newton's method.

        That step also carries the gradient: at the root, Newton's step is the implicit function
        theorem.
        """
        y, context = self._check(y, context)
        matrices = self._matrices(context)
        with torch.no_grad():
            x = _solve(y, matrices)
        image, _ = _forward(x, matrices)
        jacobian = _jacobian(x, matrices).detach()
        x = x - torch.linalg.solve(jacobian, (image - y).unsqueeze(-1)).squeeze(-1)
        return x, _forward(x, matrices)[1]

    def _matrices(self, context: Tensor | None) -> _Matrices:
        raw = self.bias
        if self.hypernet is not None and context is not None:
            raw = raw + self.hypernet(context)
        directions, outer, inner, shift = raw.split(self._sizes, dim=-1)
        batch, rank = raw.shape[:-1], self.rank
        return _Matrices(
            basis=_orthonormal(directions.unflatten(-1, (-1, self.dim)))[..., :rank],
            outer=_triangular(outer.reshape(*batch, rank, rank)),
            inner=_triangular(inner.reshape(*batch, rank, rank)),
            shift=shift,
        )

    def _check(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        batch_shape(value, (self.dim,), "Sylvester")
        return broadcast_context(value, context, 1)


class _Matrices(NamedTuple):
    """Q ``[*, D, M]``, R and R̃ ``[*, M, M]``, b ``[*, M]``."""

    basis: Tensor
    outer: Tensor
    inner: Tensor
    shift: Tensor


def _forward(x: Tensor, m: _Matrices) -> ValueAndLogDet:
    hidden = torch.tanh(_times(m.inner, _times(m.basis.mT, x)) + m.shift)
    diagonal = m.inner.diagonal(dim1=-2, dim2=-1) * m.outer.diagonal(dim1=-2, dim2=-1)
    log_det = torch.log1p((1 - hidden.square()) * diagonal).sum(-1)
    return x + _times(m.basis, _times(m.outer, hidden)), log_det


def _jacobian(x: Tensor, m: _Matrices) -> Tensor:
    hidden = torch.tanh(_times(m.inner, _times(m.basis.mT, x)) + m.shift)
    derivative = (1 - hidden.square()).unsqueeze(-1)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return identity + m.basis @ (m.outer @ (derivative * (m.inner @ m.basis.mT)))


def _solve(y: Tensor, m: _Matrices) -> Tensor:
    """Finds ``u = Q^T x`` with ``u + R tanh(R̃ u + b) = Q^T y``, then ``x``."""
    target = _times(m.basis.mT, y)
    u = torch.zeros_like(target)
    hidden = torch.zeros_like(target)
    for i in reversed(range(target.shape[-1])):
        known = (m.inner[..., i, :] * u).sum(-1) + m.shift[..., i]
        goal = target[..., i] - (m.outer[..., i, :] * hidden).sum(-1)
        root = _bisect(goal, m.outer[..., i, i], m.inner[..., i, i], known)
        u[..., i] = root
        hidden[..., i] = torch.tanh(known + m.inner[..., i, i] * root)
    return y - _times(m.basis, _times(m.outer, hidden))


def _bisect(goal: Tensor, outer: Tensor, inner: Tensor, known: Tensor) -> Tensor:
    """The root of the increasing ``u + outer tanh(inner u + known) - goal``, ``|outer| < 1``."""
    low, high = goal - 1, goal + 1
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = middle + outer * torch.tanh(inner * middle + known) > goal
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def _triangular(raw: Tensor) -> Tensor:
    """Upper triangular with a diagonal between -1 and 1, which rounding must not reach."""
    return raw.triu(1) + torch.diag_embed(_BOUND * raw.diagonal(dim1=-2, dim2=-1).tanh())


def _orthonormal(directions: Tensor) -> Tensor:
    """The product of the reflections along ``directions [*, K, D]``, ``[*, D, D]``."""
    units = directions / directions.norm(dim=-1, keepdim=True)
    dim = directions.shape[-1]
    product = torch.eye(dim, dtype=directions.dtype, device=directions.device)
    for k in range(directions.shape[-2]):
        unit = units[..., k, :]
        image = (product @ unit.unsqueeze(-1)) * unit.unsqueeze(-2)
        product = product - 2 * image
    return product


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
