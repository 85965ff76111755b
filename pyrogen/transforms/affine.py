r"""Affine coupling: the layer of RealNVP and Glow.

.. math:: y_a = x_a, \qquad y_b = \mu(x_a) + e^{s(x_a)} \odot x_b, \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right| = \sum_i s_i(x_a) .

The log scale is bounded smoothly, :math:`s = r / (1 + |r| / b)`.

Pyro's ``AffineCoupling`` flattens what its network sees, so that no convolution can stand there,
and where it clips its log scales their gradient is not that of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pyrogen.transforms._bijection import ValueAndLogDet
from pyrogen.transforms._coupling import Coupling

__all__ = ["AffineCoupling"]

_LOG_SCALE_BOUND = 5.0


class AffineCoupling(Coupling):
    r"""Shifts and scales one part of an event by a network of the other part.

    Args:
        event_shape: of one event, ``D`` or ``[C, *rest]``; divided along its first dimension.
        network: maps ``[*, kept + context_dim, *rest]`` to ``[*, changed, *rest, 2]``: shift
            :math:`\mu` and raw log scale :math:`r`. ``None`` makes an :class:`~pyrogen.nn.MLP`. A
            context stands beside the part that is kept, at every position of ``rest``.
        split: how many elements come first; ``None`` means half of them.
        swap: change the elements that come first instead of those that come last.
        context_dim: size of the context, 0 for none.
        hidden: widths of the hidden layers, where ``network`` is ``None``.

    Raises:
        ValueError: if the size to be divided is odd and ``split`` is not given; on call, if the
            event or what the network returns has another shape.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, *Density estimation using Real NVP*, 2016,
        arXiv:1605.08803.

    Example:
        >>> layer = AffineCoupling(4)
        >>> x = torch.randn(3, 4)
        >>> bool((layer.inv(layer(x)) - x).abs().max() < 1e-5)
        True
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
        super().__init__(event_shape, network, split, swap, context_dim, (2,), hidden)

    def change(self, part: Tensor, parameters: Tensor, inverse: bool) -> ValueAndLogDet:
        """Scales and shifts, or shifts and scales back."""
        loc, raw = parameters.unbind(-1)
        log_scale = raw / (1 + raw.abs() / _LOG_SCALE_BOUND)
        if inverse:
            return (part - loc) * (-log_scale).exp(), log_scale
        return loc + log_scale.exp() * part, log_scale
