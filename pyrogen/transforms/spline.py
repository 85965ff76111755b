r"""Coupling by splines: each element of one part goes through a monotone curve of its own.

.. math:: y_a = x_a, \qquad y_{b,i} = s(x_{b,i}; \theta_i(x_a)), \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right| = \sum_i \log s'(x_{b,i}; \theta_i(x_a)) .

Pyro's ``SplineCoupling`` cannot be captured as a graph, and its inverse is off by 5e-5 in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pyrogen.transforms._bijection import ValueAndLogDet
from pyrogen.transforms._coupling import Coupling
from pyrogen.transforms._splines import bounded_knots, spline, spline_inverse

__all__ = ["SplineCoupling"]


class SplineCoupling(Coupling):
    """Puts one part of an event through rational-quadratic splines that the other part decides.

    Inside of ``[-bound, bound]`` a spline is any increasing curve with as many bins; outside it is
    the identity.

    Args:
        event_shape: of one event, ``D`` or ``[C, *rest]``; divided along its first dimension.
        network: maps ``[*, kept + context_dim, *rest]`` to ``[*, changed, *rest, 3 num_bins - 1]``:
            widths, heights and slopes, unconstrained; zeros make the identity. ``None`` makes an
            :class:`~pyrogen.nn.MLP` that returns zeros at first. A context stands beside the part
            that is kept, at every position of ``rest``.
        num_bins: bins of each spline.
        bound: the splines bend between ``-bound`` and ``bound``.
        split: how many elements come first; ``None`` means half of them.
        swap: change the elements that come first instead of those that come last.
        context_dim: size of the context, 0 for none.
        hidden: widths of the hidden layers, where ``network`` is ``None``.

    Raises:
        ValueError: if the size to be divided is odd and ``split`` is not given, if ``num_bins`` or
            ``bound`` is not positive; on call, if a shape is another.

    References:
        C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, *Neural spline flows*, 2019,
        arXiv:1906.04032.

    Example:
        >>> layer = SplineCoupling(4, num_bins=6)
        >>> x = torch.randn(3, 4)
        >>> bool((layer.inv(layer(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        network: Callable[[Tensor], Tensor] | None = None,
        num_bins: int = 8,
        bound: float = 5.0,
        split: int | None = None,
        swap: bool = False,
        context_dim: int = 0,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        if num_bins < 1 or not bound > 0:
            raise ValueError(
                f"num_bins, bound: expected positive numbers, got {num_bins} and {bound}"
            )
        parameters = (3 * num_bins - 1,)
        super().__init__(event_shape, network, split, swap, context_dim, parameters, hidden)
        self.bound = bound

    def change(self, part: Tensor, parameters: Tensor, inverse: bool) -> ValueAndLogDet:
        """Applies the splines, or their inverses."""
        knots = bounded_knots(parameters, self.bound)
        return spline_inverse(part, knots) if inverse else spline(part, knots)
