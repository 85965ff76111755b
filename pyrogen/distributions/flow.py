r"""A normalising flow as a distribution: a base density seen through bijections.

.. math:: y = f(x), \quad x \sim p_0, \qquad
   \log p(y) = \log p_0(x) - \log \left|\det \frac{\partial f}{\partial x}\right| .

Pyro's ``TransformedDistribution`` maps a value back first and asks for the log-determinant second,
and scores its own draws by mapping them back. Here the density of a value takes one inverse pass,
and a draw is scored by the forward pass it was made in. So a transform that has no inverse
(planar), or a slow one (inverse autoregressive), serves as a guide, and any other saves a pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions.transforms import Transform

from pyrogen.transforms._bijection import (
    Bijection,
    clear_caches,
    forward_through,
    inverse_through,
)
from pyrogen.transforms._contents import contents

__all__ = ["FlowDistribution"]


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of a base draw after bijections.

    ``rsample`` keeps the log-density of its draw, which the forward pass yields, and ``log_prob``
    of that very tensor returns it, as long as no parameter, no setting of ``train`` and no gradient
    mode has changed. Its gradient runs through the draw's own history; for the gradient with
    respect to the draw itself, score a copy: ``flow.log_prob(y.clone())``.

    Args:
        base: distribution of the latent value. Its batch dimensions on the right become event
            dimensions where the first transform wants more of these.
        transforms: from base to data, each of this library, of torch or of Pyro. Conditional ones
            are given conditioned: ``transform.condition(context)``.
        validate_args: check values against the support; ``None`` follows Pyro's setting.

    Raises:
        TypeError: if ``transforms`` holds something else than transforms.
        ValueError: if a transform lacks its context or has no log-determinant.

    References:
        D. J. Rezende, S. Mohamed, *Variational inference with normalizing flows*, 2015,
        arXiv:1505.05770.

    Example:
        >>> planar = dist.transforms.Planar(3)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [planar])
        >>> y = flow.rsample((5,))
        >>> flow.log_prob(y).shape  # though a planar transform has no inverse
        torch.Size([5])
    """

    _memo: _Memo | None = None

    def __init__(
        self,
        base: dist.TorchDistribution,
        transforms: Transform | Iterable[Transform],
        validate_args: bool | None = None,
    ) -> None:
        parts = [transforms] if isinstance(transforms, Transform) else list(transforms)
        for part in parts:
            _check_transform(part)
        super().__init__(base, parts, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """Returns the distribution with its base expanded to ``batch_shape``."""
        new: FlowDistribution = self._get_checked_instance(FlowDistribution, _instance)
        shape = Size(batch_shape) + self.event_shape
        for transform in reversed(self.transforms):
            shape = transform.inverse_shape(shape)
        new.base_dist = self.base_dist.expand(shape[: len(shape) - len(self.base_dist.event_shape)])
        new.transforms = self.transforms
        # Past the constructors that inspect a base and its transforms.
        torch.distributions.Distribution.__init__(
            new, Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws without gradient, shape ``[*sample_shape, *batch_shape, *event_shape]``."""
        with torch.no_grad():
            x: Tensor = self.base_dist.sample(Size(sample_shape))
            for transform in self.transforms:
                clear_caches(transform)
                x = transform(x)
                clear_caches(transform)
            return x

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws with the pathwise gradient, ``[*sample_shape, *batch_shape, *event_shape]``."""
        value, log_prob = self.rsample_with_log_prob(sample_shape)
        self._memo = _Memo.of(value, log_prob, self)
        return value

    def rsample_with_log_prob(self, sample_shape: Sequence[int] = Size()) -> tuple[Tensor, Tensor]:
        """A draw and its log-density, by one forward pass.

        Args:
            sample_shape: shape of independent draws.

        Returns:
            ``[*sample_shape, *batch_shape, *event_shape]`` and ``[*sample_shape, *batch_shape]``.
        """
        x = self.base_dist.rsample(Size(sample_shape))
        y, log_det = forward_through(self.transforms, x, len(self.base_dist.event_shape))
        return y, self.base_dist.log_prob(x) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, by one inverse pass; by none for the last draw of ``rsample``.

        Args:
            value: ``[*, *event_shape]``.

        Returns:
            The broadcast shape of the leading dimensions of ``value`` and ``batch_shape``.
        """
        if self._memo is not None and self._memo.holds(value, self):
            return self._memo.log_prob
        if self._validate_args:
            self._validate_sample(value)
        x, log_det = inverse_through(self.transforms, value, len(self.event_shape))
        log_prob: Tensor = self.base_dist.log_prob(x) - log_det
        return log_prob

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_memo"}


def _check_transform(transform: Any) -> None:
    if not isinstance(transform, Transform):
        raise TypeError(
            f"transforms: expected torch.distributions.Transform, got {type(transform).__name__}; "
            "give conditional transforms conditioned: transform.condition(context)"
        )
    if isinstance(transform, Bijection):
        transform.refuse_unconditioned()
    if not transform.bijective:
        raise ValueError(
            f"transforms: expected bijections, got {type(transform).__name__}, which has no "
            "log-determinant"
        )


@dataclass(frozen=True)
class _Memo:
    """The log-density of one draw, and all that it was computed from."""

    value: weakref.ref[Tensor]
    log_prob: Tensor
    origin: _Origin

    @staticmethod
    def of(value: Tensor, log_prob: Tensor, flow: FlowDistribution) -> _Memo | None:
        origin = _origin(value, log_prob, flow)
        return None if origin is None else _Memo(weakref.ref(value), log_prob, origin)

    def holds(self, value: Tensor, flow: FlowDistribution) -> bool:
        if value is not self.value():
            return False
        origin = _origin(value, self.log_prob, flow)
        if origin is None or origin[1] != self.origin[1]:
            return False
        pairs = zip(origin[0], self.origin[0], strict=False)
        return len(origin[0]) == len(self.origin[0]) and all(one is other for one, other in pairs)


_Origin = tuple[list[Tensor], list[Any]]


def _origin(value: Tensor, log_prob: Tensor, flow: FlowDistribution) -> _Origin | None:
    """The tensors that a log-density comes from; how often each was changed in place, and the
    flags and numbers beside them. ``None`` where tensors may change unseen (inference mode).
    """
    leaves = list(contents(flow.base_dist, flow.transforms))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(tensor.is_inference() for tensor in [value, *tensors]):
        return None
    constants = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    versions = [tensor._version for tensor in [value, log_prob, *tensors]]
    # A draw without gradient may be made a leaf that wants one.
    modes = torch.is_grad_enabled(), value.requires_grad
    return tensors, [*modes, *versions, *constants]
