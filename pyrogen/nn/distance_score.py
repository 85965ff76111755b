r"""A score on distances, handed on to coordinates by the chain rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrogen.nn._points import PointNetwork, perceptron
from pyrogen.nn.shapes import positive_ints

__all__ = ["DistanceScore"]


class DistanceScore(PointNetwork):
    r"""A field of points that is the gradient of something known on their distances.

    A graph network sees only the distances :math:`d_{ij}` and says how the log-density changes with
    each, :math:`s_{ij} = s_{ji}`. The chain rule makes of that a field on coordinates,

    .. math:: f_i = \sum_j s_{ij}\, \frac{\partial d_{ij}}{\partial x_i}
       = \sum_j s_{ij}\, \frac{x_i - x_j}{d_{ij}} ,

    which turns with the points, does not see where they are, and does not move their mean.

    Args:
        in_shape: ``(points, dimensions)``.
        nodes: ``[points, features]``, what tells points apart, such as their kinds.
        pairs: ``[points, points, features]``, what tells pairs apart, such as bonds; made
            symmetric.
        width: number of hidden units.
        num_layers: how often messages are passed.
        context_dim: size of the context, 0 for none.
        embedding: of time, a module ``[*] -> [*, n]`` with ``out_shape`` ``(n,)``; by default
            :class:`~pyrogen.nn.SinusoidalEmbedding` for times in [0, 1].

    Attributes:
        in_shape: ``(points, dimensions)``.
        out_shape: likewise.

    Raises:
        ValueError: if a size is not positive or shapes do not fit; on call, if the input does not
            end in ``in_shape``, or the context is missing, unexpected or of another size.

    References:
        C. Shi, S. Luo, M. Xu, J. Tang, *Learning gradient fields for molecular conformation
        generation*, 2021, arXiv:2105.03902.

    Example:
        >>> network = DistanceScore((5, 3), width=16)
        >>> x, t = torch.randn(7, 5, 3), torch.rand(7)
        >>> turned, _ = torch.linalg.qr(torch.randn(3, 3))
        >>> torch.allclose(network(x @ turned + 1.0, t), network(x, t) @ turned, atol=1e-5)
        True
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        nodes: Tensor | None = None,
        pairs: Tensor | None = None,
        width: int = 64,
        num_layers: int = 2,
        context_dim: int = 0,
        embedding: nn.Module | None = None,
    ) -> None:
        if pairs is not None and pairs.dim() == 3:
            pairs = 0.5 * (pairs + pairs.transpose(0, 1))
        super().__init__(in_shape, nodes, pairs, width, context_dim, embedding)
        (num_layers,) = positive_ints([num_layers], "num_layers")
        self.of_pairs = perceptron(1 + self.pairs.shape[-1], width, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(num_layers))
        self.of_distance = perceptron(2 * width, width, 1, gain=0.1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The field at ``x``.

        Args:
            x: ``[*, points, dimensions]``.
            t: scalar, or a tensor that broadcasts to ``[*]``.
            context: ``[*, context_dim]``, or ``None`` where ``context_dim`` is 0.

        Returns:
            ``[*, points, dimensions]``.
        """
        h = self.features(x, t, context)
        apart, square = self.differences(x)
        distance = (square + _TINY).sqrt()
        pairs = self.pairs.expand((*square.shape[:-1], self.pairs.shape[-1]))
        edge = self.of_pairs(torch.cat([distance, pairs], -1))
        layers: Any = self.layers
        for layer in layers:
            one, other = self.pairs_of(h)
            edge = edge + layer.edge(torch.cat([edge, one + other, one * other], -1))
            h = h + layer.node(torch.cat([h, edge.mean(-2)], -1))
        one, other = self.pairs_of(h)
        slope = self.of_distance(torch.cat([edge, one + other], -1))
        itself = torch.eye(self.in_shape[0], dtype=x.dtype, device=x.device).unsqueeze(-1)
        field: Tensor = (slope * apart / (distance + itself)).sum(-2)
        return field


_TINY = 1e-12  # of a distance of 0, that of a point from itself (where nothing divides by it: the
# derivative would cancel in exact arithmetic alone)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = perceptron(3 * width, width, width)
        self.node = perceptron(2 * width, width, width)
