"""A residual network of a state, whose layers a time and perhaps a context modulate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from pyrogen.nn._conditioning import Conditioning, linear
from pyrogen.nn.shapes import as_shape, batch_shape

__all__ = ["ModulatedMLP"]


class ModulatedMLP(nn.Module):
    r"""Fully connected residual blocks, modulated by time and context at every layer.

    .. math:: h \leftarrow h + W_2\, a\big(W_1 [(1 + s) \circ \mathrm{norm}(h) + b]\big), \qquad
       (s, b) = W\, e(t, c),

    with :math:`a(u) = u\, \sigma(u)` and features :math:`e` of time and context. It is the network
    to start with for denoising data of no spatial order: other than in
    :class:`~pyrogen.nn.TimeMLP`, time acts at every depth, and levels of noise can be told apart
    that are a thousandth from each other. Weights of the last layer are small, so that the first
    predictions are near zero.

    Args:
        in_shape: shape of one state; an integer ``n`` means ``(n,)``.
        out_shape: shape of what is predicted; ``None`` means that of the state.
        width: number of hidden units.
        num_blocks: number of residual blocks.
        context_dim: size of the context, 0 for none.
        embedding: of time, a module ``[*] -> [*, n]`` with ``out_shape`` ``(n,)``; by default
            :class:`~pyrogen.nn.SinusoidalEmbedding` for times in [0, 1].

    Attributes:
        in_shape: shape of one state.
        out_shape: shape of what is predicted.
        context_dim: size of the context.

    Raises:
        ValueError: if a size is not positive; on call, if the state does not end in ``in_shape``,
            or the context is missing, unexpected or of another size.

    References:
        W. Peebles, S. Xie, *Scalable diffusion models with transformers*, 2023, arXiv:2212.09748
        (the modulation). E. Perez et al., *FiLM: visual reasoning with a general conditioning
        layer*, 2018, arXiv:1709.07871.

    Example:
        >>> import torch
        >>> network = ModulatedMLP(2, width=64, context_dim=4)
        >>> network(torch.zeros(5, 3, 2), torch.tensor(0.5), torch.zeros(3, 4)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int] | None = None,
        width: int = 128,
        num_blocks: int = 3,
        context_dim: int = 0,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = as_shape(in_shape if out_shape is None else out_shape, "out_shape")
        as_shape((width, num_blocks), "width, num_blocks")
        self.context_dim = context_dim
        self.conditioning = Conditioning(width, context_dim, embedding, "ModulatedMLP")
        self.first = linear(math.prod(self.in_shape), width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.last = linear(width, math.prod(self.out_shape), gain=0.1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps ``[*, *in_shape]`` to ``[*, *out_shape]``.

        Args:
            x: ``[*, *in_shape]``.
            t: scalar, or a tensor that broadcasts to ``[*]``.
            context: ``[*, context_dim]``, or ``None`` where ``context_dim`` is 0. Its leading
                dimensions broadcast to those of ``x``.
        """
        batch = batch_shape(x, self.in_shape, "ModulatedMLP")
        features = self.conditioning(t, context, batch)
        h: Tensor = self.first(x.flatten(len(batch)))
        for block in self.blocks:
            h = block(h, features)
        out: Tensor = self.last(silu(layer_norm(h, h.shape[-1:])))
        return out.reshape(*batch, *self.out_shape)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = linear(width, 2 * width, gain=0.1)
        self.inner = linear(width, width)
        self.outer = linear(width, width, gain=0.5)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        scale, shift = self.modulation(features).chunk(2, dim=-1)
        normed = layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        out: Tensor = h + self.outer(silu(self.inner(normed)))
        return out
