r"""A variable of two values, up and down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

__all__ = ["Spin"]


class _PlusOrMinusOne(constraints.Constraint):
    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return value.abs() == 1


class Spin(TorchDistribution):
    r"""A variable that is -1 or 1, in a field.

    .. math:: p(s) = \frac{e^{\eta s}}{2 \cosh \eta}, \qquad \mathbb{E}\, s = \tanh \eta

    Args:
        field: :math:`\eta`, of any shape.
        validate_args: check values; ``None`` follows Pyro's setting.

    Example:
        >>> spin = Spin(torch.tensor([0.0, 1.0]))
        >>> spin.log_prob(torch.tensor([1.0, 1.0])).exp()
        tensor([0.5000, 0.8808])
        >>> bool((spin.sample((100,)).abs() == 1).all())
        True
    """

    arg_constraints = {"field": constraints.real}
    support = _PlusOrMinusOne()
    has_enumerate_support = True

    def __init__(self, field: Tensor, validate_args: bool | None = None) -> None:
        self.field = field
        super().__init__(field.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The magnetisation."""
        return self.field.tanh()

    @property
    def variance(self) -> Tensor:
        """One minus the square of the mean."""
        return 1 - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of spins."""
        if self._validate_args:
            self._validate_sample(value)
        return -softplus(-2 * self.field * value)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws spins, in the dtype of the field."""
        with torch.no_grad():
            up = torch.sigmoid(2 * self.field)
            uniform = torch.rand(self.shape(Size(sample_shape)), dtype=up.dtype, device=up.device)
            return torch.where(uniform < up, 1.0, -1.0).to(up.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Down, then up."""
        values = torch.tensor([-1.0, 1.0], dtype=self.field.dtype, device=self.field.device)
        values = values.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Spin:
        """The same law for a larger batch."""
        expanded: Spin = self._get_checked_instance(Spin, _instance)
        expanded.field = self.field.expand(Size(batch_shape))
        super(Spin, expanded).__init__(expanded.field.shape, validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded
