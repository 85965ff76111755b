r"""Bijections whose value and log-determinant come from one pass, and how to run any others so.

A flow needs :math:`y = f(x; c)` and :math:`\log |\det \partial f / \partial x|` together, and both
are by-products of the same network evaluation. torch's ``Transform`` asks for them one after the
other, so that its subclasses keep the first in a cache for the second, which goes stale as soon as
a parameter changes. A :class:`Bijection` computes both at once and caches nothing.

:func:`forward_and_log_det` and :func:`inverse_and_log_det` do the same for every transform of torch
and Pyro: their caches are emptied before, used within one call, and emptied after.

The log-determinant is always that of the *forward* map, with the event dimensions summed out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.util import sum_rightmost
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import (
    ComposeTransform,
    IndependentTransform,
    Transform,
    _InverseTransform,
)

__all__ = [
    "Bijection",
    "Inverse",
    "broadcast_context",
    "clear_caches",
    "forward_and_log_det",
    "forward_through",
    "inverse_and_log_det",
    "inverse_through",
]

ValueAndLogDet = tuple[Tensor, Tensor]


class Bijection(TransformModule, ConditionalTransform):
    r"""A map :math:`y = f(x; c)` with value and log-determinant computed together.

    A subclass defines :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`. With
    ``context_dim = 0`` it is a transform like any other of torch or Pyro; with ``context_dim > 0``
    it becomes one by :meth:`condition`, as Pyro's conditional transforms do.

    Args:
        event_dim: number of rightmost dimensions that one event has; domain and codomain are then
            real tensors of that many dimensions. A subclass with another domain sets it itself.
        context_dim: size of the context, 0 for none.

    Raises:
        ValueError: if ``event_dim`` or ``context_dim`` is negative.
    """

    bijective = True
    domain: constraints.Constraint
    codomain: constraints.Constraint

    def __init__(self, event_dim: int = 1, context_dim: int = 0) -> None:
        super().__init__(cache_size=0)
        if event_dim < 0 or context_dim < 0:
            raise ValueError(
                "event_dim, context_dim: expected non-negative integers, got "
                f"{event_dim}, {context_dim}"
            )
        self.context_dim = context_dim
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        r"""Maps ``x`` forward.

        Args:
            x: ``[*batch, *event]``.
            context: ``[*batch, context_dim]``, or ``None`` where ``context_dim`` is 0. Its batch
                dimensions broadcast against those of ``x``.

        Returns:
            ``y = f(x; c)`` and :math:`\log |\det \partial y / \partial x|`, shape ``[*batch]``.
        """

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        r"""Maps ``y`` back.

        Args:
            y: ``[*batch, *event]``.
            context: as for :meth:`forward_and_log_det`.

        Returns:
            ``x`` such that ``y = f(x; c)``, and :math:`\log |\det \partial y / \partial x|` (of the
            forward map) there, shape ``[*batch]``.
        """

    def forward_value(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The value alone; overridden where it costs less than with its log-determinant."""
        return self.forward_and_log_det(x, context)[0]

    def inverse_value(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """The value alone; overridden where it costs less than with its log-determinant."""
        return self.inverse_and_log_det(y, context)[0]

    def initialize(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Data-dependent initialisation, where there is any; returns the data mapped back.

        Args:
            y: a batch of data, ``[n, *event]``.
            context: as for :meth:`forward_and_log_det`.

        Returns:
            ``x``, what the transform before this one is to be initialised by.
        """
        with torch.no_grad():
            return self.inverse_value(y, context)

    def condition(self, context: Tensor) -> Transform:
        """The transform for one context: itself where ``context_dim`` is 0.

        Args:
            context: ``[*batch, context_dim]``. A distribution of the conditioned transform has at
                least these batch dimensions.

        Raises:
            ValueError: if the last dimension of ``context`` is not ``context_dim``.
        """
        return self if self.context_dim == 0 else _Conditioned(self, context)

    @property
    def inv(self) -> Bijection:
        """The inverse, as a module with the same parameters."""
        return Inverse(self)

    def with_cache(self, cache_size: int = 1) -> Bijection:
        """Itself: nothing is ever cached."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        self.refuse_unconditioned()
        return self.forward_value(x)

    def _inverse(self, y: Tensor) -> Tensor:
        self.refuse_unconditioned()
        return self.inverse_value(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant of the forward map at ``x``, shape ``[*batch]``."""
        self.refuse_unconditioned()
        return self.forward_and_log_det(x)[1]

    def refuse_unconditioned(self) -> None:
        """Raises a ``ValueError`` if this transform wants a context."""
        if self.context_dim:
            raise _no_context(self)

    def __repr__(self) -> str:
        text: str = nn.Module.__repr__(self)
        return text


class _Conditioned(Transform):
    """A conditional bijection together with its context."""

    bijective = True

    def __init__(self, transform: Bijection, context: Tensor) -> None:
        super().__init__(cache_size=0)
        if context.dim() == 0 or context.shape[-1] != transform.context_dim:
            raise ValueError(
                f"{type(transform).__name__}: expected a context of shape "
                f"[*, {transform.context_dim}], got {list(context.shape)}"
            )
        self.transform = transform
        self.context = context
        self.domain, self.codomain = transform.domain, transform.codomain

    def forward_and_log_det(self, x: Tensor) -> ValueAndLogDet:
        return self.transform.forward_and_log_det(x, self.context)

    def inverse_and_log_det(self, y: Tensor) -> ValueAndLogDet:
        return self.transform.inverse_and_log_det(y, self.context)

    def _call(self, x: Tensor) -> Tensor:
        return self.transform.forward_value(x, self.context)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform.inverse_value(y, self.context)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[1]

    def with_cache(self, cache_size: int = 1) -> _Conditioned:
        return self

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """The batch shape of the result covers that of the context."""
        return self._broadcast(self.transform.forward_shape(Size(shape)), self.codomain)

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return self._broadcast(self.transform.inverse_shape(Size(shape)), self.domain)

    def _broadcast(self, shape: Size, constraint: constraints.Constraint) -> Size:
        cut = len(shape) - constraint.event_dim
        return Size((*torch.broadcast_shapes(shape[:cut], self.context.shape[:-1]), *shape[cut:]))


class Inverse(Bijection):
    r"""The inverse of a transform, as a module: :math:`y = f^{-1}(x; c)`.

    The parameters of the transform stay registered, which those of torch's ``transform.inv`` do
    not. A masked autoregressive flow inverted so is the inverse autoregressive flow.

    Args:
        transform: a :class:`Bijection` or any transform of torch or Pyro.

    Raises:
        TypeError: if ``transform`` is no transform.

    Example:
        >>> double = torch.distributions.AffineTransform(0.0, 2.0)
        >>> half = Inverse(double)
        >>> half(torch.tensor(3.0))
        tensor(1.5000)
        >>> half.inv is double
        True
    """

    def __init__(self, transform: Transform) -> None:
        if not isinstance(transform, Transform):
            raise TypeError(
                f"transform: expected a torch.distributions.Transform, got "
                f"{type(transform).__name__}; Pyro's conditional transforms have an .inv of their "
                "own"
            )
        super().__init__(context_dim=getattr(transform, "context_dim", 0))
        self.transform = transform
        self.domain, self.codomain = transform.codomain, transform.domain

    @property
    def inv(self) -> Any:
        """The transform that this one inverts."""
        return self.transform

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps back by the transform."""
        y, log_det = inverse_and_log_det(self.transform, x, context)
        return y, -log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps forward by the transform."""
        x, log_det = forward_and_log_det(self.transform, y, context)
        return x, -log_det

    def forward_value(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps back by the transform."""
        if isinstance(self.transform, Bijection):
            return self.transform.inverse_value(x, context)
        return super().forward_value(x, context)

    def inverse_value(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps forward by the transform."""
        if isinstance(self.transform, Bijection):
            return self.transform.forward_value(y, context)
        return super().inverse_value(y, context)

    def forward_shape(self, shape: Sequence[int]) -> Any:
        """Shape of ``y``, given that of ``x``."""
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        """Shape of ``x``, given that of ``y``."""
        return self.transform.forward_shape(shape)


def forward_and_log_det(
    transform: Transform, x: Tensor, context: Tensor | None = None
) -> ValueAndLogDet:
    """Maps ``x`` forward by any transform, in one pass and without stale caches.

    Args:
        transform: of this library, of torch or of Pyro.
        x: ``[*batch, *event]``.
        context: for a :class:`Bijection` with ``context_dim > 0``; others take no notice.

    Returns:
        ``y`` and the log-determinant of the forward map, with the event dimensions of the
        transform's domain summed out.
    """
    if isinstance(transform, Bijection) and transform.context_dim:
        return _conditioned(transform, context).forward_and_log_det(x)
    if isinstance(transform, (Bijection, _Conditioned)):
        return transform.forward_and_log_det(x)
    if isinstance(transform, _InverseTransform):
        y, log_det = inverse_and_log_det(transform.inv, x, context)
        return y, -log_det
    if isinstance(transform, ComposeTransform):
        return forward_through(transform.parts, x, transform.domain.event_dim, context)
    if isinstance(transform, IndependentTransform):
        y, log_det = forward_and_log_det(transform.base_transform, x, context)
        return y, sum_rightmost(log_det, transform.reinterpreted_batch_ndims)
    clear_caches(transform)
    y = transform(x)
    log_det = transform.log_abs_det_jacobian(x, y)
    clear_caches(transform)
    return y, log_det


def inverse_and_log_det(
    transform: Transform, y: Tensor, context: Tensor | None = None
) -> ValueAndLogDet:
    """Maps ``y`` back by any transform, in one pass and without stale caches.

    Args:
        transform: of this library, of torch or of Pyro.
        y: ``[*batch, *event]``.
        context: for a :class:`Bijection` with ``context_dim > 0``; others take no notice.

    Returns:
        ``x`` and the log-determinant of the forward map, with the event dimensions of the
        transform's domain summed out.
    """
    if isinstance(transform, Bijection) and transform.context_dim:
        return _conditioned(transform, context).inverse_and_log_det(y)
    if isinstance(transform, (Bijection, _Conditioned)):
        return transform.inverse_and_log_det(y)
    if isinstance(transform, _InverseTransform):
        x, log_det = forward_and_log_det(transform.inv, y, context)
        return x, -log_det
    if isinstance(transform, ComposeTransform):
        return inverse_through(transform.parts, y, transform.codomain.event_dim, context)
    if isinstance(transform, IndependentTransform):
        x, log_det = inverse_and_log_det(transform.base_transform, y, context)
        return x, sum_rightmost(log_det, transform.reinterpreted_batch_ndims)
    clear_caches(transform)
    x = transform.inv(y)
    log_det = transform.log_abs_det_jacobian(x, y)
    clear_caches(transform)
    return x, log_det


def forward_through(
    transforms: Iterable[Transform], x: Tensor, event_dim: int, context: Tensor | None = None
) -> ValueAndLogDet:
    """Maps ``x``, whose events have ``event_dim`` dimensions, through transforms in order."""
    total = x.new_zeros(x.shape[: x.dim() - event_dim])
    for transform in transforms:
        x, log_det = forward_and_log_det(transform, x, context)
        total = total + sum_rightmost(log_det, event_dim - transform.domain.event_dim)
        event_dim += transform.codomain.event_dim - transform.domain.event_dim
    return x, total


def inverse_through(
    transforms: Sequence[Transform], y: Tensor, event_dim: int, context: Tensor | None = None
) -> ValueAndLogDet:
    """Maps ``y``, whose events have ``event_dim`` dimensions, back through transforms."""
    total = y.new_zeros(y.shape[: y.dim() - event_dim])
    for transform in reversed(transforms):
        y, log_det = inverse_and_log_det(transform, y, context)
        total = total + sum_rightmost(log_det, event_dim - transform.codomain.event_dim)
        event_dim += transform.domain.event_dim - transform.codomain.event_dim
    return y, total


def broadcast_context(
    x: Tensor, context: Tensor | None, event_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Expands an event tensor and its context to the same batch shape.

    Args:
        x: ``[*batch, *event]``.
        context: ``[*batch, context_dim]`` or ``None``.
        event_dim: number of event dimensions of ``x``.
    """
    if context is None:
        return x, None
    cut = x.dim() - event_dim
    batch = torch.broadcast_shapes(x.shape[:cut], context.shape[:-1])
    return x.expand(*batch, *x.shape[cut:]), context.expand(*batch, context.shape[-1])


def clear_caches(transform: Transform) -> None:
    """Empties the caches of a transform of torch or Pyro and of the transforms it is made of."""
    attributes = vars(transform)
    for name in attributes:
        if name.startswith(("_cached_", "_cache_log_det")):
            attributes[name] = (None, None) if name == "_cached_x_y" else None
    parts = [value for name, value in attributes.items() if name != "_inv"]
    for part in [
        *parts,
        *attributes.get("transforms", ()),
        *attributes.get("_modules", {}).values(),
    ]:
        if isinstance(part, Transform):
            clear_caches(part)


def _conditioned(transform: Bijection, context: Tensor | None) -> _Conditioned:
    if context is None:
        raise _no_context(transform)
    return _Conditioned(transform, context)


def _no_context(transform: Bijection) -> ValueError:
    return ValueError(
        f"{type(transform).__name__}: expected a context of size {transform.context_dim}, got "
        "none; use transform.condition(context)"
    )
