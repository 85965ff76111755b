"""A small U-Net: an image, a time and perhaps a context to an image of the same size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from pyrogen.nn._conditioning import Conditioning, linear
from pyrogen.nn.shapes import as_shape, batch_shape, positive_ints

__all__ = ["UNet"]


class UNet(nn.Module):
    r"""Convolutions from fine to coarse and back, each scale linked to its like on the way back.

    Each level halves height and width (rounding up, so that any size works) by a convolution of
    stride 2; on the way back nearest neighbours are repeated before a convolution, which leaves no
    checkerboard. The blocks are residual, with group normalisation, and modulated by features of
    time and context. Weights of the last layer are small, so that the first predictions are near
    zero.

    Args:
        event_shape: shape of one image, ``(channels, height, width)`` or ``(height, width)``.
        channels: number of channels at each level, from fine to coarse.
        num_blocks: residual blocks at each level, each way.
        out_channels: number of channels of the output; ``None`` means those of the image.
        num_classes: if given, the image is of indicators and the output of logits: both have this
            many numbers for each pixel and channel, in a last dimension.
        context_dim: size of the context, 0 for none.
        attention: whether pixels of the coarsest level attend to each other.
        dropout: share of the activations that each block forgets in training.
        embedding: of time, a module ``[*] -> [*, n]`` with ``out_shape`` ``(n,)``; by default
            :class:`~pyrogen.nn.SinusoidalEmbedding` for times in [0, 1].

    Attributes:
        in_shape: shape of one input, ``event_shape`` and ``num_classes`` if given.
        out_shape: shape of one output.
        context_dim: size of the context.

    Raises:
        ValueError: if ``event_shape`` is no image or a size is not positive; on call, if the input
            does not end in ``in_shape``, or the context is missing, unexpected or of another size.

    References:
        O. Ronneberger, P. Fischer, T. Brox, *U-Net: convolutional networks for biomedical image
        segmentation*, 2015, arXiv:1505.04597. J. Ho, A. Jain, P. Abbeel, *Denoising diffusion
        probabilistic models*, 2020, arXiv:2006.11239. A. Odena, V. Dumoulin, C. Olah,
        *Deconvolution and checkerboard artifacts*, 2016, doi:10.23915/distill.00003.

    Example:
        >>> import torch
        >>> network = UNet((1, 8, 8), channels=(16, 32), context_dim=10)
        >>> network(torch.zeros(5, 1, 8, 8), torch.rand(5), torch.zeros(5, 10)).shape
        torch.Size([5, 1, 8, 8])
        >>> UNet((8, 8), num_classes=17)(torch.zeros(5, 8, 8, 17), torch.rand(5)).shape
        torch.Size([5, 8, 8, 17])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        num_blocks: int = 1,
        out_channels: int | None = None,
        num_classes: int | None = None,
        context_dim: int = 0,
        attention: bool = False,
        dropout: float = 0.0,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        shape = positive_ints(event_shape, "event_shape")
        if len(shape) not in (2, 3):
            raise ValueError(
                "event_shape: expected (channels, height, width) or (height, width), got "
                f"{tuple(shape)}"
            )
        widths = positive_ints(channels, "channels")
        if not widths:
            raise ValueError("channels: expected at least one level, got none")
        as_shape(num_blocks, "num_blocks")
        classes = () if num_classes is None else as_shape(num_classes, "num_classes")
        colours = shape[0] if len(shape) == 3 else 1
        given = colours if out_channels is None else out_channels
        (out_colours,) = as_shape(given, "out_channels")
        lead = () if len(shape) == 2 and out_channels is None else (out_colours,)
        self.in_shape = (*shape, *classes)
        self.out_shape = (*lead, *shape[-2:], *classes)
        self.context_dim = context_dim
        self._size = shape[-2:]
        self._classes = classes
        width = 4 * widths[0]
        self.conditioning = Conditioning(width, context_dim, embedding, "UNet")
        self.first = _conv(colours * math.prod(classes), widths[0])
        self.down = nn.ModuleList(
            _Level(before, after, num_blocks, width, dropout)
            for before, after in itertools.pairwise((widths[0], *widths))
        )
        self.shrink = nn.ModuleList(_conv(fan, fan, stride=2) for fan in widths[:-1])
        self.middle = _Level(widths[-1], widths[-1], 1, width, dropout)
        self.attention = _Attention(widths[-1]) if attention else None
        self.grow = nn.ModuleList(
            _conv(coarse, fine) for fine, coarse in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(_Level(2 * fan, fan, num_blocks, width, dropout) for fan in widths)
        self.norm = _norm(widths[0])
        self.last = _conv(widths[0], out_colours * math.prod(classes), gain=0.1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps ``[*, *in_shape]`` to ``[*, *out_shape]``.

        Args:
            x: ``[*, *in_shape]``.
            t: scalar, or a tensor that broadcasts to ``[*]``.
            context: ``[*, context_dim]``, or ``None`` where ``context_dim`` is 0. Its leading
                dimensions broadcast to those of ``x``.
        """
        batch = batch_shape(x, self.in_shape, "UNet")
        features = self.conditioning(t, context, batch).reshape(-1, 4 * self.first.out_channels)
        flat = x.reshape(-1, *self.in_shape)
        if self._classes:
            flat = flat.movedim(-1, 1)
        out = self._image_to_image(flat.reshape(len(flat), -1, *self._size), features)
        if self._classes:
            out = out.unflatten(1, (*self._classes, -1)).movedim(1, -1)
        return out.reshape(*batch, *self.out_shape)

    def _image_to_image(self, x: Tensor, features: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        kept: list[Tensor] = []
        for i, level in enumerate(self.down):
            h = level(h if i == 0 else self.shrink[i - 1](h), features)
            kept.append(h)
        h = self.middle(h, features)
        if self.attention is not None:
            h = self.attention(h)
        for i in reversed(range(len(kept))):
            if i < len(self.grow):
                h = self.grow[i](interpolate(h, size=kept[i].shape[-2:], mode="nearest"))
            h = self.up[i](torch.cat([h, kept[i]], dim=1), features)
        out: Tensor = self.last(silu(self.norm(h)))
        return out


class _Level(nn.Module):
    """Residual blocks at one size."""

    def __init__(
        self, fan_in: int, fan_out: int, num_blocks: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        fans = (fan_in, *[fan_out] * num_blocks)
        self.blocks = nn.ModuleList(
            _Block(before, after, width, dropout) for before, after in itertools.pairwise(fans)
        )

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, features)
        return h


class _Block(nn.Module):
    """Two convolutions beside a short cut, the second modulated by the features."""

    def __init__(self, fan_in: int, fan_out: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.normed = _norm(fan_in), _norm(fan_out)
        self.inner = _conv(fan_in, fan_out)
        self.modulation = linear(width, 2 * fan_out)
        self.dropout = nn.Dropout(dropout)
        self.outer = _conv(fan_out, fan_out, gain=0.5)
        self.cut = nn.Identity() if fan_in == fan_out else _conv(fan_in, fan_out, size=1)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        inside = self.inner(silu(self.norm(h)))
        scale, shift = self.modulation(features)[..., None, None].chunk(2, dim=1)
        inside = silu(self.normed(inside) * (1 + scale) + shift)
        out: Tensor = self.cut(h) + self.outer(self.dropout(inside))
        return out


class _Attention(nn.Module):
    """Each pixel looks at all others, once."""

    def __init__(self, fan: int) -> None:
        super().__init__()
        self.norm = _norm(fan)
        self.inner = _conv(fan, 3 * fan, size=1)
        self.outer = _conv(fan, fan, size=1, gain=0.5)

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.inner(self.norm(h)).flatten(2).chunk(3, dim=1)
        likeness = torch.einsum("ncp,ncq->npq", query, key) / math.sqrt(h.shape[1])
        seen = torch.einsum("npq,ncq->ncp", likeness.softmax(-1), value)
        out: Tensor = h + self.outer(seen.reshape(h.shape))
        return out


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of at least four channels, since one pixel of one channel has no variance."""
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and (channels >= 4 * g or g == 1))
    return nn.GroupNorm(groups, channels)


def _conv(
    fan_in: int, fan_out: int, size: int = 3, stride: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    layer = nn.Conv2d(fan_in, fan_out, size, stride=stride, padding=size // 2)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in * size**2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
