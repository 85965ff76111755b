r"""A posterior made flexible by a flow, all of it read off the data by a network.

.. math:: q(z \mid x) : \quad z_0 = \mu + \sigma \odot \epsilon, \qquad
   z = f_K(\cdots f_1(z_0; h) \cdots; h), \qquad (\mu, r, h) = \mathrm{encoder}(x), \quad
   \sigma = \log(1 + e^r) ,

.. math:: \log q(z \mid x) = \log N(z_0; \mu, \sigma^2)
   - \sum_k \log \left| \det \frac{\partial f_k}{\partial z_{k-1}} \right| .

The parameters of every layer depend on the context :math:`h`, so they differ from datum to datum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrogen.distributions import FlowDistribution
from pyrogen.guides._amortized import Amortized
from pyrogen.guides._flows import make_flow
from pyrogen.transforms._chain import Chain

__all__ = ["AmortizedFlow"]


class AmortizedFlow(Amortized):
    r"""Guide for a site ``"z"`` in plate ``"data"``: a Gaussian and a flow for each datum.

    Args:
        encoder: network ``[*, *event_shape] -> [*, 2 * latent_dim + context_dim]``: first the
            means, then the raw scales, then the context. Integer data reach it as they are
            (:class:`pyrogen.nn.OneHot` makes numbers of them).
        latent_dim: number of latent dimensions.
        flow: ``"planar"``, ``"radial"``, ``"sylvester"``, ``"iaf"``, ``"spline"``,
            ``"continuous"``, or a function of ``latent_dim`` and ``context_dim`` that returns
            transforms. The steps of ``"continuous"`` adapt to values, so it cannot be compiled
            (:class:`pyrogen.losses.Compiled`).
        num_flows: number of layers, at least 1.
        context_dim: size of the context; ``None`` takes what the encoder's ``out_shape`` leaves
            (the networks of :mod:`pyrogen.nn` have one). With 0 all data share one flow.
        beta: weight of the KL term, > 0; the same as the model's. See :class:`pyrogen.models.VAE`.
        event_shape: shape of one datum, to check data against. ``None`` takes the encoder's
            attribute ``in_shape`` if it has one; otherwise the encoder decides what it takes.

    Attributes:
        latent_dim: number of latent dimensions.
        context_dim: size of the context.
        beta: tensor of shape ``[]``.

    Raises:
        TypeError: if ``encoder`` is no ``torch.nn.Module``.
        ValueError: if ``flow`` is unknown, a number is not positive, or the encoder has no room for
            means and scales or does not say how wide it is.

    References:
        D. J. Rezende, S. Mohamed, *Variational inference with normalizing flows*, 2015,
        arXiv:1505.05770.
        D. P. Kingma et al., *Improving variational inference with inverse autoregressive flow*,
        2016, arXiv:1606.04934.
        R. van den Berg et al., *Sylvester normalizing flows for variational inference*, 2018,
        arXiv:1803.05649.

    Example:
        >>> import torch
        >>> from pyrogen.nn import MLP
        >>> encoder = MLP((8, 8), 2 * 3 + 16)  # means, scales and a context of size 16
        >>> guide = AmortizedFlow(encoder, latent_dim=3, flow="sylvester")
        >>> z, log_q = guide.posterior(torch.zeros(5, 8, 8)).rsample_with_log_prob()
        >>> z.shape, log_q.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent_dim: int,
        flow: str | Callable[..., Iterable[Any]] = "iaf",
        num_flows: int = 4,
        context_dim: int | None = None,
        beta: float = 1.0,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder, latent_dim, beta, event_shape)
        self.context_dim = _context_dim(encoder, latent_dim, context_dim)
        transforms = make_flow(flow, latent_dim, num_flows, self.context_dim)
        self.transforms = Chain(transforms).to(self.beta)

    def posterior(self, data: Tensor) -> FlowDistribution:
        """Returns q(z | x) for each datum.

        Args:
            data: ``[*, *event_shape]``.

        Returns:
            A distribution of batch shape ``[*]`` and event shape ``[latent_dim]``. It scores its
            own draws; any other value only where the flow has an inverse (planar and radial have
            none).

        Raises:
            ValueError: if data are unusable, or the encoder's output does not end in
                ``2 * latent_dim + context_dim``.
        """
        sizes = [self.latent_dim, self.latent_dim, self.context_dim]
        parameters = self._encode(data, sum(sizes), "2 * latent_dim + context_dim")
        loc, raw, context = parameters.split(sizes, dim=-1)
        base = dist.Normal(loc, softplus(raw)).to_event(1)
        return FlowDistribution(base, self.transforms.condition(context))


def _context_dim(encoder: nn.Module, latent_dim: int, context_dim: int | None) -> int:
    shape = getattr(encoder, "out_shape", None)
    if context_dim is None:
        if shape is None:
            raise ValueError(
                "context_dim: expected a number, as the encoder has no attribute out_shape to tell "
                "its width, got None"
            )
        context_dim = shape[-1] - 2 * latent_dim
        if context_dim < 0:
            raise ValueError(
                f"encoder: expected output [*, {2 * latent_dim} + context_dim] (means, scales, "
                f"context), got [*, {shape[-1]}]"
            )
    if not isinstance(context_dim, int) or context_dim < 0:
        raise ValueError(f"context_dim: expected a non-negative integer, got {context_dim!r}")
    return context_dim
