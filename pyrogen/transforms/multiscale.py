r"""Flows over several scales: squeeze positions into channels, split half of them off, go on.

Read from the data to the base, an image of shape ``[C, H, W]`` passes level after level. At the end
of each level but the last, half of its channels are split off as latent values, so that most layers
work on few dimensions:

.. math:: (h_1, z_1) = \operatorname{split}(g_1(y)), \quad
   (h_2, z_2) = \operatorname{split}(g_2(h_1)), \quad \ldots, \quad z_L = g_L(h_{L-1}) .

A split may standardise what it splits off by the mean and scale that a network predicts from the
part that stays, :math:`z = (h' - \mu(h)) / \sigma(h)`: a learned prior.

References:
    L. Dinh, J. Sohl-Dickstein, S. Bengio, *Density estimation using Real NVP*, 2016,
    arXiv:1605.08803.
    D. P. Kingma, P. Dhariwal, *Glow: generative flow with invertible 1×1 convolutions*, 2018,
    arXiv:1807.03039.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Size, Tensor, nn
from torch.distributions import Transform, constraints

from pyrogen.nn.shapes import as_shape, batch_shape, positive_ints
from pyrogen.transforms._bijection import (
    Bijection,
    ValueAndLogDet,
    broadcast_context,
    forward_through,
    inverse_through,
)
from pyrogen.transforms._chain import Chain
from pyrogen.transforms._coupling import Coupling
from pyrogen.transforms.actnorm import initialize

__all__ = ["MultiScale", "Split", "Squeeze"]


class Squeeze(Bijection):
    """Moves blocks of positions into channels: ``[C, H, W]`` to ``[C f², H / f, W / f]``.

    The channels of one old channel stand next to each other. The inverse, ``Squeeze().inv``, is
    what a flow contains from base to data.

    Args:
        factor: side :math:`f` of a block.

    Raises:
        ValueError: if ``factor`` is not positive; on call, if it does not divide height and width.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, *Density estimation using Real NVP*, 2016,
        arXiv:1605.08803.

    Example:
        >>> Squeeze()(torch.arange(4.0).reshape(1, 2, 2)).shape
        torch.Size([4, 1, 1])
    """

    def __init__(self, factor: int = 2) -> None:
        (self_factor,) = positive_ints((factor,), "factor")
        super().__init__(event_dim=3)
        self.factor = self_factor

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Squeezes."""
        shape = self.forward_shape(x.shape)
        y = nn.functional.pixel_unshuffle(x, self.factor).reshape(shape)  # for an empty batch
        return y, x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Spreads channels over positions again."""
        shape = self.inverse_shape(y.shape)
        x = nn.functional.pixel_shuffle(y, self.factor).reshape(shape)
        return x, y.new_zeros(y.shape[:-3])

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape of ``y``, given that of ``x``."""
        f = self.factor
        if len(shape) < 3 or shape[-1] % f or shape[-2] % f:
            raise ValueError(
                f"Squeeze: expected shape [*, C, H, W] with H and W divisible by {f}, got "
                f"{list(shape)}; pad or crop the images, or use fewer levels"
            )
        return Size((*shape[:-3], shape[-3] * f * f, shape[-2] // f, shape[-1] // f))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of ``x``, given that of ``y``."""
        f = self.factor
        if len(shape) < 3 or shape[-3] % (f * f):
            raise ValueError(
                f"Squeeze: expected shape [*, C, H, W] with C divisible by {f * f}, got "
                f"{list(shape)}"
            )
        return Size((*shape[:-3], shape[-3] // (f * f), shape[-2] * f, shape[-1] * f))


class Split(Coupling):
    r"""Predicts the half of the channels that is to be split off from the half that stays.

    From base to data, the first half :math:`h` is kept and the second becomes
    :math:`\mu(h) + \sigma(h)\, z`. Without a network nothing is predicted: :math:`\mu = 0`,
    :math:`\sigma = 1`.

    Args:
        event_shape: of one event, ``D`` or ``[C, *rest]``; halved along its first dimension.
        network: maps the first half ``[*, C / 2, *rest]`` to ``[*, C / 2, *rest, 2]``, mean and log
            scale. ``None`` predicts nothing.

    Raises:
        ValueError: if the first dimension is odd; on call, if a shape is another.

    References:
        D. P. Kingma, P. Dhariwal, *Glow: generative flow with invertible 1×1 convolutions*, 2018,
        arXiv:1807.03039.

    Example:
        >>> from pyrogen.nn import MLP
        >>> split = Split(4, MLP(2, (2, 2), hidden=()))
        >>> split(torch.ones(3, 4))[:, :2]
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]], grad_fn=<SliceBackward0>)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        network: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        shape = as_shape(event_shape, "event_shape")
        super().__init__(shape, network or _Zeros(), None, False, 0, parameters=(2,))

    def change(self, part: Tensor, parameters: Tensor, inverse: bool) -> ValueAndLogDet:
        """Scales and shifts, or standardises."""
        loc, log_scale = parameters.unbind(-1)
        if inverse:
            return (part - loc) * (-log_scale).exp(), log_scale
        return loc + log_scale.exp() * part, log_scale


class _Zeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape, 2)


class MultiScale(Bijection):
    """Levels of transforms with a split between them, from a latent vector to data.

    Args:
        event_shape: of the data, ``[C, H, W]`` (or ``D``); splits halve its first dimension.
        levels: for each level its transforms from base to data, the level nearest to the data
            first. For images the last transform of each is ``Squeeze().inv``.
        splits: for each level but the last a :class:`Split` of the shape that this level begins
            with; ``None`` predicts nothing. See :meth:`level_shapes`.
        context_dim: size of the context that conditional transforms among the levels take.

    Attributes:
        level_shapes: the shape that each level's transforms begin with, towards the base.

    Raises:
        ValueError: if there is no level, a shape is odd where it is to be halved, or ``splits`` has
            another number or other shapes.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, *Density estimation using Real NVP*, 2016,
        arXiv:1605.08803.

    Example:
        >>> from pyrogen.transforms import ActNorm
        >>> first = [ActNorm(4, event_dim=3), Squeeze().inv]
        >>> second = [ActNorm(8, event_dim=3), Squeeze().inv]
        >>> flow = MultiScale((1, 4, 4), [first, second])
        >>> flow(torch.randn(5, 16)).shape
        torch.Size([5, 1, 4, 4])
        >>> flow.level_shapes
        [(4, 2, 2), (8, 1, 1)]
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        levels: Sequence[Sequence[Transform]],
        splits: Sequence[Split] | None = None,
        context_dim: int = 0,
    ) -> None:
        shape = as_shape(event_shape, "event_shape")
        if not levels:
            raise ValueError("levels: expected at least one, got none")
        super().__init__(event_dim=1, context_dim=context_dim)
        self.codomain = constraints.independent(constraints.real, len(shape))
        self.event_shape = shape
        self.levels = nn.ModuleList(Chain(level) for level in levels)
        self.level_shapes = _level_shapes(shape, self.levels)
        if splits is None:
            splits = [Split(shape) for shape in self.level_shapes[:-1]]
        if [split.event_shape for split in splits] != self.level_shapes[:-1]:
            raise ValueError(
                f"splits: expected events of shapes {self.level_shapes[:-1]}, got "
                f"{[split.event_shape for split in splits]}"
            )
        self.splits = nn.ModuleList(splits)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps a latent vector ``[*, D]`` to data ``[*, *event_shape]``."""
        batch_shape(x, (math.prod(self.event_shape),), "MultiScale")
        x, context = broadcast_context(x, context, 1)
        pieces = self._pieces(x)
        h, total = pieces[-1], x.new_zeros(x.shape[:-1])
        for i in reversed(range(len(self.levels))):
            if i < len(self.splits):
                joined = torch.cat([h, pieces[i]], dim=-len(self.event_shape))
                h, log_det = self._split(i).forward_and_log_det(joined)
                total = total + log_det
            h, log_det = forward_through(self._parts(i), h, len(self.event_shape), context)
            total = total + log_det
        return h, total

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps data ``[*, *event_shape]`` to a latent vector ``[*, D]``."""
        batch_shape(y, self.event_shape, "MultiScale")
        h, context = broadcast_context(y, context, len(self.event_shape))
        total = h.new_zeros(h.shape[: h.dim() - len(self.event_shape)])
        pieces = []
        for i in range(len(self.levels)):
            h, log_det = inverse_through(self._parts(i), h, len(self.event_shape), context)
            total = total + log_det
            if i < len(self.splits):
                h, log_det = self._split(i).inverse_and_log_det(h)
                total = total + log_det
                h, piece = h.chunk(2, dim=-len(self.event_shape))
                pieces.append(piece)
        flat = [piece.flatten(-len(self.event_shape)) for piece in [*pieces, h]]
        return torch.cat(flat, dim=-1), total

    def initialize(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialises the transforms of all levels, from the data on."""
        h, pieces = y, []
        with torch.no_grad():
            for i in range(len(self.levels)):
                h = initialize(self._parts(i), h, context)
                if i < len(self.splits):
                    h = self._split(i).initialize(h)
                    h, piece = h.chunk(2, dim=-len(self.event_shape))
                    pieces.append(piece)
        return torch.cat([p.flatten(-len(self.event_shape)) for p in [*pieces, h]], dim=-1)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the data, given that of the latent vector."""
        return Size((*shape[:-1], *self.event_shape))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the latent vector, given that of the data."""
        return Size((*shape[: len(shape) - len(self.event_shape)], math.prod(self.event_shape)))

    def _parts(self, level: int) -> list[Transform]:
        return list(cast(Chain, self.levels[level]))

    def _split(self, level: int) -> Split:
        return cast(Split, self.splits[level])

    def _pieces(self, x: Tensor) -> list[Tensor]:
        """The latent values of each level, in its shape; the last level's at the end."""
        shapes = [(shape[0] // 2, *shape[1:]) for shape in self.level_shapes[:-1]]
        shapes.append(self.level_shapes[-1])
        flat = x.split([math.prod(shape) for shape in shapes], dim=-1)
        return [
            piece.reshape(*x.shape[:-1], *shape) for piece, shape in zip(flat, shapes, strict=True)
        ]


def _level_shapes(shape: tuple[int, ...], levels: nn.ModuleList) -> list[tuple[int, ...]]:
    """The shape of an event where each level begins, from the data to the base."""
    shapes = []
    for i, level in enumerate(levels):
        for transform in reversed(list(cast(Chain, level))):
            shape = tuple(transform.inverse_shape(Size(shape)))
        shapes.append(shape)
        if i < len(levels) - 1:
            if shape[0] % 2:
                raise ValueError(
                    f"levels: expected an even first dimension to split after level {i}, got shape "
                    f"{list(shape)}; put Squeeze().inv into the level, or use fewer levels"
                )
            shape = (shape[0] // 2, *shape[1:])
    return shapes
