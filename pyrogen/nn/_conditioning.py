"""What networks of a state, a time and perhaps a context have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyrogen.nn.embedding import SinusoidalEmbedding

__all__ = ["Conditioning", "check_context", "linear"]


def check_context(context: Tensor | None, context_dim: int, network: str) -> None:
    """Checks that a context is there exactly if one is expected, and has its size.

    Raises:
        ValueError: otherwise.
    """
    got = 0 if context is None else context.shape[-1]
    if got != context_dim:
        raise ValueError(
            f"{network}: expected a context of size {context_dim}, got size {got}; "
            "context_dim is set at construction"
        )


class Conditioning(nn.Module):
    """Features of a time and a context, ``[*, width]``, from which layers take their modulation.

    A context of zeros adds nothing.

    Args:
        width: number of features.
        context_dim: size of the context, 0 for none.
        embedding: of time, ``[*] -> [*, n]`` with ``out_shape`` ``(n,)``.
        network: what to call the network in messages.
    """

    def __init__(
        self, width: int, context_dim: int, embedding: nn.Module | None, network: str
    ) -> None:
        super().__init__()
        if not isinstance(context_dim, int) or context_dim < 0:
            raise ValueError(f"context_dim: expected a non-negative integer, got {context_dim!r}")
        self.context_dim = context_dim
        self._network = network
        of_time: Any = SinusoidalEmbedding(width + width % 2) if embedding is None else embedding
        (features,) = of_time.out_shape
        self.embedding = of_time
        self.of_time = linear(features, width)
        self.of_context = linear(context_dim, width, bias=False) if context_dim else None
        self.last = linear(width, width)

    def forward(self, t: Tensor, context: Tensor | None, batch: torch.Size) -> Tensor:
        """The features for times and contexts that broadcast against ``batch``."""
        check_context(context, self.context_dim, self._network)
        h: Tensor = self.of_time(self.embedding(t))
        if self.of_context is not None:
            h = h + self.of_context(context)
        h = nn.functional.silu(self.last(nn.functional.silu(h)))
        return h.expand((*batch, h.shape[-1]))


def linear(fan_in: int, fan_out: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """An affine map with weights from ``N(0, gain^2 / fan_in)``, and biases zero."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
