r"""Conditional normalising flows: a density of data for every context.

.. math:: x = f(\epsilon; c), \qquad \epsilon \sim p_0(\epsilon \mid c), \qquad
   c = \mathrm{encoder}(\text{context}) .
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import FlowDistribution
from pyrogen.distributions._base import as_base
from pyrogen.models.flow import as_real, check_events, checked_levels, sample_events
from pyrogen.transforms import initialize
from pyrogen.transforms._chain import Chain

__all__ = ["ConditionalFlow"]


class ConditionalFlow(PyroModule):
    """Conditional normalising flow as a Pyro model with site ``"x"`` in plate ``"data"``.

    ``model(context, data)`` scores and ``model(context)`` draws one event for each context. Its
    guide is :class:`pyrogen.guides.Empty`; with ``levels`` it has a latent site ``"v"``, as
    :class:`pyrogen.models.Flow` has, and the guides of that.

    Args:
        base: the shape of an event, for a standard normal base; a distribution of batch shape
            ``[]``; or a module that returns one when called with the encoded context, of whose
            leading dimensions its batch shape is.
        transforms: what carries the base to the data, in order of application. Those that take a
            context (``context_dim > 0``, or Pyro's conditional transforms) are given it.
        encoder: network from the context to what base and transforms take; ``None`` hands it on as
            it is.
        levels: the number K of levels of discrete data ``0..K-1``; ``None`` for real data.

    Attributes:
        levels: as given.

    Raises:
        TypeError: if ``base`` or a transform is none, or ``encoder`` is no module.
        ValueError: if neither base nor transforms take a context, or ``levels`` is no integer above
            1.

    References:
        G. Papamakarios, T. Pavlakou, I. Murray, *Masked autoregressive flow for density
        estimation*, 2017, arXiv:1705.07057.

    Example:
        >>> import torch
        >>> from pyrogen.transforms import AffineCoupling
        >>> model = ConditionalFlow(2, [AffineCoupling(2, context_dim=3)])
        >>> context = torch.randn(10, 3)
        >>> model(context).shape
        torch.Size([10, 2])
        >>> model.distribution(context).log_prob(torch.zeros(2)).shape
        torch.Size([10])
    """

    def __init__(
        self,
        base: Any,
        transforms: Iterable[Any] = (),
        encoder: nn.Module | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.levels = checked_levels(levels)
        if encoder is not None and not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}")
        self.base = as_base(base)
        self.transforms = Chain(transforms)
        self.encoder = encoder
        if not self.transforms.conditional and not isinstance(base, nn.Module):
            raise ValueError(
                "transforms: expected at least one that takes a context, got none; without a "
                "context use pyrogen.models.Flow"
            )

    def distribution(self, context: Tensor) -> FlowDistribution:
        """Returns the density for each context.

        Args:
            context: ``[*, *context_shape]``.

        Returns:
            A distribution of batch shape ``[*]``.
        """
        code = self._encode(context)
        flow = FlowDistribution(self.base(code), self.transforms.condition(code))
        return flow.expand(torch.broadcast_shapes(flow.batch_shape, code.shape[:-1]))

    def forward(self, context: Tensor, data: Tensor | None = None) -> Tensor:
        """Scores data, or draws one event for each context.

        Args:
            context: ``[n, *context_shape]``. Outer plates stand to the left of ``n``.
            data: ``[n, *event_shape]``, int64 where there are levels, or ``None`` to draw.

        Returns:
            The value of site ``"x"``, ``[n, *event_shape]``.

        Raises:
            ValueError: if the context is unusable, or data are not as many as contexts, have
                another dtype or event shape or lie where the flow has no density.
        """
        self._check_context(context)
        flow = self.distribution(context)
        if data is not None:
            self._check(data, flow)
        return sample_events(flow, self.levels, flow.batch_shape[-1], data)

    def initialize(self, context: Tensor, data: Tensor) -> None:
        """Data-dependent initialisation of the layers that have one, such as ``ActNorm``.

        Args:
            context: as for :meth:`forward`.
            data: likewise; levels are spread over their bins at random.
        """
        self._check_context(context)
        with torch.no_grad():
            flow = self.distribution(context)
            self._check(data, flow)
            real = as_real(data, flow, self.levels)
            initialize(list(self.transforms), real, self._encode(context))

    def _encode(self, context: Tensor) -> Tensor:
        code: Tensor = context if self.encoder is None else self.encoder(context)
        return code

    def _check(self, data: Tensor, flow: FlowDistribution) -> None:
        check_events(data, flow, self.levels)
        size, got = flow.batch_shape[-1], data.shape[-1 - len(flow.event_shape)]
        if got != size:
            raise ValueError(f"data: expected as many data as contexts, {size}, got {got}")

    def _check_context(self, context: Tensor) -> None:
        shape = getattr(self.encoder, "in_shape", None)
        if shape is None:
            shape = tuple(context.shape[1:]) if isinstance(context, Tensor) else ()
        check_data(context, shape, name="context")
