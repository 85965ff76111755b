r"""Particles on the way from noise to the posterior, weighted so that they end there exactly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._guidance import Twist, spread
from pyrogen.kernels._inverse import InverseProblem
from pyrogen.kernels._options import whole
from pyrogen.kernels.dps import DPS

__all__ = ["ParticleState", "TwistedSMC"]


class ParticleState(NamedTuple):
    """How much the particles of each chain count.

    Attributes:
        log_weight: since they were last resampled, ``[chains, particles]``.
        log_evidence: the logarithm of the estimate of ``p(y)`` so far, ``[chains]``.
        ess: the least effective number of particles so far, ``[chains]``.
    """

    log_weight: Tensor
    log_evidence: Tensor
    ess: Tensor


class TwistedSMC:
    r"""Twisted sequential Monte Carlo, for any likelihood.

    Each chain carries :math:`K` particles from noise to data. From :math:`t` to :math:`s` each is
    moved by the guided step :math:`q`, and weighted by what that got wrong,

    .. math:: w = \frac{p(x_s \mid x_t)\, \tilde p(y \mid x_s)}
       {\tilde p(y \mid x_t)\, q(x_s \mid x_t)},

    where :math:`p` is the step of the prior and :math:`\tilde p` a twist, which becomes the
    likelihood at the end. Where the effective number of particles has fallen below a share of
    :math:`K`, they are drawn anew by their weights. The product of mean weights is an unbiased
    estimate of the evidence :math:`p(y)`, whatever :math:`K` and the twist, and particles follow
    the posterior exactly as :math:`K \to \infty`. A draw is one particle, picked by its weight.
    For any :math:`K`, means over many chains are exact if each draw is weighted by its estimate of
    the evidence, ``info["log_evidence"]``; ``info["ess"]`` is the least effective number of
    particles on the way.

    A likelihood that may be zero makes a twist zero too early, where states that could still get
    into its support are lost when particles are drawn anew: take ``resample_below=0`` there.

    The prior is here what its ancestral steps sample, whose error, of first order in their size,
    stays.

    Args:
        num_particles: :math:`K`, for each chain.
        twist: :class:`DPS` or :class:`PiGDM`; by default ``DPS(tempered=True)``, which suits any
            likelihood. Without tempering, as published, it is too sure of itself where there is
            much noise, and more particles are needed.
        resample_below: the share of effective particles below which they are resampled.

    Raises:
        TypeError: if the twist is none.
        ValueError: for a number out of its range.

    References:
        L. Wu, B. L. Trippe, C. A. Naesseth, D. M. Blei, J. P. Cunningham, *Practical and
        asymptotically exact conditional sampling in diffusion models*, 2023, arXiv:2306.17775.

    Example:
        >>> from pyrogen.kernels import PiGDM
        >>> TwistedSMC(num_particles=64, twist=PiGDM()).num_particles
        64
    """

    def __init__(
        self, num_particles: int = 16, twist: Twist | None = None, resample_below: float = 0.5
    ) -> None:
        self.num_particles = whole("num_particles", num_particles, 2)
        self.twist = DPS(tempered=True) if twist is None else twist
        if not isinstance(self.twist, Twist):
            raise TypeError(
                f"twist: expected DPS() or PiGDM(), got {type(twist).__name__}; a twist has to be "
                "a function that the guidance is the gradient of"
            )
        if not 0 <= resample_below <= 1:
            raise ValueError(f"resample_below: expected a number in [0, 1], got {resample_below!r}")
        self.resample_below = float(resample_below)

    @property
    def needs_gaussian(self) -> bool:
        """Whether the observations have to be normal."""
        return self.twist.needs_gaussian

    def init(self, x: Tensor) -> ParticleState:
        """The weights of particles ``x [chains * particles, *shape]`` that are noise."""
        ones = torch.ones_like(x.reshape(-1, self.num_particles, x[0].numel())[..., 0])
        return ParticleState(0.0 * ones, 0.0 * ones[:, 0], self.num_particles * ones[:, 0])

    def step(
        self, problem: InverseProblem, x: Tensor, weights: ParticleState, t: Tensor, s: Tensor
    ) -> tuple[Tensor, ParticleState]:
        """Particles and their weights at the time ``s`` before ``t``.

        Args:
            problem: prior and likelihood.
            x: at ``t``, ``[chains * particles, *shape]``.
            weights: of these, but for their twist.
            t: a scalar tensor.
            s: likewise.
        """
        seen = self.twist.evaluate(problem, x, t, s)
        log_twist = seen.log_prob.reshape(weights.log_weight.shape)
        index, weights = self._resampled(weights, log_twist)
        x, data, score = (_gathered(part, index) for part in (x, seen.data, seen.score))
        process = problem.prior.process
        prior = process.bridge(data, x, s, t)
        guided = process.bridge(data + spread(problem.prior, x, t) * score, x, s, t)
        noise = torch.randn_like(x)
        shift = (guided.mean - prior.mean) / prior.stddev
        # log p(x_s | x_t) - log q(x_s | x_t)
        gain = -(shift * noise + 0.5 * shift.square()).flatten(1).sum(1)
        log_weight = weights.log_weight + gain.reshape(log_twist.shape)
        return guided.mean + prior.stddev * noise, weights._replace(log_weight=log_weight)

    def finish(
        self, problem: InverseProblem, x: Tensor, weights: ParticleState, t: Tensor
    ) -> tuple[Tensor, ParticleState]:
        """One particle for each chain, denoised, ``[chains, *shape]``; arguments as for
        :meth:`step`."""
        data = problem.prior.denoise(x, t)
        log_likelihood = problem.log_likelihood(data).reshape(weights.log_weight.shape)
        log_weight = weights.log_weight + log_likelihood
        chosen = _chosen(log_weight, torch.rand_like(log_weight[:, :1]))
        return _gathered(data, chosen), ParticleState(
            log_weight,
            weights.log_evidence + log_mean_exp(log_weight),
            torch.minimum(weights.ess, effective(log_weight)),
        )

    def _resampled(self, weights: ParticleState, log_twist: Tensor) -> tuple[Tensor, ParticleState]:
        """Which particles go on, ``[chains, particles]``, drawn anew in the chains where few are
        left that matter, and their weights but for their twist."""
        log_weight, count = weights.log_weight + log_twist, self.num_particles
        ess = effective(log_weight)
        poor = (ess < self.resample_below * count) & (ess > 0)
        places = torch.arange(count, device=log_weight.device).expand(log_weight.shape)
        uniform = (places + torch.rand_like(log_weight[:, :1])) / count
        again = poor.unsqueeze(1)
        index = torch.where(again, _chosen(log_weight, uniform), places)
        # Where none is drawn anew the twist cancels, which minus infinity would not.
        kept = torch.where(again, -log_twist.gather(1, index), weights.log_weight)
        return index, ParticleState(
            kept,
            weights.log_evidence + torch.where(poor, log_mean_exp(log_weight), 0.0),
            torch.minimum(weights.ess, ess),
        )


def effective(log_weight: Tensor) -> Tensor:
    """The effective number of particles, ``[chains]``; 0 where all weights are."""
    share = log_weight.softmax(-1)
    none = (log_weight == -torch.inf).all(-1)
    return torch.where(none, 0.0, 1 / share.square().sum(-1))


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """The logarithm of the mean weight, ``[chains]``."""
    return log_weight.logsumexp(-1) - math.log(log_weight.shape[-1])


def _chosen(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """The particles at the given quantiles of the weights, ``[chains, quantiles]``."""
    quantiles = log_weight.softmax(-1).cumsum(-1)
    found = torch.searchsorted(quantiles, uniform * quantiles[:, -1:], right=True)
    return found.clamp(max=log_weight.shape[-1] - 1)


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """The particles ``index [chains, n]`` of ``values [chains * particles, *shape]``."""
    per_chain = values.shape[0] // len(index)
    first = per_chain * torch.arange(len(index), device=index.device).unsqueeze(1)
    return values[(first + index).reshape(-1)]
