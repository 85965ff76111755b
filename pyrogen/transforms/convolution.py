r"""A linear map of the channels, the same at every position: the 1×1 convolution of Glow.

.. math:: y_{\cdot p} = W x_{\cdot p}, \qquad W = P L\, (U + \operatorname{diag}(\sigma e^{s})),
   \qquad \log \left|\det \frac{\partial y}{\partial x}\right| = n \sum_c s_c

for :math:`n` positions, where :math:`P` is a fixed permutation, :math:`L` lower triangular with
unit diagonal, :math:`U` strictly upper triangular and :math:`\sigma` fixed signs. The determinant
costs nothing, the inverse two triangular solves, and :math:`W` can never become singular.

Pyro's ``GeneralizedChannelPermute`` learns the diagonal itself, which may pass through zero, and
inverts the full matrix; it takes images only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import positive_ints
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet

__all__ = ["InvertibleConvolution"]


class InvertibleConvolution(Bijection):
    r"""Mixes channels by a learned invertible matrix :math:`W`, a random rotation at first.

    Args:
        num_channels: number of channels :math:`C`.
        event_dim: 1 for vectors ``[C]``, 3 for images ``[C, H, W]``: the channels come first.

    Attributes:
        lower: entries below the diagonal of :math:`L`, ``[C, C]`` (the rest is ignored).
        upper: entries above the diagonal of :math:`U`, ``[C, C]`` (the rest is ignored).
        log_scale: :math:`s`, ``[C]``.

    Raises:
        ValueError: if ``num_channels`` or ``event_dim`` is not positive; on call, if the channels
            are not ``num_channels``.

    References:
        D. P. Kingma, P. Dhariwal, *Glow: generative flow with invertible 1×1 convolutions*, 2018,
        arXiv:1807.03039.

    Example:
        >>> layer = InvertibleConvolution(3, event_dim=3)
        >>> y, log_det = layer.forward_and_log_det(torch.randn(5, 3, 4, 4))
        >>> y.shape, bool(log_det.abs().max() < 1e-5)  # a rotation keeps the volume
        (torch.Size([5, 3, 4, 4]), True)
    """

    permutation: Tensor
    signs: Tensor

    def __init__(self, num_channels: int, event_dim: int = 1) -> None:
        positive_ints((num_channels, event_dim), "num_channels, event_dim")
        super().__init__(event_dim=event_dim)
        rotation = torch.linalg.qr(torch.randn(num_channels, num_channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        dtype = torch.get_default_dtype()
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(diagonal.abs().log().to(dtype))
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("signs", diagonal.sign().to(dtype))

    def matrix(self) -> Tensor:
        """The matrix :math:`W`, ``[C, C]``."""
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Multiplies the channels by the matrix."""
        return self._multiply(self.matrix(), x), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Multiplies the channels by the inverse, from two triangular solves."""
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(
            lower, self.permutation.T, upper=False, unitriangular=True
        )
        inverse = torch.linalg.solve_triangular(upper, half, upper=True)
        return self._multiply(inverse, y), self._log_det(y)

    def _factors(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(
            len(self.log_scale), dtype=self.log_scale.dtype, device=self.log_scale.device
        )
        diagonal = torch.diag(self.signs * self.log_scale.exp())
        return self.lower.tril(-1) + identity, self.upper.triu(1) + diagonal

    def _multiply(self, matrix: Tensor, x: Tensor) -> Tensor:
        event_dim = self.domain.event_dim
        if x.dim() < event_dim or x.shape[-event_dim] != len(matrix):
            raise ValueError(
                f"InvertibleConvolution: expected {len(matrix)} channels in dimension "
                f"{-event_dim}, got shape {list(x.shape)}"
            )
        flat = x.flatten(1 - event_dim) if event_dim > 1 else x.unsqueeze(-1)
        return (matrix @ flat).reshape(x.shape)

    def _log_det(self, x: Tensor) -> Tensor:
        event_dim = self.domain.event_dim
        positions = x.shape[x.dim() - event_dim + 1 :].numel()
        return (positions * self.log_scale.sum()).expand(x.shape[: x.dim() - event_dim])
