r"""Layers that treat the elements of a set alike.

The linear maps of :math:`n` vectors that commute with their permutations are

.. math:: h_i \mapsto A\, h_i + B\, \frac1n \sum_j h_j + c ,

and layers of these, with activations between, are equivariant: they permute their outputs with
their inputs. Their mean over the set is invariant.

References:
    M. Zaheer, S. Kottur, S. Ravanbakhsh, B. Poczos, R. Salakhutdinov, A. Smola, *Deep sets*, 2017,
    arXiv:1703.06114.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyrogen.nn._conditioning import linear
from pyrogen.nn.shapes import as_shape, batch_shape, positive_ints

__all__ = ["DeepSets"]


class DeepSets(nn.Module):
    """A function of a set of vectors, equivariant or invariant under permutations.

    Args:
        in_shape: ``(elements, features)``.
        out_features: features of an output.
        hidden: widths of the hidden layers.
        invariant: one output, the mean over the set, in place of one for each element.

    Attributes:
        in_shape: ``(elements, features)``.
        out_shape: ``(elements, out_features)``, or ``(out_features,)`` if invariant.

    Raises:
        ValueError: if a size is not positive or ``in_shape`` is no pair; on call, if the input does
            not end in ``in_shape``.

    Example:
        >>> import torch
        >>> network, x = DeepSets((4, 3), out_features=2), torch.randn(7, 4, 3)
        >>> order = torch.tensor([2, 0, 3, 1])
        >>> torch.allclose(network(x[:, order]), network(x)[:, order], atol=1e-6)
        True
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        hidden: Sequence[int] = (64, 64),
        invariant: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        if len(self.in_shape) != 2:
            raise ValueError(f"in_shape: expected (elements, features), got {self.in_shape}")
        elements, features = self.in_shape
        widths = positive_ints([features, *hidden, out_features], "hidden, out_features")
        self.invariant = invariant
        self.out_shape = (out_features,) if invariant else (elements, out_features)
        self.each = nn.ModuleList(linear(a, b) for a, b in itertools.pairwise(widths))
        self.mean = nn.ModuleList(linear(a, b, bias=False) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*, *in_shape]`` to ``[*, *out_shape]``."""
        batch_shape(x, self.in_shape, "DeepSets")
        each: Any = self.each
        mean: Any = self.mean
        for k, (of_each, of_mean) in enumerate(zip(each, mean, strict=True)):
            x = of_each(x) + of_mean(x.mean(-2, keepdim=True))
            if k < len(each) - 1:
                x = nn.functional.silu(x)
        return x.mean(-2) if self.invariant else x
