"""What networks of points in space have in common: nodes, pairs and their features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrogen.nn._conditioning import Conditioning, linear
from pyrogen.nn.shapes import as_shape, batch_shape

__all__ = ["PointNetwork", "perceptron"]


class PointNetwork(nn.Module):
    """A network of ``n`` points in ``d`` dimensions, whose nodes and pairs may have features.

    Args:
        in_shape: ``(points, dimensions)``.
        nodes: ``[points, features]``, what tells points apart.
        pairs: ``[points, points, features]``, what tells pairs apart, such as their bonds.
        width: number of hidden units.
        context_dim: size of the context, 0 for none.
        embedding: of time.
    """

    nodes: Tensor
    pairs: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        nodes: Tensor | None,
        pairs: Tensor | None,
        width: int,
        context_dim: int,
        embedding: nn.Module | None,
    ) -> None:
        super().__init__()
        self.in_shape = self.out_shape = as_shape(in_shape, "in_shape")
        if len(self.in_shape) != 2:
            raise ValueError(f"in_shape: expected (points, dimensions), got {self.in_shape}")
        count = self.in_shape[0]
        nodes = torch.zeros(count, 0) if nodes is None else nodes
        pairs = torch.zeros(count, count, 0) if pairs is None else pairs
        if nodes.dim() != 2 or len(nodes) != count:
            raise ValueError(f"nodes: expected shape [{count}, features], got {list(nodes.shape)}")
        if pairs.dim() != 3 or pairs.shape[:2] != (count, count):
            raise ValueError(
                f"pairs: expected shape [{count}, {count}, features], got {list(pairs.shape)}"
            )
        self.register_buffer("nodes", nodes.to(torch.get_default_dtype()))
        self.register_buffer("pairs", pairs.to(torch.get_default_dtype()))
        self.conditioning = Conditioning(width, context_dim, embedding, type(self).__name__)
        self.of_nodes = linear(nodes.shape[1], width) if nodes.shape[1] else None

    def features(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """What points are told of themselves and the time, ``[*, points, width]``."""
        batch = batch_shape(x, self.in_shape, type(self).__name__)
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        h: Tensor = self.conditioning(t, context, batch).unsqueeze(-2)
        h = h.expand((*batch, self.in_shape[0], h.shape[-1]))
        return h if self.of_nodes is None else h + self.of_nodes(self.nodes)

    def pairs_of(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The features of both points of each pair, ``[*, points, points, width]`` twice."""
        shape = (*h.shape[:-1], self.in_shape[0], h.shape[-1])
        return h.unsqueeze(-2).expand(shape), h.unsqueeze(-3).expand(shape)

    def differences(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x_i - x_j`` and its square, ``[*, points, points, dimensions]`` and ``[..., 1]``."""
        apart = x.unsqueeze(-2) - x.unsqueeze(-3)
        return apart, apart.square().sum(-1, keepdim=True)


def perceptron(*widths: int, gain: float = 1.0) -> nn.Sequential:
    """Affine maps with smooth activations between; weights of the last of size ``gain``."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers += [linear(fan_in, fan_out, gain if last else 1.0)] + ([] if last else [nn.SiLU()])
    return nn.Sequential(*layers)
