r"""Iterative Gaussianisation: rotate, make every marginal normal, and again.

Read from the data to the base, each layer rotates and then maps each marginal to the standard
normal:

.. math:: z = \Psi^{-1}(R^\top y), \qquad \Psi_i^{-1} = \Phi^{-1} \circ F_i ,

with :math:`F_i` the distribution function of the :math:`i`-th rotated coordinate. The divergence
from the standard normal is the sum of that of the marginals and of the dependence between them; a
layer takes the first away, and the rotation turns some of the second into the first. So each layer
brings the data closer to normal, whatever the rotation, and layers are fitted one after the other,
without a gradient.

Here :math:`\Psi_i` is a monotone rational-quadratic spline through quantiles, with straight tails:
its inverse is known in closed form, and all of it may be trained further by gradients.

References:
    S. S. Chen, R. A. Gopinath, *Gaussianization*, 2000.
    V. Laparra, G. Camps-Valls, J. Malo, *Iterative Gaussianization: from ICA to random rotations*,
    2011, arXiv:1602.00229.
    C. Meng, Y. Song, J. Song, S. Ermon, *Gaussianization flows*, 2020, arXiv:2003.01941.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import batch_shape, positive_ints
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet
from pyrogen.transforms._splines import Knots, spline, spline_inverse

__all__ = ["Gaussianization"]

_SHRINKAGE = 0.01
_ROTATIONS = ("random", "pca")


class Gaussianization(Bijection):
    r"""Layers of a rotation and a monotone spline for each coordinate, fitted one by one.

    :meth:`initialize` fits all layers to data, from the one next to the data to the one next to
    the base. Before that, a layer is a rotation. The parameters can be trained further, and then
    the rotations are :math:`R = R_0\, e^{A - A^\top}` with :math:`A = 0` at first.

    Args:
        dim: number of elements :math:`D`.
        num_layers: how many times to rotate and map.
        num_bins: bins of each spline.
        bound: the splines run from ``-bound`` to ``bound`` standard deviations of the base; beyond
            they are straight. A fit wants some data there: about 1 in 80 at 2.5.
        rotation: ``"random"``, or ``"pca"`` to fit each to the principal axes of the data, which
            says something for the first layer only (after it they are uncorrelated).

    Attributes:
        first_knot: where each spline begins, ``[num_layers, D]``.
        log_height: logarithm of the heights of the bins, ``[num_layers, D, num_bins]``.
        log_slope: logarithm of the slopes at the knots, ``[num_layers, D, num_bins + 1]``.
        skew: :math:`A`, ``[num_layers, D, D]``.

    Raises:
        ValueError: if a size or ``bound`` is not positive or ``rotation`` is unknown; on call, if
            the event is of another size.

    References:
        V. Laparra, G. Camps-Valls, J. Malo, *Iterative Gaussianization: from ICA to random
        rotations*, 2011, arXiv:1602.00229.

    Example:
        >>> flow = Gaussianization(2, num_layers=8)
        >>> data = torch.randn(2000, 2).exp()
        >>> latent = flow.initialize(data)
        >>> bool((latent.mean(0).abs() < 0.1).all() and ((latent.std(0) - 1).abs() < 0.1).all())
        True
    """

    rotations: Tensor
    knots: Tensor

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_bins: int = 16,
        bound: float = 2.5,
        rotation: str = "random",
    ) -> None:
        positive_ints((dim, num_layers, num_bins), "dim, num_layers, num_bins")
        if not bound > 0:
            raise ValueError(f"bound: expected a positive number, got {bound}")
        if rotation not in _ROTATIONS:
            raise ValueError(f"rotation: expected one of {_ROTATIONS}, got {rotation!r}")
        super().__init__()
        self.dim, self.rotation = dim, rotation
        self.register_buffer("rotations", torch.linalg.qr(torch.randn(num_layers, dim, dim))[0])
        self.register_buffer("knots", torch.linspace(-bound, bound, num_bins + 1))
        self.skew = nn.Parameter(torch.zeros(num_layers, dim, dim))
        self.first_knot = nn.Parameter(torch.full((num_layers, dim), -bound))
        height = math.log(2 * bound / num_bins)
        self.log_height = nn.Parameter(torch.full((num_layers, dim, num_bins), height))
        self.log_slope = nn.Parameter(torch.zeros(num_layers, dim, num_bins + 1))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """From base to data: splines, then rotation, layer by layer."""
        total = x.new_zeros(batch_shape(x, (self.dim,), "Gaussianization"))
        for layer, matrix in enumerate(self._matrices()):
            x, log_det = spline(x, self._splines(layer))
            x, total = x @ matrix.T, total + log_det.sum(-1)
        return x, total

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """From data to base: rotation, then the inverse splines, from the last layer on."""
        total = y.new_zeros(batch_shape(y, (self.dim,), "Gaussianization"))
        for layer, matrix in reversed(list(enumerate(self._matrices()))):
            y, log_det = spline_inverse(y @ matrix, self._splines(layer))
            total = total + log_det.sum(-1)
        return y, total

    @torch.no_grad()
    def initialize(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Fits the layers one by one, each to the data as those fitted before it leave them.

        Args:
            y: ``[n, D]``.
            context: ignored.

        Returns:
            The data mapped to the base, ``[n, D]``.

        Raises:
            ValueError: if there are fewer data than bins, or a rotated coordinate is constant or
                not finite.
        """
        batch_shape(y, (self.dim,), "Gaussianization")
        y = y.reshape(-1, self.dim)
        if len(y) <= len(self.knots):
            raise ValueError(
                f"Gaussianization: expected more data than the {len(self.knots)} knots of a "
                f"spline, got {len(y)}; use fewer bins"
            )
        self.skew.zero_()
        for layer in reversed(range(len(self.rotations))):
            if self.rotation == "pca":
                self.rotations[layer] = torch.linalg.eigh(torch.cov(y.T).reshape(self.dim, -1))[1]
            rotated = y @ self.rotations[layer]
            self._fit(layer, rotated)
            y, _ = spline_inverse(rotated, self._splines(layer))
        return y

    def _fit(self, layer: int, values: Tensor) -> None:
        """Puts the knots of a layer's splines at the quantiles of ``values [n, D]``."""
        std = values.std(0)
        if not (std.isfinite() & (std > 0)).all():
            raise ValueError(
                f"Gaussianization: expected finite data that vary in every direction, got standard "
                f"deviations {std.tolist()}; add noise, or remove what is constant"
            )
        quantiles = _quantiles(values, torch.special.ndtr(self.knots))
        width = self.knots.diff()
        # Drawn a little towards a normal marginal, since equal values would make a bin flat.
        height = (1 - _SHRINKAGE) * quantiles.diff() + _SHRINKAGE * std.unsqueeze(-1) * width
        secant = height / width
        inner = 2 * secant[:, :-1] * secant[:, 1:] / (secant[:, :-1] + secant[:, 1:])
        low = _tail_slope(quantiles[:, 0] - values, -self.knots[0], secant[:, 0])
        high = _tail_slope(values - quantiles[:, -1], self.knots[-1], secant[:, -1])
        slope = torch.cat([low.unsqueeze(-1), inner, high.unsqueeze(-1)], dim=-1)
        # The shrunk heights keep the median in its place.
        middle = height.shape[-1] // 2
        first = quantiles[:, middle] - height[:, :middle].sum(-1)
        self.first_knot[layer] = first
        self.log_height[layer] = height.log()
        self.log_slope[layer] = slope.log()

    def _splines(self, layer: int) -> Knots:
        first = self.first_knot[layer].unsqueeze(-1)
        y = torch.cat([first, first + self.log_height[layer].exp().cumsum(-1)], dim=-1)
        return Knots(self.knots.expand_as(y), y, self.log_slope[layer].exp())

    def _matrices(self) -> Tensor:
        # One step towards the nearest rotation, for those converted from a lower precision.
        gram = self.rotations.mT @ self.rotations
        rotations = 1.5 * self.rotations - 0.5 * self.rotations @ gram
        learned: Tensor = torch.linalg.matrix_exp(self.skew - self.skew.mT)
        return rotations @ learned


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of each column of ``[n, D]``, as ``[D, levels]``, for any ``n``."""
    values = values.sort(0)[0]
    place = levels * (len(values) - 1)
    below = place.floor().long().clamp_max(len(values) - 2)
    return torch.lerp(values[below].T, values[below + 1].T, place - below)


def _tail_slope(excess: Tensor, knot: Tensor, otherwise: Tensor) -> Tensor:
    """The slope beyond a knot at which a normal tail has the mean excess of the data.

    Args:
        excess: by how much data lie beyond the knot, ``[n, D]``; negative on the other side.
        knot: distance of the knot from 0 in the base, ``[]``.
        otherwise: the slope where no data lie beyond, ``[D]``.
    """
    count = (excess > 0).sum(0)
    mean = excess.clamp_min(0).sum(0) / count.clamp_min(1)
    tail = torch.special.ndtr(-knot)
    normal = torch.exp(-knot.square() / 2) / math.sqrt(2 * math.pi) / tail - knot
    return torch.where(count > 0, mean / normal, otherwise)
