r"""Conditional normalising flows: a density of data for every context.

.. math:: x = f(\epsilon; c), \qquad \epsilon \sim p_0(\epsilon \mid c), \qquad
   c = \mathrm{encoder}(\text{context}) .
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import FlowDistribution
from pyrogen.distributions._base import as_base
from pyrogen.models.flow import check_support, dtype_of
from pyrogen.transforms._chain import Chain

__all__ = ["ConditionalFlow"]


class ConditionalFlow(PyroModule):
    """Conditional normalising flow as a Pyro model with site ``"x"`` in plate ``"data"``.

    ``model(context, data)`` scores and ``model(context)`` draws one event for each context. Its
    guide is :class:`pyrogen.guides.Empty`.

    Args:
        base: the shape of an event, for a standard normal base; a distribution of batch shape
            ``[]``; or a module that returns one when called with the encoded context, of whose
            leading dimensions its batch shape is.
        transforms: what carries the base to the data, in order of application. Those that take a
            context (``context_dim > 0``, or Pyro's conditional transforms) are given it.
        encoder: network from the context to what base and transforms take; ``None`` hands it on as
            it is.

    Raises:
        TypeError: if ``base`` or a transform is none, or ``encoder`` is no module.
        ValueError: if neither base nor transforms take a context.

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
        self, base: Any, transforms: Iterable[Any] = (), encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
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
        code = context if self.encoder is None else self.encoder(context)
        flow = FlowDistribution(self.base(code), self.transforms.condition(code))
        return flow.expand(torch.broadcast_shapes(flow.batch_shape, code.shape[:-1]))

    def forward(self, context: Tensor, data: Tensor | None = None) -> Tensor:
        """Scores data, or draws one event for each context.

        Args:
            context: ``[n, *context_shape]``. Outer plates stand to the left of ``n``.
            data: ``[n, *event_shape]``, or ``None`` to draw.

        Returns:
            The value of site ``"x"``, ``[n, *event_shape]``.

        Raises:
            ValueError: if the context is unusable, or data are not as many as contexts, have
                another dtype or event shape or lie where the flow has no density.
        """
        self._check_context(context)
        flow = self.distribution(context)
        size = flow.batch_shape[-1]
        if data is not None:
            check_data(data, flow.event_shape, dtype=dtype_of(flow))
            got = data.shape[-1 - len(flow.event_shape)]
            if got != size:
                raise ValueError(f"data: expected as many data as contexts, {size}, got {got}")
            check_support(data, flow)
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", flow, obs=data)
        return x

    def _check_context(self, context: Tensor) -> None:
        shape = getattr(self.encoder, "in_shape", None)
        if shape is None:
            shape = tuple(context.shape[1:]) if isinstance(context, Tensor) else ()
        check_data(context, shape, name="context")
