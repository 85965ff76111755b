r"""Normalising flows: densities by change of variables.

A simple base distribution is carried by a bijection :math:`f` onto the data,

.. math:: \epsilon \sim p_0, \qquad x = f(\epsilon), \qquad
   \log p(x) = \log p_0(\epsilon) - \log \left| \det \frac{\partial f}{\partial \epsilon} \right| .

Levels :math:`x \in \{0, \ldots, K-1\}^D` (grey values) have no density. For them the flow is the
density of a latent value that is rounded down to a level,

.. math:: v \sim p(v), \qquad x = \lfloor K v \rfloor, \qquad
   p(x) = \int_{[x/K,\, (x+1)/K]} p(v)\, dv ,

an ordinary latent-variable model. A guide that samples :math:`v` given :math:`x` makes the ELBO the
dequantisation bound, and importance weighting tightens it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen.checks import check_data
from pyrogen.distributions import FlowDistribution, Quantized
from pyrogen.distributions._base import as_base
from pyrogen.transforms import initialize
from pyrogen.transforms._chain import Chain
from pyrogen.transforms._moved import tensors

__all__ = ["Flow", "bits_per_dimension"]


class Flow(PyroModule):
    """Normalising flow as a Pyro model with site ``"x"`` in plate ``"data"``.

    Its likelihood is exact, so its guide is :class:`pyrogen.guides.Empty`. With ``levels`` it has a
    latent site ``"v"`` besides, and its guide is :class:`pyrogen.guides.UniformDequantization` or
    :class:`pyrogen.guides.VariationalDequantization`.

    Args:
        base: the shape of an event (``n`` means ``(n,)``), for a standard normal base; a
            distribution of batch shape ``[]``, which stays fixed; or a module that returns one when
            called without arguments, whose parameters are trained.
        transforms: what carries the base to the data, in order of application: any of
            :mod:`pyrogen.transforms`, Pyro's or torch's.
        levels: the number K of levels of discrete data ``0..K-1``; ``None`` for real data. The flow
            is then a density of values that are cut into K levels between 0 and 1.

    Attributes:
        base: module that returns the base distribution.
        transforms: the transforms, to be iterated over.
        event_shape: shape of one datum.
        levels: as given.

    Raises:
        TypeError: if ``base`` or a transform is none.
        ValueError: if a transform needs a context, shapes do not fit, or ``levels`` is no integer
            above 1.

    References:
        D. J. Rezende, S. Mohamed, *Variational inference with normalizing flows*, 2015,
        arXiv:1505.05770.
        L. Theis, A. van den Oord, M. Bethge, *A note on the evaluation of generative models*, 2016,
        arXiv:1511.01844.
        J. Ho et al., *Flow++*, 2019, arXiv:1902.00275.

    Example:
        >>> import torch
        >>> from pyrogen.transforms import AffineCoupling
        >>> model = Flow(2, [AffineCoupling(2), AffineCoupling(2, swap=True)])
        >>> model(None, num_samples=100).shape
        torch.Size([100, 2])
        >>> model.distribution().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self, base: Any, transforms: Iterable[Any] = (), levels: int | None = None
    ) -> None:
        super().__init__()
        self.levels = checked_levels(levels)
        self.base = as_base(base)
        self.transforms = Chain(transforms)
        if self.transforms.conditional:
            raise ValueError(
                "transforms: expected transforms without a context, got a conditional one; use "
                "pyrogen.models.ConditionalFlow"
            )
        self.event_shape = probe_event_shape(self.distribution)

    def distribution(self) -> FlowDistribution:
        """Returns the density: of a datum or, with ``levels``, of ``"v"``."""
        return FlowDistribution(self.base(), self.transforms.condition())

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws.

        Args:
            data: ``[n, *event_shape]``, int64 where there are levels, or ``None`` to draw. Outer
                plates stand to the left of ``n``.
            num_samples: how many events to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, *event_shape]``.

        Raises:
            ValueError: if data have another dtype, event shape or values than the flow scores, are
                empty or not finite; or if data and ``num_samples`` are both given.
        """
        flow = self.distribution()
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            check_events(data, flow, self.levels)
            size = data.shape[-1 - len(self.event_shape)]
        return sample_events(flow, self.levels, size, data)

    def initialize(self, data: Tensor) -> None:
        """Data-dependent initialisation of the layers that have one, such as ``ActNorm``.

        Args:
            data: a batch as for :meth:`forward`; levels are spread over their bins at random.
        """
        flow = self.distribution()
        check_events(data, flow, self.levels)
        initialize(list(self.transforms), as_real(data, flow, self.levels))


def bits_per_dimension(
    nats: float | Tensor, event_shape: int | Sequence[int], levels: int | None = None
) -> Any:
    r"""Code length of a datum in bits per dimension, :math:`L / (D \ln 2)`.

    Args:
        nats: :math:`L`, the negative log-likelihood of one datum or a bound on it, in nats.
        event_shape: shape of one datum, of :math:`D` elements in all; ``n`` means ``(n,)``.
        levels: K, if ``nats`` come from a density of data that were K levels divided by K. The
            density of the levels themselves is K times smaller in each dimension:
            :math:`\log_2 K` bits more. ``None`` where ``nats`` speak of the data as they are, as
            the loss of a :class:`Flow` with levels does.

    Returns:
        A number or tensor as ``nats`` are.

    Raises:
        ValueError: if a size is not positive or ``levels`` is below 2.

    Example:
        >>> import math
        >>> bits_per_dimension(64 * math.log(17), (8, 8))  # a uniform law of 17 levels
        4.087...
        >>> bits_per_dimension(0.0, (8, 8), levels=16)  # density 1 on the unit cube
        4.0
    """
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if not all(size > 0 for size in shape):
        raise ValueError(f"event_shape: expected positive sizes, got {shape}")
    if levels is not None and levels < 2:
        raise ValueError(f"levels: expected an integer above 1 or None, got {levels!r}")
    offset = 0.0 if levels is None else math.log2(levels)
    return nats / (math.prod(shape) * math.log(2)) + offset


def probe_event_shape(distribution: Any) -> tuple[int, ...]:
    """Returns the event shape of what a flow's ``distribution()`` makes.

    Raises:
        ValueError: if base and transforms do not fit, or leave a batch shape.
    """
    with torch.no_grad():
        try:
            flow = distribution()
            shape, batch = tuple(flow.event_shape), list(flow.batch_shape)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"transforms: expected ones that fit the base and each other, got an error: {error}"
            ) from error
    if batch:
        raise ValueError(
            f"base: expected batch shape [] under these transforms, got {batch}; make the batch "
            "part of the event with .to_event"
        )
    return shape


def dtype_of(flow: FlowDistribution) -> torch.dtype:
    """Returns the dtype of what the flow draws, that of the parameters of its base."""
    dtypes = (t.dtype for t in tensors(flow.base_dist) if t.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


def checked_levels(levels: Any) -> int | None:
    """Returns a number of levels, or ``None``.

    Raises:
        ValueError: if it is no integer above 1.
    """
    if levels is not None and (not isinstance(levels, int) or levels < 2):
        raise ValueError(f"levels: expected an integer above 1 or None, got {levels!r}")
    return levels


def sample_events(
    flow: FlowDistribution, levels: int | None, size: int, data: Tensor | None
) -> Tensor:
    """Samples site ``"x"`` in plate ``"data"``; with levels, ``"v"`` before it."""
    with pyro.plate("data", size, dim=-1):
        if levels is None:
            x: Tensor = pyro.sample("x", flow, obs=data)
        else:
            quantized = Quantized(pyro.sample("v", flow), levels)
            x = pyro.sample("x", quantized.to_event(len(flow.event_shape)), obs=data)
    return x


def as_real(data: Tensor, flow: FlowDistribution, levels: int | None) -> Tensor:
    """Returns data that the flow is a density of; levels are spread over their bins at random."""
    if levels is None:
        return data
    real = data.to(dtype_of(flow))
    return (real + torch.rand_like(real)) / levels


def check_events(data: Tensor, flow: FlowDistribution, levels: int | None) -> None:
    """Checks a batch of data, levels or real.

    Raises:
        ValueError: if they are not what the flow, or its levels, can score.
    """
    if levels is None:
        check_data(data, flow.event_shape, dtype=dtype_of(flow))
        check_support(data, flow)
    else:
        check_levels(data, flow.event_shape, levels)


def check_support(data: Tensor, flow: FlowDistribution) -> None:
    """Checks that every datum lies where the flow has a density; reads values.

    Raises:
        ValueError: otherwise.
    """
    if is_validation_enabled() and not (inside := flow.support.check(data)).all():
        raise ValueError(
            f"data: expected events in the support of the flow, {flow.support}, got "
            f"{int((~inside).sum())} of {inside.numel()} outside, with values from "
            f"{data.min().item():.6g} to {data.max().item():.6g}; rescale the data"
        )


def check_levels(data: Tensor, event_shape: Sequence[int], levels: int) -> None:
    """Checks int64 data ``0..levels-1``.

    Raises:
        ValueError: if they are not.
    """
    check_data(data, event_shape, dtype=torch.int64)
    if is_validation_enabled() and not ((data >= 0) & (data < levels)).all():
        raise ValueError(
            f"data: expected levels 0..{levels - 1}, got values from {data.min().item()} to "
            f"{data.max().item()}; number the levels from 0"
        )


def num_events(num_samples: int | None) -> int:
    """Returns how many events to draw, one if not said.

    Raises:
        ValueError: if it is no positive integer.
    """
    if num_samples is None:
        return 1
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples: expected a positive integer, got {num_samples!r}")
    return num_samples


def refuse_num_samples(num_samples: int | None) -> None:
    """Raises ValueError if a number of samples is given together with data."""
    if num_samples is not None:
        raise ValueError(
            f"num_samples: expected None with data, got {num_samples}; pass data=None to draw"
        )
