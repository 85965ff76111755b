r"""A normal law cut into levels, as the last step of a diffusion of grey values needs it.

Levels :math:`x \in \{0, \ldots, K - 1\}` stand for the values :math:`z = 2x / (K - 1) - 1` between
-1 and 1. Each has the probability of the values that are nearest to it, the outermost those of all
beyond,

.. math:: p(x) = \Phi\!\left(\frac{z + h - \mu}{\sigma}\right)
   - \Phi\!\left(\frac{z - h - \mu}{\sigma}\right), \qquad h = \frac{1}{K - 1},

where :math:`\Phi = 0` below the first and 1 above the last. The difference is computed in the tail
where both terms are small, from their logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.special import log_ndtr

from pyrogen.distributions.discretized_logistic import log1mexp

__all__ = ["DiscretizedNormal"]


class DiscretizedNormal(TorchDistribution):
    r"""A normal distribution rounded to levels ``0..K-1`` between -1 and 1.

    Args:
        loc: means :math:`\mu`, on the scale from -1 to 1.
        scale: standard deviations :math:`\sigma > 0`, likewise.
        levels: K.
        validate_args: check arguments and values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if ``levels`` is no integer above 1; with validation on, if a scale is not
            positive or a value is no level.

    References:
        J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020,
        arXiv:2006.11239, section 3.3.

    Example:
        >>> import torch
        >>> fn = DiscretizedNormal(torch.tensor(0.4), torch.tensor(0.3), levels=5)
        >>> fn.log_prob(torch.arange(5)).exp()
        tensor([6.3209e-05, 1.5067e-02, 2.9341e-01, 5.6979e-01, 1.2167e-01])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = False

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None
    ) -> None:
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels: expected an integer above 1, got {levels!r}")
        self.levels = levels
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The levels."""
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiscretizedNormal:
        """Returns the distribution with its parameters expanded to ``batch_shape``."""
        new: DiscretizedNormal = self._get_checked_instance(DiscretizedNormal, _instance)
        shape = Size(batch_shape)
        new.levels = self.levels
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(DiscretizedNormal, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws levels, int64 ``[*sample_shape, *batch_shape]``."""
        with torch.no_grad():
            loc = self.loc.expand(self._extended_shape(Size(sample_shape)))
            value = loc + self.scale * torch.randn_like(loc)
            level: Tensor = (0.5 * (self.levels - 1) * (value + 1)).round()
            return level.clamp(0, self.levels - 1).long()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, of the broadcast shape of ``value`` and ``batch_shape``."""
        if self._validate_args:
            self._validate_sample(value)
        half = 1 / ((self.levels - 1) * self.scale)
        z = value.to(self.loc.dtype) * (2 / (self.levels - 1)) - 1
        centre = (z - self.loc) / self.scale
        upper, lower = log_ndtr(half - centre.abs()), log_ndtr(-half - centre.abs())
        inside = upper + log1mexp(upper - lower)
        ends = torch.where(value == 0, log_ndtr(centre + half), log_ndtr(half - centre))
        log_prob: Tensor = torch.where((value > 0) & (value < self.levels - 1), inside, ends)
        return log_prob
