r"""Monotone rational-quadratic splines: value, inverse and derivative in closed form.

Through knots :math:`(x_k, y_k)` with slopes :math:`\delta_k > 0` runs, in the bin with
:math:`\xi = (x - x_k) / w_k`, width :math:`w_k`, height :math:`h_k` and :math:`s_k = h_k / w_k`,

.. math:: y = y_k + h_k \frac{s_k \xi^2 + \delta_k \xi (1 - \xi)}
   {s_k + (\delta_{k+1} + \delta_k - 2 s_k) \xi (1 - \xi)} ,

which is increasing, and continuous with its derivative. Outside of the knots the spline goes on as
a straight line with the slope of the outermost knot. Its inverse is the root of a quadratic.

Bins are looked up by comparison and picked by ``gather``; no mask changes a shape, so that a spline
can be captured as a graph.

References:
    J. A. Gregory, R. Delbourgo, *Piecewise rational quadratic interpolation to monotonic data*,
    IMA Journal of Numerical Analysis 2, 1982.
    C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, *Neural spline flows*, 2019,
    arXiv:1906.04032.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Knots", "bounded_knots", "spline", "spline_inverse"]

_SMALLEST = 1e-3  # bin size relative to an equal one, and slope


class Knots(NamedTuple):
    """Where a spline passes, and how steeply.

    Attributes:
        x: increasing, ``[*, K + 1]``.
        y: increasing, ``[*, K + 1]``.
        slope: positive, ``[*, K + 1]``.
    """

    x: Tensor
    y: Tensor
    slope: Tensor


def bounded_knots(raw: Tensor, bound: float, periodic: bool = False) -> Knots:
    """Knots from unconstrained parameters, from corner to corner of ``[-bound, bound]²``.

    All zeros make the identity.

    Args:
        raw: ``[*, 3 K - 1]``: widths, heights and inner slopes of ``K`` bins, where the outermost
            slopes are 1; with ``periodic``, ``[*, 3 K]``, where they are equal and learned.
        bound: half of the width.
        periodic: whether the spline closes into one of the circle.
    """
    num_bins = (raw.shape[-1] + (0 if periodic else 1)) // 3
    widths, heights, slopes = raw.split([num_bins, num_bins, raw.shape[-1] - 2 * num_bins], dim=-1)
    # Shifted so that zero means slope 1.
    slopes = _SMALLEST + torch.nn.functional.softplus(slopes + _inverse_softplus(1 - _SMALLEST))
    ends = slopes[..., :1] if periodic else torch.ones_like(slopes[..., :1])
    inner = slopes[..., 1:] if periodic else slopes
    return Knots(
        _corners(widths, bound), _corners(heights, bound), torch.cat([ends, inner, ends], dim=-1)
    )


def spline(x: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Value and logarithm of the derivative.

    Args:
        x: ``[*]``.
        knots: tensors of shape ``[*, K + 1]``.
    """
    left, right, tail = _bin(x, knots.x, knots)
    width, height = right.x - left.x, right.y - left.y
    secant = height / width
    xi = ((x - left.x) / width).clamp(0, 1)
    product = xi * (1 - xi)
    denominator = secant + (left.slope + right.slope - 2 * secant) * product
    inside = left.y + height * (secant * xi.square() + left.slope * product) / denominator
    beyond = torch.where(tail < 0, left.y + (x - left.x) * left.slope, right.y)
    beyond = torch.where(tail > 0, right.y + (x - right.x) * right.slope, beyond)
    y = torch.where(tail == 0, inside, beyond)
    return y, _log_derivative(xi, secant, denominator, left, right, tail)


def spline_inverse(y: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """The ``x`` that :func:`spline` maps to ``y``, and the logarithm of its derivative there.

    Args:
        y: ``[*]``.
        knots: tensors of shape ``[*, K + 1]``.
    """
    left, right, tail = _bin(y, knots.y, knots)
    width, height = right.x - left.x, right.y - left.y
    secant = height / width
    # Heights relative to the bin keep the quadratic well scaled, however small the bin is.
    eta = ((y - left.y) / height).clamp(0, 1)
    bend = (left.slope + right.slope - 2 * secant) * eta
    a = secant - left.slope + bend
    b = left.slope - bend
    c = -secant * eta
    root = (b.square() - 4 * a * c).clamp_min(torch.finfo(y.dtype).tiny).sqrt()
    # Of the two forms of the root, the one that does not cancel; the other divides by 1, so that
    # no gradient of it becomes NaN.
    rising = -2 * c / torch.where(b >= 0, b + root, 1.0)
    falling = (root - b) / (2 * torch.where(b >= 0, 1.0, a))
    xi = torch.where(b >= 0, rising, falling).clamp(0, 1)
    product = xi * (1 - xi)
    denominator = secant + (left.slope + right.slope - 2 * secant) * product
    inside = left.x + width * xi
    beyond = torch.where(tail < 0, left.x + (y - left.y) / left.slope, right.x)
    beyond = torch.where(tail > 0, right.x + (y - right.y) / right.slope, beyond)
    x = torch.where(tail == 0, inside, beyond)
    return x, _log_derivative(xi, secant, denominator, left, right, tail)


def _log_derivative(
    xi: Tensor, secant: Tensor, denominator: Tensor, left: Knots, right: Knots, tail: Tensor
) -> Tensor:
    numerator = (
        right.slope * xi.square() + 2 * secant * xi * (1 - xi) + left.slope * (1 - xi).square()
    )
    inside = 2 * secant.log() + numerator.log() - 2 * denominator.log()
    outermost = torch.where(tail < 0, left.slope, right.slope).log()
    return torch.where(tail == 0, inside, outermost)


def _bin(value: Tensor, edges: Tensor, knots: Knots) -> tuple[Knots, Knots, Tensor]:
    """The knots on both sides of each value, and -1, 0 or 1: before, between or past them all."""
    last = edges.shape[-1] - 2
    index = (value.unsqueeze(-1) >= edges).sum(-1, keepdim=True) - 1
    tail = (index > last).to(value.dtype) - (index < 0).to(value.dtype)
    index = index.clamp(0, last)
    shape = (*value.shape, edges.shape[-1])
    left = Knots(*(_pick(tensor.expand(shape), index) for tensor in knots))
    right = Knots(*(_pick(tensor.expand(shape), index + 1) for tensor in knots))
    return left, right, tail.squeeze(-1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index).squeeze(-1)


def _corners(raw: Tensor, bound: float) -> Tensor:
    """Bin edges of ``[-bound, bound]`` from unconstrained sizes, both ends exact."""
    num_bins = raw.shape[-1]
    sizes = (1 - _SMALLEST) * raw.softmax(-1) + _SMALLEST / num_bins
    inner = 2 * bound * sizes[..., :-1].cumsum(-1) - bound
    end = torch.full_like(raw[..., :1], bound)
    return torch.cat([-end, inner, end], dim=-1)


def _inverse_softplus(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).expm1().log())
