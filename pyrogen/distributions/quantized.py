r"""The level that a continuous value falls into.

The unit interval is cut into :math:`K` equal bins, the first and last of which reach to infinity:

.. math:: x = \min(\max(\lfloor K v \rfloor, 0), K - 1) .

Given :math:`v` the level is certain, so the log-probability is 0 or :math:`-\infty`. With a density
of :math:`v` this makes a distribution of levels, whose probabilities are integrals over the bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Quantized"]


class Quantized(TorchDistribution):
    """Integer levels ``0..levels - 1``, each certain given a continuous ``value``.

    A value on the edge of a bin, up to rounding, counts for both of its neighbours, so that
    ``(x + u) / levels`` with ``u`` in [0, 1] is always within the bin of ``x``.

    Args:
        value: real, shape ``batch_shape``, in units in which the levels cover [0, 1].
        levels: the number of levels, K.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if ``levels`` is no integer above 1, or ``value`` is not of floating point;
            with validation on, if a scored value is no level.

    References:
        J. Ho et al., *Flow++: improving flow-based generative models with variational
        dequantization and architecture design*, 2019, arXiv:1902.00275.

    Example:
        >>> import torch
        >>> levels = Quantized(torch.tensor([0.1, 0.6, 1.0]), levels=4)
        >>> levels.sample()
        tensor([0, 2, 3])
        >>> levels.log_prob(torch.tensor([0, 1, 3]))
        tensor([0., -inf, 0.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"value": constraints.real}
    has_rsample = False

    def __init__(self, value: Tensor, levels: int, validate_args: bool | None = None) -> None:
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels: expected an integer above 1, got {levels!r}")
        if not value.is_floating_point():
            raise ValueError(f"value: expected floating point, got {value.dtype}")
        self.value, self.levels = value, levels
        super().__init__(value.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The integers ``0..levels - 1``."""
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Quantized:
        """Returns the distribution with its values expanded to ``batch_shape``."""
        new: Quantized = self._get_checked_instance(Quantized, _instance)
        new.value, new.levels = self.value.expand(Size(batch_shape)), self.levels
        super(Quantized, new).__init__(new.value.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Returns the levels, int64 of shape ``[*sample_shape, *batch_shape]``."""
        level = (self.value.detach() * self.levels).floor().clamp(0, self.levels - 1)
        return level.long().expand(self._extended_shape(Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns 0 where ``value`` is the level, else -inf, of the broadcast shape."""
        if self._validate_args:
            self._validate_sample(value)
        position, last = self.value.detach() * self.levels, self.levels - 1
        # (x + u) / K * K is off by at most 1.5 roundings of a number up to K.
        rounding = 2 * torch.finfo(position.dtype).eps * self.levels
        above = (position >= value - rounding) | (value == 0)
        below = (position <= value + 1 + rounding) | (value == last)
        zero = position.new_zeros(())
        return torch.where(above & below, zero, -torch.inf)
