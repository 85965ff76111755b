r"""A diagonal Gaussian posterior whose parameters a network reads off the data.

.. math:: q(z \mid x) = N(z; \mu, \operatorname{diag} \sigma^2), \qquad
   (\mu, r) = \mathrm{encoder}(x), \quad \sigma = \log(1 + e^r) .
"""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

from pyrogen.guides._amortized import Amortized

__all__ = ["AmortizedNormal"]


class AmortizedNormal(Amortized):
    """Guide for a site ``"z"`` in plate ``"data"``: one Gaussian for each datum, by a network.

    Args:
        encoder: network ``[*, *event_shape] -> [*, 2 * latent_dim]``: first the means, then the raw
            scales. Integer data reach it as they are (:class:`pyrogen.nn.OneHot` makes numbers of
            them).
        latent_dim: number of latent dimensions.
        beta: weight of the KL term, > 0; the same as the model's. See :class:`pyrogen.models.VAE`.
        event_shape: shape of one datum, to check data against. ``None`` takes the encoder's
            attribute ``in_shape`` if it has one (the networks of :mod:`pyrogen.nn` do); otherwise
            the encoder itself decides what it takes.

    Attributes:
        latent_dim: number of latent dimensions.
        beta: tensor of shape ``[]``.

    Raises:
        TypeError: if ``encoder`` is no ``torch.nn.Module``.
        ValueError: if ``latent_dim`` or ``beta`` is not positive.

    References:
        D. P. Kingma, M. Welling, *Auto-encoding variational Bayes*, 2013, arXiv:1312.6114.

    Example:
        >>> import torch
        >>> from pyrogen.nn import MLP
        >>> guide = AmortizedNormal(MLP((8, 8), 2 * 3), latent_dim=3)
        >>> guide.posterior(torch.zeros(5, 8, 8)).event_shape
        torch.Size([3])
    """

    def posterior(self, data: Tensor) -> TorchDistribution:
        """Returns q(z | x) for each datum.

        Args:
            data: ``[*, *event_shape]``.

        Returns:
            A distribution of batch shape ``[*]`` and event shape ``[latent_dim]``.

        Raises:
            ValueError: if data are unusable, or the encoder's output does not end in
                ``2 * latent_dim``.
        """
        parameters = self._encode(data, 2 * self.latent_dim, "2 * latent_dim")
        loc, raw = parameters.chunk(2, dim=-1)
        posterior: TorchDistribution = dist.Normal(loc, softplus(raw)).to_event(1)
        return posterior
