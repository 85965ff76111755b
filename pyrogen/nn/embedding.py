r"""Embeddings of a number, such as a time: many features that tell near values apart.

.. math:: \phi(t) = \big(\cos \omega_1 t, \ldots, \cos \omega_m t,\;
   \sin \omega_1 t, \ldots, \sin \omega_m t\big)

with frequencies :math:`\omega` that are geometric or random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import as_shape, batch_shape

__all__ = ["FourierEmbedding", "SinusoidalEmbedding"]


class _Embedding(nn.Module):
    """Cosines and sines at the frequencies that a subclass gives."""

    frequencies: Tensor
    in_shape: tuple[int, ...] = ()

    def __init__(self, features: int) -> None:
        super().__init__()
        if isinstance(features, int) and features % 2:
            raise ValueError(f"features: expected an even number, got {features}")
        self.out_shape = as_shape(features, "features")

    def forward(self, t: Tensor) -> Tensor:
        """Maps ``[*]`` to ``[*, features]``."""
        batch_shape(t, self.in_shape, type(self).__name__)
        angles = self.frequencies.to(t.dtype) * t.unsqueeze(-1)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class SinusoidalEmbedding(_Embedding):
    r"""Cosines and sines of geometric frequencies, from ``max_frequency`` down to one 10,000th.

    With the default, times in [0, 1] are embedded as the steps 0 to 1000 of a denoising diffusion
    model are.

    Args:
        features: number of features, even.
        max_frequency: the highest frequency, in radians per unit of time.

    Attributes:
        in_shape: ``()``.
        out_shape: ``(features,)``.

    Raises:
        ValueError: if ``features`` is not positive and even, or ``max_frequency`` not positive.

    References:
        A. Vaswani et al., *Attention is all you need*, 2017, arXiv:1706.03762.

    Example:
        >>> import torch
        >>> SinusoidalEmbedding(4, max_frequency=2.0)(torch.tensor([0.0, 0.5]))
        tensor([[1.0000e+00, 1.0000e+00, 0.0000e+00, 0.0000e+00],
                [5.4030e-01, 1.0000e+00, 8.4147e-01, 1.0000e-04]])
    """

    def __init__(self, features: int, max_frequency: float = 1000.0) -> None:
        super().__init__(features)
        _positive("max_frequency", max_frequency)
        exponents = torch.linspace(0, 1, features // 2)
        self.register_buffer("frequencies", max_frequency * 10_000.0**-exponents, persistent=False)


class FourierEmbedding(_Embedding):
    r"""Cosines and sines of random frequencies :math:`\omega \sim N(0, (2 \pi b)^2)`.

    The frequencies are drawn once, and belong to the state.

    Args:
        features: number of features, even.
        bandwidth: :math:`b`, in periods per unit of time.

    Attributes:
        in_shape: ``()``.
        out_shape: ``(features,)``.

    Raises:
        ValueError: if ``features`` is not positive and even, or ``bandwidth`` not positive.

    References:
        M. Tancik et al., *Fourier features let networks learn high frequency functions in low
        dimensional domains*, 2020, arXiv:2006.10739.

    Example:
        >>> import torch
        >>> FourierEmbedding(8)(torch.rand(5, 3)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, features: int, bandwidth: float = 16.0) -> None:
        super().__init__(features)
        _positive("bandwidth", bandwidth)
        self.register_buffer("frequencies", 2 * math.pi * bandwidth * torch.randn(features // 2))


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive finite number, got {value!r}")
