"""Small strided convolutions from images to vectors and back.

An image is ``[channels, height, width]``, or ``[height, width]`` for one channel without an axis of
its own; the event shape given at construction says which. Each level halves height and width,
rounding up, so that any size works; the decoder retraces the same sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyrogen.nn.shapes import as_shape, batch_shape, positive_ints

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(nn.Module):
    """Image to vector: 3×3 convolutions of stride 2, then an affine map.

    Weights are drawn as in :class:`~pyrogen.nn.MLP`.

    Args:
        event_shape: shape of one image, ``(channels, height, width)`` or ``(height, width)``.
        out_features: size of the vector.
        channels: number of channels after each convolution.
        activation: makes the module that stands after each convolution.

    Attributes:
        in_shape: shape of one image.
        out_shape: ``(out_features,)``.

    Raises:
        ValueError: if ``event_shape`` is no image or a size is not positive; on call, if the input
            does not end in ``event_shape``.

    Example:
        >>> import torch
        >>> encoder = ConvEncoder((8, 8), out_features=4)
        >>> encoder(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 3, 4])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (32, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self._image = _image_shape(event_shape)
        self.in_shape = tuple(event_shape)
        self.out_shape = as_shape(out_features, "out_features")
        channels = positive_ints(channels, "channels")
        sizes = _sizes(self._image, len(channels))
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((self._image[0], *channels), channels, strict=False):
            conv = nn.Conv2d(fan_in, fan_out, kernel_size=3, stride=2, padding=1)
            layers += [_initialise(conv, 9 * fan_in, gain=2.0), activation()]
        features = (channels or self._image[:1])[-1] * math.prod(sizes[-1])
        last = _initialise(nn.Linear(features, out_features), features, gain=1.0)
        self.layers = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*, *event_shape]`` to ``[*, out_features]``."""
        batch = batch_shape(x, self.in_shape, "ConvEncoder")
        out: Tensor = self.layers(x.reshape(-1, *self._image))
        return out.reshape(*batch, *self.out_shape)


class ConvDecoder(nn.Module):
    """Vector to image: an affine map, then transposed 3×3 convolutions of stride 2.

    Args:
        in_features: size of the vector.
        event_shape: shape of one image, ``(channels, height, width)`` or ``(height, width)``.
        channels: number of channels before each transposed convolution.
        num_classes: if given, the output has this many numbers for each pixel and channel, in a
            last dimension (the logits of a categorical likelihood).
        activation: makes the module that stands before each transposed convolution.

    Attributes:
        in_shape: ``(in_features,)``.
        out_shape: ``event_shape``, and ``num_classes`` if given.

    Raises:
        ValueError: if ``event_shape`` is no image or a size is not positive; on call, if the input
            does not end in ``in_features``.

    Example:
        >>> import torch
        >>> ConvDecoder(2, (1, 28, 28))(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3, 1, 28, 28])
        >>> ConvDecoder(2, (7, 9), num_classes=17)(torch.zeros(5, 2)).shape
        torch.Size([5, 7, 9, 17])
    """

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        num_classes: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self._image = _image_shape(event_shape)
        self._classes = () if num_classes is None else as_shape(num_classes, "num_classes")
        self.in_shape = as_shape(in_features, "in_features")
        self.out_shape = (*event_shape, *self._classes)
        channels = positive_ints(channels, "channels")
        sizes = _sizes(self._image, len(channels))[::-1]
        widths = (*channels, self._image[0] * math.prod(self._classes))
        layers: list[nn.Module] = [_project(in_features, (widths[0], *sizes[0]))]
        for level in range(len(channels)):
            up = _upsample(widths[level], widths[level + 1], sizes[level], sizes[level + 1])
            # Stride 2 leaves about a quarter of the nine weights on each output pixel.
            gain = 2.0 if level else 1.0
            layers += [activation(), _initialise(up, 9 * widths[level] / 4, gain)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Maps ``[*, in_features]`` to ``[*, *out_shape]``."""
        batch = batch_shape(z, self.in_shape, "ConvDecoder")
        out: Tensor = self.layers(z.reshape(-1, *self.in_shape))
        if self._classes:
            out = out.unflatten(1, (*self._classes, -1)).movedim(1, -1)
        return out.reshape(*batch, *self.out_shape)


def _image_shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = positive_ints(event_shape, "event_shape")
    if len(shape) not in (2, 3):
        raise ValueError(
            "event_shape: expected (channels, height, width) or (height, width), "
            f"got {tuple(shape)}"
        )
    channels, height, width = (1, *shape)[-3:]
    return channels, height, width


def _sizes(image: tuple[int, int, int], levels: int) -> list[tuple[int, int]]:
    sizes = [image[1:]]
    for _ in range(levels):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _project(in_features: int, shape: tuple[int, ...]) -> nn.Module:
    linear = _initialise(nn.Linear(in_features, math.prod(shape)), in_features, gain=1.0)
    return nn.Sequential(linear, nn.Unflatten(1, shape))


def _upsample(
    fan_in: int, fan_out: int, size: tuple[int, int], target: tuple[int, int]
) -> nn.ConvTranspose2d:
    padding = (target[0] - 2 * size[0] + 1, target[1] - 2 * size[1] + 1)
    return nn.ConvTranspose2d(fan_in, fan_out, 3, stride=2, padding=1, output_padding=padding)


def _initialise(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, fan_in: float, gain: float
) -> nn.Module:
    nn.init.normal_(layer.weight, std=math.sqrt(gain / fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
