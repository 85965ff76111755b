r"""A network of points in space that turns with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrogen.nn._conditioning import linear
from pyrogen.nn._points import PointNetwork, perceptron
from pyrogen.nn.shapes import positive_ints

__all__ = ["EGNN"]


class EGNN(PointNetwork):
    r"""E(n)-equivariant graph network: messages between all points, that move them.

    .. math:: m_{ij} = \phi_e(h_i, h_j, \lVert x_i - x_j \rVert^2, a_{ij}), \qquad
       x_i \leftarrow x_i + \frac{1}{n} \sum_j \frac{x_i - x_j}{1 + \lVert x_i - x_j \rVert}\,
       \phi_x(m_{ij}), \qquad
       h_i \leftarrow h_i + \phi_h\Big(h_i, \tfrac1n \sum_j m_{ij}\Big) .

    It predicts how far the points have moved, without the movement of their mean: a rotation or
    reflection of the points is one of the prediction, a translation leaves it as it is, and a
    permutation (of the features of nodes and pairs too) permutes it.

    Args:
        in_shape: ``(points, dimensions)``.
        nodes: ``[points, features]``, what tells points apart, such as their kinds.
        pairs: ``[points, points, features]``, :math:`a_{ij}`, such as bonds.
        width: number of hidden units.
        num_layers: how often points are moved.
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
        V. G. Satorras, E. Hoogeboom, M. Welling, *E(n) equivariant graph neural networks*, 2021,
        arXiv:2102.09844.

    Example:
        >>> network = EGNN((5, 3), width=16)
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
        num_layers: int = 3,
        context_dim: int = 0,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(in_shape, nodes, pairs, width, context_dim, embedding)
        (num_layers,) = positive_ints([num_layers], "num_layers")
        self.layers = nn.ModuleList(
            _Layer(width, self.pairs.shape[-1], last=i == num_layers - 1) for i in range(num_layers)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Predicts a displacement.

        Args:
            x: ``[*, points, dimensions]``.
            t: scalar, or a tensor that broadcasts to ``[*]``.
            context: ``[*, context_dim]``, or ``None`` where ``context_dim`` is 0.

        Returns:
            ``[*, points, dimensions]``.
        """
        h, at = self.features(x, t, context), x
        layers: Any = self.layers
        for layer in layers:
            apart, square = self.differences(at)
            of_pairs = self.pairs.expand((*square.shape[:-1], self.pairs.shape[-1]))
            message = layer.message(torch.cat([*self.pairs_of(h), square, of_pairs], -1))
            direction = apart / (1 + (square + _TINY).sqrt())
            at = at + (direction * layer.shift(message)).mean(-2)
            if layer.update is not None:
                h = h + layer.update(torch.cat([h, message.mean(-2)], -1))
        moved = at - x
        return moved - moved.mean(-2, keepdim=True)


_TINY = 1e-12  # the root's slope at 0, where a point meets itself


class _Layer(nn.Module):
    def __init__(self, width: int, pair_features: int, last: bool) -> None:
        super().__init__()
        first = perceptron(2 * width + 1 + pair_features, width, width)
        self.message = nn.Sequential(*first, nn.SiLU())
        self.shift = nn.Sequential(linear(width, width), nn.SiLU(), linear(width, 1, gain=0.1))
        self.update = None if last else perceptron(2 * width, width, width)  # of no use at the end
