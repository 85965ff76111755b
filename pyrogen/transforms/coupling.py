r"""Additive coupling and the diagonal scaling that ends it: the layers of NICE.

A part of the event is shifted by a function of the rest, which keeps the volume:

.. math:: y_a = x_a, \qquad y_b = x_b + m(x_a), \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right| = 0 .

So a stack of them only ever rearranges the base density; one diagonal scaling at its end,
:math:`y_i = e^{s_i} x_i`, lets dimensions have different weights.

References:
    L. Dinh, D. Krueger, Y. Bengio, *NICE: non-linear independent components estimation*, 2014,
    arXiv:1410.8516.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import as_shape, batch_shape
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet
from pyrogen.transforms._coupling import Coupling

__all__ = ["AdditiveCoupling", "DiagonalScaling"]


class AdditiveCoupling(Coupling):
    r"""Shifts one part of an event by a network of the other part: :math:`y_b = x_b + m(x_a, c)`.

    Args:
        event_shape: of one event, ``D`` or ``[C, *rest]``; divided along its first dimension.
        network: :math:`m`, maps ``[*, kept + context_dim, *rest]`` to ``[*, changed, *rest]``.
            ``None`` makes an :class:`~pyrogen.nn.MLP` that returns zeros at first. A context stands
            beside the part that is kept, at every position of ``rest``.
        split: how many elements come first; ``None`` means half of them.
        swap: change the elements that come first instead of those that come last.
        context_dim: size of the context, 0 for none.
        hidden: widths of the hidden layers, where ``network`` is ``None``.

    Raises:
        ValueError: if the size to be divided is odd and ``split`` is not given; on call, if the
            event or what the network returns has another shape.

    References:
        L. Dinh, D. Krueger, Y. Bengio, *NICE: non-linear independent components estimation*, 2014,
        arXiv:1410.8516.

    Example:
        >>> layer = AdditiveCoupling(4, torch.nn.Linear(2, 2))
        >>> y, log_det = layer.forward_and_log_det(torch.ones(3, 4))
        >>> y[0, :2], log_det
        (tensor([1., 1.], grad_fn=<SliceBackward0>), tensor([0., 0., 0.]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        network: Callable[[Tensor], Tensor] | None = None,
        split: int | None = None,
        swap: bool = False,
        context_dim: int = 0,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(event_shape, network, split, swap, context_dim, hidden=hidden)

    def change(self, part: Tensor, parameters: Tensor, inverse: bool) -> ValueAndLogDet:
        """Adds the shift, or takes it away."""
        return part - parameters if inverse else part + parameters, torch.zeros_like(part)


class DiagonalScaling(Bijection):
    r"""Multiplies each element by a learned positive factor: :math:`y_i = e^{s_i} x_i`.

    Args:
        event_shape: of one event; an integer ``n`` means ``(n,)``.

    Attributes:
        log_scale: :math:`s`, shape ``event_shape``; zero at first.

    References:
        L. Dinh, D. Krueger, Y. Bengio, *NICE: non-linear independent components estimation*, 2014,
        arXiv:1410.8516.

    Example:
        >>> layer = DiagonalScaling(2)
        >>> layer(torch.tensor([1.0, 2.0]))
        tensor([1., 2.], grad_fn=<MulBackward0>)
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        self_shape = as_shape(event_shape, "event_shape")
        super().__init__(event_dim=len(self_shape))
        self.event_shape = self_shape
        self.log_scale = nn.Parameter(torch.zeros(self_shape))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Multiplies."""
        batch = batch_shape(x, self.event_shape, "DiagonalScaling")
        return x * self.log_scale.exp(), self.log_scale.sum().expand(batch)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Divides."""
        batch = batch_shape(y, self.event_shape, "DiagonalScaling")
        return y * (-self.log_scale).exp(), self.log_scale.sum().expand(batch)
