r"""The variational bound of a diffusion in continuous time.

The noised data are latent variables :math:`z_t`, the same for every network, and the model draws
them from noise to data. Its bound is

.. math:: \log p(x) \ge
   -\mathrm{KL}\left(q(z_{t_1} \mid x) \,\Vert\, p(z_{t_1})\right)
   + \mathbb{E} \log p(x \mid z_{t_0})
   - \tfrac12 \int_{\lambda(t_1)}^{\lambda(t_0)}
     \mathbb{E} \lVert \hat\epsilon(z_\lambda) - \epsilon \rVert^2\, d\lambda ,

an integral over the log-SNR alone: between its ends the schedule changes only the variance of the
estimate. What the least noise hides is drawn by
:math:`p(x \mid z) = N(z / \alpha, \sigma^2 / \alpha^2)` at :math:`t_0`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pyrogen.distributions import ScoreBased
from pyrogen.losses._noising import NoisingELBO, log_snr_rate, over_event, time_of
from pyrogen.processes import LearnedVariancePreserving, error_scale

__all__ = ["DiffusionELBO"]


class DiffusionELBO(NoisingELBO):
    r"""Trains score-based sites by the variational bound of their log-density, in nats.

    The bound may be observed data's or, as it is a bound at every value, that of a latent site,
    such as the prior of a :class:`pyrogen.models.VAE`: the whole is then one bound, and trains
    encoder, decoder and diffusion together.

    A process that is learned (:class:`pyrogen.processes.LearnedVariancePreserving`) has its two
    ends trained by the bound, and its shape in between by the variance of the estimate.

    Args:
        num_times: how many times are drawn for each datum.
        low_discrepancy: draw the times of a batch evenly, each uniform by itself.
        context_dropout: with which probability a datum is shown without its context.
        elbo: the estimate that the bound enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: for numbers out of range; when run, if the process has no noise at
            ``min_time`` or nothing but noise at ``max_time``, where the bound would be infinite.

    References:
        D. P. Kingma, T. Salimans, B. Poole, J. Ho, *Variational diffusion models*, 2021,
        arXiv:2107.00630.
        A. Vahdat, K. Kreis, J. Kautz, *Score-based generative modeling in latent space*, 2021,
        arXiv:2106.05931.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.guides import Empty
        >>> from pyrogen.models import ScoreModel
        >>> from pyrogen.processes import VariancePreserving
        >>> def noise(x, t):  # the best prediction for standard normal data
        ...     return VariancePreserving().std(t).unsqueeze(-1) * x
        >>> model = ScoreModel(VariancePreserving(), noise, event_shape=2)
        >>> data = torch.zeros(10_000, 2)
        >>> print(f"{DiffusionELBO().loss(model, Empty(), data) / 10_000:.2f}")  # log(2 pi) = 1.838
        1.84
    """

    def __init__(
        self,
        num_times: int = 1,
        low_discrepancy: bool = True,
        context_dropout: float = 0.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(num_times, low_discrepancy, context_dropout, elbo)

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """An unbiased estimate of the bound, ``[*batch]``."""
        data = self.repeated(fn, value)
        ends = self.log_snr_ends(name, fn, data)
        bound = self._least_noise(fn, ends[0]) - self._forgotten(fn, data[0])
        return bound - self._denoising(fn, data, ends)

    def latent(self, name: str, fn: Any, score: Any) -> Any:
        """The bound too."""
        return score

    def _denoising(self, fn: ScoreBased, data: Tensor, ends: Tensor) -> Tensor:
        """Half the integral of the error of the noise over the log-SNR, ``[*batch]``."""
        process, u, duration = fn.process, self.uniform(fn, data), fn.max_time - fn.min_time
        if isinstance(process, LearnedVariancePreserving):
            t = fn.min_time + duration * u
            weight = duration * log_snr_rate(process, t)
        else:
            t = time_of(fn, ends[0] - (ends[0] - ends[1]) * u)
            weight = (ends[0] - ends[1]).expand(t.shape)
        noise = torch.randn_like(data)
        shown = self.show(fn, data, noise, t, fn.prediction)
        error = over_event(fn, (shown.prediction - shown.target).square())
        scale = error_scale(process, t, fn.prediction, "noise")
        # Where there is little noise, nobody can tell it from data, and the error is its square:
        # what that exceeds its mean by is taken away.
        excess = over_event(fn, noise.square() - 1)
        share = process.log_snr(t).sigmoid().square()
        terms = 0.5 * weight * (scale.square() * error - share * excess)
        if isinstance(process, LearnedVariancePreserving):
            # Times fall where they lessen the mean square of the terms: a gradient by the score
            # function, and no part of the bound.
            pull = terms.detach().square() * process.log_mass(t)
            terms = terms - (pull - pull.detach())
        return terms.mean(0)

    def _least_noise(self, fn: ScoreBased, log_snr: Tensor) -> Tensor:
        """``E log p(x | z)`` at ``min_time``: minus an entropy."""
        size = math.prod(fn.event_shape)
        return -0.5 * size * (math.log(2 * math.pi) + 1 - log_snr)

    def _forgotten(self, fn: ScoreBased, data: Tensor) -> Tensor:
        """The divergence of the law at ``max_time`` from what it is taken for, ``[*batch]``."""
        t = data.new_tensor(fn.max_time)
        alpha, sigma = fn.process.mean_scale(t), fn.process.std(t)
        terminal: Any = fn.terminal()
        base = terminal
        while isinstance(base, Independent):
            base = base.base_dist
        if isinstance(base, Normal):
            law = Normal(alpha * data, sigma)
            return over_event(fn, kl_divergence(law, Normal(base.loc, base.scale)))
        noise = torch.randn_like(data)
        squares = over_event(fn, noise.square())
        size = math.prod(fn.event_shape)
        entropy = 0.5 * squares + size * (0.5 * math.log(2 * math.pi) + sigma.log())
        divergence: Tensor = -entropy - terminal.log_prob(alpha * data + sigma * noise)
        return divergence
