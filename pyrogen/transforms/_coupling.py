"""Coupling: one part of an event is changed in a way that the other part, kept, decides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrogen.nn import MLP
from pyrogen.nn.shapes import as_shape, batch_shape
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet, broadcast_context

__all__ = ["Coupling"]


class Coupling(Bijection):
    """What couplings share: the division of an event, and the network on the part that is kept.

    Events are divided along their first dimension: the elements of a vector, the channels of an
    image. A context is joined to the part that is kept, at every position of an image.

    Args:
        event_shape: of one event; an integer ``n`` means ``(n,)``.
        network: maps ``[*, kept + context_dim, *rest]`` to ``[*, changed, *rest, *parameters]``.
            ``None`` makes a :class:`~pyrogen.nn.MLP` that returns zeros at first.
        split: how many elements come first; ``None`` means half of them.
        swap: keep the elements that come last instead of those that come first.
        context_dim: size of the context, 0 for none.
        parameters: shape of the parameters of one changed element.
        hidden: widths of the hidden layers of the network made.

    Raises:
        TypeError: if ``network`` is not callable.
        ValueError: if the size to be divided is odd and ``split`` is not given, or if ``split``
            leaves one part empty.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        network: Callable[..., Any] | None,
        split: int | None,
        swap: bool,
        context_dim: int,
        parameters: tuple[int, ...] = (),
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        self_shape = as_shape(event_shape, "event_shape")
        super().__init__(event_dim=len(self_shape), context_dim=context_dim)
        self.event_shape = self_shape
        self.split = _split(self_shape[0], split)
        self.swap = swap
        rest = self_shape[1:]
        sizes = (self.split, self_shape[0] - self.split)
        kept, changed = reversed(sizes) if swap else sizes
        self._output_shape = (changed, *rest, *parameters)
        if network is None:
            network = _identity((kept + context_dim, *rest), self._output_shape, hidden)
        if not callable(network):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        self.network = network

    @abstractmethod
    def change(self, part: Tensor, parameters: Tensor, inverse: bool) -> ValueAndLogDet:
        """Maps the changed part, forward or back.

        Args:
            part: ``[*, changed, *rest]``.
            parameters: what the network returns, ``[*, changed, *rest, *parameters]``.
            inverse: which way.

        Returns:
            The part mapped, and the log-determinant of the forward map for each of its elements.
        """

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps ``[*batch, *event_shape]`` forward."""
        return self._map(x, context, inverse=False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps ``[*batch, *event_shape]`` back, at the same cost."""
        return self._map(y, context, inverse=True)

    def _map(self, value: Tensor, context: Tensor | None, inverse: bool) -> ValueAndLogDet:
        batch_shape(value, self.event_shape, type(self).__name__)
        value, context = broadcast_context(value, context, len(self.event_shape))
        dim = -len(self.event_shape)
        first = value.narrow(dim, 0, self.split)
        last = value.narrow(dim, self.split, self.event_shape[0] - self.split)
        kept, changed = (last, first) if self.swap else (first, last)
        parameters = self._predict(kept, context, changed)
        mapped, log_det = self.change(changed, parameters, inverse)
        parts = [mapped, kept] if self.swap else [kept, mapped]
        return torch.cat(parts, dim=dim), log_det.flatten(dim).sum(-1)

    def _predict(self, kept: Tensor, context: Tensor | None, changed: Tensor) -> Tensor:
        rest = self.event_shape[1:]
        if context is not None:
            context = context.reshape(*context.shape, *(1 for _ in rest))
            joined = context.expand(*context.shape[: context.dim() - len(rest)], *rest)
            kept = torch.cat([kept, joined], dim=-len(self.event_shape))
        parameters: Tensor = self.network(kept)
        batch = changed.shape[: changed.dim() - len(self.event_shape)]
        if parameters.shape != (*batch, *self._output_shape):
            raise ValueError(
                f"{type(self).__name__}: expected a network that maps {list(kept.shape)} to "
                f"{[*batch, *self._output_shape]}, got {list(parameters.shape)}"
            )
        return parameters


def _split(size: int, split: int | None) -> int:
    if size < 2:
        raise ValueError(f"event_shape: expected at least 2 elements to be divided, got {size}")
    if split is None:
        if size % 2:
            raise ValueError(
                f"event_shape: expected an even number to be halved, got {size}; pass split= to "
                "divide it unevenly"
            )
        split = size // 2
    if not 0 < split < size:
        raise ValueError(f"split: expected an integer from 1 to {size - 1}, got {split}")
    return split


def _identity(in_shape: tuple[int, ...], out_shape: tuple[int, ...], hidden: Sequence[int]) -> MLP:
    """A network whose last layer is zero, so that a flow begins as the identity."""
    network = MLP(in_shape, out_shape, hidden)
    nn.init.zeros_(network.layers[-1].weight)  # type: ignore[arg-type]
    return network
