r"""A monotone spline for each element by itself.

.. math:: y_i = s_i(x_i; c), \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right| = \sum_i \log s_i'(x_i; c) .
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrogen.transforms._amortized import Amortized
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet
from pyrogen.transforms._splines import Knots, bounded_knots, spline, spline_inverse

__all__ = ["ElementwiseSpline"]


class ElementwiseSpline(Bijection):
    """Puts each element through a rational-quadratic spline, learned or read off a context.

    Args:
        dim: number of elements.
        num_bins: bins of each spline.
        bound: the splines bend between ``-bound`` and ``bound``.
        context_dim: size of the context, 0 for none.
    """

    def __init__(
        self, dim: int, num_bins: int = 8, bound: float = 5.0, context_dim: int = 0
    ) -> None:
        super().__init__(context_dim=context_dim)
        self.dim, self.bound = dim, bound
        self.parameters_of = Amortized([torch.zeros(dim * (3 * num_bins - 1))], context_dim)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Applies the splines to ``[*batch, dim]``."""
        y, log_det = spline(*self._broadcast(x, context))
        return y, log_det.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Applies their inverses."""
        x, log_det = spline_inverse(*self._broadcast(y, context))
        return x, log_det.sum(-1)

    def _broadcast(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Knots]:
        (raw,) = self.parameters_of(context)
        raw = raw.unflatten(-1, (self.dim, -1))
        return value.expand(torch.broadcast_shapes(value.shape, raw.shape[:-1])), bounded_knots(
            raw, self.bound
        )
