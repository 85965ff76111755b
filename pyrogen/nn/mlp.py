"""A multilayer perceptron between two event shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyrogen.nn.shapes import as_shape, batch_shape, positive_ints

__all__ = ["MLP"]


class MLP(nn.Module):
    r"""Fully connected layers, :math:`x \mapsto W_L\, a(W_{L-1} \cdots a(W_1 x + b_1)) + b_L`.

    Events are flattened on the way in and given their shape on the way out. Hidden weights are
    drawn from :math:`N(0, 2/n_{in})`, which keeps the size of rectified activations from layer to
    layer, those of the last layer from :math:`N(0, 1/n_{in})`; biases are zero.

    Args:
        in_shape: shape of one input event; an integer ``n`` means ``(n,)``.
        out_shape: shape of one output event; an integer ``n`` means ``(n,)``.
        hidden: widths of the hidden layers; ``()`` makes an affine map.
        activation: makes the module that stands after each hidden layer.

    Attributes:
        in_shape: shape of one input event.
        out_shape: shape of one output event.

    Raises:
        ValueError: if a size is not positive; on call, if the input does not end in ``in_shape``.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, *Delving deep into rectifiers*, 2015, arXiv:1502.01852.

    Example:
        >>> import torch
        >>> decoder = MLP(2, (8, 8), hidden=(32,))
        >>> decoder(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        hidden: Sequence[int] = (256, 256),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = as_shape(out_shape, "out_shape")
        hidden = positive_ints(hidden, "hidden")
        widths = [math.prod(self.in_shape), *hidden, math.prod(self.out_shape)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            gain = 2.0 if len(layers) < 2 * len(hidden) else 1.0
            layers += [_linear(fan_in, fan_out, gain), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*, *in_shape]`` to ``[*, *out_shape]``."""
        batch = batch_shape(x, self.in_shape, "MLP")
        out: Tensor = self.layers(x.flatten(len(batch)))
        return out.reshape(*batch, *self.out_shape)


def _linear(fan_in: int, fan_out: int, gain: float) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=math.sqrt(gain / fan_in))
    nn.init.zeros_(layer.bias)
    return layer
