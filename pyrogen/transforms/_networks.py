"""Networks of layers that start near zero, so that a flow starts near the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyrogen.transforms.autoregressive import MaskedAutoregressive

__all__ = ["coupling_conv", "masked"]


def masked(
    dim: int, hidden: Sequence[int], context_dim: int = 0, reverse: bool = False
) -> MaskedAutoregressive:
    """Returns a masked autoregressive layer that is nearly the identity at first.

    Each element depends on those before it or, with ``reverse``, on those after it.
    """
    order: Any = torch.arange(dim).flip(0) if reverse else torch.arange(dim)
    widths = list(hidden)
    network: ConditionalAutoRegressiveNN
    if context_dim:
        network = ConditionalAutoRegressiveNN(dim, context_dim, widths, permutation=order)
    else:
        network = AutoRegressiveNN(dim, widths, permutation=order)
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.mul_(0.01)
    return MaskedAutoregressive(network)


def coupling_conv(
    in_channels: int, out_channels: int, num_parameters: int | None, hidden: int
) -> nn.Module:
    """Returns convolutions 3×3, 1×1, 3×3 that keep height and width, and start near zero."""
    return _CouplingConv(in_channels, out_channels, num_parameters, hidden)


class _CouplingConv(nn.Module):
    """Maps ``[*, in_channels, H, W]`` to ``[*, out_channels, H, W]``, with ``num_parameters`` for
    each in a last dimension, if given."""

    def __init__(
        self, in_channels: int, out_channels: int, num_parameters: int | None, hidden: int
    ) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        last = nn.Conv2d(hidden, out_channels * (num_parameters or 1), 3, padding=1)
        nn.init.normal_(last.weight, std=0.01 / math.sqrt(9 * hidden))
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[:-3]
        out: Tensor = self.layers(x.reshape(batch.numel(), *x.shape[-3:]))
        if self.num_parameters is not None:
            out = out.unflatten(1, (-1, self.num_parameters)).movedim(2, -1)
        return out.reshape(*batch, *out.shape[1:])
