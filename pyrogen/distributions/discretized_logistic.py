r"""Mixtures of logistic distributions, rounded to integers.

With weights :math:`\pi_k`, means :math:`\mu_k` and scales :math:`s_k`,

.. math:: p(x) = \sum_k \pi_k \left[\sigma\!\left(\frac{x + \frac12 - \mu_k}{s_k}\right)
   - \sigma\!\left(\frac{x - \frac12 - \mu_k}{s_k}\right)\right], \qquad x \in \mathbb{Z} .

The difference of two sigmoids :math:`\sigma(b) - \sigma(a)` cancels in the tails. Its logarithm is
computed without a difference,

.. math:: \log[\sigma(b) - \sigma(a)]
   = \log\sigma(b) + \log\sigma(-a) + \log(1 - e^{a - b}), \qquad b - a = 1 / s ,

which is exact to rounding for every :math:`x`, and so needs no smallest probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions import constraints as pyro_constraints
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

__all__ = ["DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture(TorchDistribution):
    r"""A mixture of logistic distributions, each rounded to the nearest integer.

    Samples are integers in floating point, as those of Pyro's ``Poisson`` are; the log-probability
    takes either dtype and is differentiable in a value in floating point.

    Args:
        loc: means :math:`\mu`, shape ``[*batch_shape, K]``.
        scale: scales :math:`s > 0`, same shape.
        logits: logarithms of the weights up to a constant, same shape. ``None`` means equal
            weights.
        validate_args: check arguments and values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: with validation on, if a scale is not positive or a value is no integer; if the
            arguments have no component dimension.

    References:
        E. Hoogeboom et al., *Integer discrete flows and lossless compression*, 2019,
        arXiv:1905.07376.
        T. Salimans et al., *PixelCNN++: improving the PixelCNN with discretized logistic mixture
        likelihood and other modifications*, 2017, arXiv:1701.05517.

    Example:
        >>> import torch
        >>> loc, scale = torch.tensor([-2.0, 3.0]), torch.tensor([0.5, 1.0])
        >>> mixture = DiscretizedLogisticMixture(loc, scale)
        >>> mixture.log_prob(torch.arange(-40, 41)).exp().sum()
        tensor(1.)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "logits": constraints.real_vector,
    }
    support = pyro_constraints.integer
    has_rsample = False

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        logits = torch.zeros_like(loc) if logits is None else logits
        self.loc, self.scale, self.logits = torch.broadcast_tensors(loc, scale, logits)
        if self.loc.dim() == 0:
            raise ValueError("loc: expected shape [*batch_shape, K], got []; unsqueeze one mean")
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: Any = None
    ) -> DiscretizedLogisticMixture:
        """Returns the distribution with its parameters expanded to ``batch_shape``."""
        new: DiscretizedLogisticMixture = self._get_checked_instance(
            DiscretizedLogisticMixture, _instance
        )
        shape = Size([*batch_shape, self.loc.shape[-1]])
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        new.logits = self.logits.expand(shape)
        super(DiscretizedLogisticMixture, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws a component, then from it, ``[*sample_shape, *batch_shape]``."""
        with torch.no_grad():
            shape = self._extended_shape(Size(sample_shape))
            gumbel = -self._exponential(*shape, self.loc.shape[-1]).log()
            component = (self.logits + gumbel).argmax(-1, keepdim=True)
            loc, scale = (
                parameter.expand(*shape, -1).gather(-1, component).squeeze(-1)
                for parameter in (self.loc, self.scale)
            )
            # The logarithm of a ratio of exponential variables is logistic.
            noise = self._exponential(2, *shape).log().diff(dim=0)[0]
            draw: Tensor = (loc + scale * noise).round()
            return draw

    def _exponential(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.loc.dtype, device=self.loc.device).exponential_()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, of the broadcast shape of ``value`` and ``batch_shape``."""
        if self._validate_args:
            self._validate_sample(value)
        centred = value.to(self.loc.dtype).unsqueeze(-1) - self.loc
        components = _log_bin(centred, self.scale)
        return torch.logsumexp(self.logits.log_softmax(-1) + components, -1)


def _log_bin(centred: Tensor, scale: Tensor) -> Tensor:
    """Returns the log-probability of the unit interval around ``centred`` of a logistic law."""
    width = scale.reciprocal()
    middle = centred * width
    inside = log1mexp(width)
    return logsigmoid(middle + width / 2) + logsigmoid(width / 2 - middle) + inside


def log1mexp(x: Tensor) -> Tensor:
    """Returns ``log(1 - exp(-x))`` for ``x > 0``."""
    near = x < math.log(2)
    small, large = torch.where(near, x, 1.0), torch.where(near, 1.0, x)
    return torch.where(near, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))
