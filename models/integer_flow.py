r"""Integer discrete flows: probabilities of integers by rearrangement.

A bijection :math:`f` of :math:`\mathbb{Z}^D` moves no volume, so

.. math:: p(x) = p_0(f^{-1}(x)), \qquad x \in \mathbb{Z}^D,

and the base :math:`p_0` need only be a product of discretised logistic mixtures. An entropy coder
then stores :math:`x` in :math:`-\log_2 p(x)` bits, without loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import DiscretizedLogisticMixture, FlowDistribution
from pyrogen.models.flow import dtype_of, num_events, probe_event_shape, refuse_num_samples
from pyrogen.transforms._chain import Chain

__all__ = ["IntegerFlow", "LogisticMixtureBase"]


class LogisticMixtureBase(nn.Module):
    """A learned discretised logistic mixture for each element of an event.

    Args:
        event_shape: shape of an event; an integer ``n`` means ``(n,)``.
        num_components: number of components of each mixture.
        loc: where the data are, roughly.
        scale: how far they spread, roughly, > 0: the components start evenly over ``loc ± scale``.

    Raises:
        ValueError: if a size or ``scale`` is not positive.

    Example:
        >>> base = LogisticMixtureBase(3, loc=8.0, scale=4.0)
        >>> base().event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_components: int = 5,
        loc: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if not all(isinstance(n, int) and n > 0 for n in (*shape, num_components)):
            raise ValueError(
                f"event_shape, num_components: expected positive integers, got {shape} and "
                f"{num_components}"
            )
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale: expected a positive finite number, got {scale}")
        spread = torch.linspace(-1, 1, num_components) if num_components > 1 else torch.zeros(1)
        full = (*shape, num_components)
        self.loc = nn.Parameter((loc + scale * spread).expand(full).clone())
        self.log_scale = nn.Parameter(torch.full(full, math.log(scale / 2)))
        self.logits = nn.Parameter(torch.zeros(full))

    def forward(self) -> TorchDistribution:
        """Returns the distribution, of batch shape ``[]``."""
        mixture = DiscretizedLogisticMixture(self.loc, self.log_scale.exp(), self.logits)
        joined: TorchDistribution = mixture.to_event(self.loc.dim() - 1)
        return joined


class IntegerFlow(PyroModule):
    """Integer discrete flow as a Pyro model with site ``"x"`` in plate ``"data"``.

    Data and draws are int64; the value of the site holds them in floating point, as those of Pyro's
    ``Poisson`` do, exact up to 2²⁴ in float32. The guide is :class:`pyrogen.guides.Empty`.

    Args:
        base: the shape of an event, for a :class:`LogisticMixtureBase`; or a module that returns a
            distribution over the integers, of batch shape ``[]``.
        transforms: bijections of the integers, in order of application from base to data, such as
            :class:`pyrogen.transforms.IntegerCoupling` and Pyro's ``Permute``.

    Attributes:
        event_shape: shape of one datum.

    Raises:
        TypeError: if ``base`` is neither shape nor module, or a transform is none.
        ValueError: if shapes do not fit.

    References:
        E. Hoogeboom, J. W. T. Peters, R. van den Berg, M. Welling, *Integer discrete flows and
        lossless compression*, 2019, arXiv:1905.07376.

    Example:
        >>> import torch
        >>> from pyrogen.transforms import IntegerCoupling
        >>> model = IntegerFlow(2, [IntegerCoupling(2), IntegerCoupling(2, swap=True)])
        >>> x = model(None, num_samples=5)
        >>> x.shape, x.dtype
        (torch.Size([5, 2]), torch.int64)
        >>> model.log_prob(x).shape
        torch.Size([5])
    """

    def __init__(self, base: Any, transforms: Iterable[Any] = ()) -> None:
        super().__init__()
        if isinstance(base, (int, tuple, list)):
            base = LogisticMixtureBase(base)
        if not isinstance(base, nn.Module):
            raise TypeError(f"base: expected a shape or a module, got {type(base).__name__}")
        self.base = base
        self.transforms = Chain(transforms)
        self.event_shape = probe_event_shape(self.distribution)

    def distribution(self) -> FlowDistribution:
        """Returns the distribution of a datum, its integers in floating point."""
        return FlowDistribution(self.base(), self.transforms.condition())

    def log_prob(self, data: Tensor) -> Tensor:
        """Log-probability in nats.

        Args:
            data: int64 ``[*, *event_shape]``.

        Returns:
            ``[*]``.
        """
        flow = self.distribution()
        return flow.log_prob(self._as_floating(data, flow))

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws.

        Args:
            data: int64 ``[n, *event_shape]``, or ``None`` to draw. Outer plates stand to the left
                of ``n``.
            num_samples: how many events to draw; ``None`` means one. Only without data.

        Returns:
            ``data``, or int64 ``[num_samples, *event_shape]``.

        Raises:
            ValueError: if data are not int64, have another event shape, are empty or, with
                validation on, too large for the dtype of the flow; or if data and ``num_samples``
                are both given.
        """
        flow, values = self.distribution(), None
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            values = self._as_floating(data, flow)
            size = data.shape[-1 - len(self.event_shape)]
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", flow, obs=values)
        return x.long()

    def _as_floating(self, data: Tensor, flow: FlowDistribution) -> Tensor:
        """The integers in the dtype of the flow, which must hold them exactly."""
        check_data(data, self.event_shape, dtype=torch.int64)
        dtype = dtype_of(flow)
        largest = round(2 / torch.finfo(dtype).eps)
        if is_validation_enabled() and (data.abs() > largest).any():
            raise ValueError(
                f"data: expected integers up to {largest}, as {dtype} holds them exactly, got "
                f"values from {data.min().item()} to {data.max().item()}; subtract an offset, or "
                "convert the model with .double()"
            )
        return data.to(dtype)
