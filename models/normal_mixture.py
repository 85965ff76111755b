r"""Targets whose noise depends on the input, and that may have several modes.

.. math:: p(y \mid \theta) = \sum_{k=1}^{K} \pi_k\, N(y; \mu_k, \sigma_k^2), \qquad
   \theta = (\log \pi_{1:K}, \mu_{1:K}, r_{1:K}), \quad \sigma_k = \sigma_{\min} + \log(1 + e^{r_k})
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

from pyrogen.models._outputs import positive_int
from pyrogen.models.likelihoods import Likelihood

__all__ = ["NormalMixture"]


class NormalMixture(Likelihood):
    """Independent real values, each a mixture of normal laws (a mixture density network).

    With one component it is a normal law whose mean and scale are both put out by the network
    (heteroscedastic noise).

    Args:
        num_components: K.
        min_scale: the least standard deviation, in units of the data.

    Raises:
        ValueError: if ``num_components`` or ``min_scale`` is not positive.

    References:
        C. M. Bishop, *Mixture density networks*, 1994, NCRG/94/004.

    Example:
        >>> import torch
        >>> law = NormalMixture(2)(torch.zeros(5, 1, 6), event_dim=1)  # 2 weights, means, scales
        >>> law.batch_shape, law.event_shape
        (torch.Size([5]), torch.Size([1]))
    """

    parameter_dim = 1
    advice = "remove the others or mask the site"

    def __init__(self, num_components: int = 1, min_scale: float = 1e-3) -> None:
        super().__init__()
        if not min_scale > 0:
            raise ValueError(f"min_scale: expected a positive number, got {min_scale!r}")
        self.num_components = positive_int("num_components", num_components)
        self.min_scale = float(min_scale)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """How many numbers stand for one value, ``(3 * num_components,)``."""
        return (3 * self.num_components,)

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistribution:
        """Returns the mixture; the last dimension of ``parameters`` is of size ``3 K``."""
        if parameters.shape[-1] != 3 * self.num_components:
            raise ValueError(
                f"parameters: expected a last dimension of 3 * {self.num_components}, got "
                f"{list(parameters.shape)}"
            )
        logits, loc, raw = parameters.chunk(3, -1)
        scale = self.min_scale + softplus(raw)
        if self.num_components == 1:
            each: Any = dist.Normal(loc.squeeze(-1), scale.squeeze(-1))
        else:
            each = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))
        event: TorchDistribution = each.to_event(event_dim)
        return event

    def supports(self, data: Tensor, parameter_shape: Sequence[int]) -> tuple[Tensor, str]:
        """Every finite number."""
        return data.isfinite(), "finite values (likelihood NormalMixture)"
