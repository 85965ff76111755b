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

__all__ = ["Population", "TwistedSMC"]


class Population(NamedTuple):
    """Particles of all chains at one time.

    Attributes:
        position: ``[chains * particles, *shape]``.
        data: the mean of the data given the position, likewise.
        score: the gradient of the twist, likewise.
        log_twist: ``[chains, particles]``.
        log_weight: since they were last resampled, ``[chains, particles]``.
        log_evidence: the logarithm of the estimate of ``p(y)`` so far, ``[chains]``.
        least_ess: the least effective number of particles so far, ``[chains]``.
    """

    position: Tensor
    data: Tensor
    score: Tensor
    log_twist: Tensor
    log_weight: Tensor
    log_evidence: Tensor
    least_ess: Tensor


class TwistedSMC:
    r"""Twisted sequential Monte Carlo, for any likelihood.

    Each chain carries :math:`K` particles from noise to data. From :math:`t` to :math:`s` each is
    moved by the guided step :math:`q`, and weighted by what that got wrong,

    .. math:: w = \frac{p(x_s \mid x_t)\, \tilde p(y \mid x_s)}
       {\tilde p(y \mid x_t)\, q(x_s \mid x_t)},

    where :math:`p` is the step of the prior and :math:`\tilde p` a twist, which becomes the
    likelihood at the end. Where the effective number of particles has fallen below a share of
    :math:`K`, they are drawn anew by their weights. The product of mean weights is an unbiased
    estimate of the evidence :math:`p(y)`, whatever :math:`K` and the twist, and particles follow the
    posterior exactly as :math:`K \to \infty`. A draw is one particle, picked by its weight.

    Prior means here: of the steps made. Their error, of first order in the step size, stays.

    Args:
        num_particles: :math:`K`, for each chain.
        twist: :class:`DPS` or :class:`PiGDM`; the former for any likelihood, the latter needs fewer
            particles where it applies.
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
        self.twist = DPS() if twist is None else twist
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

    def init(self, problem: InverseProblem, noise: Tensor, t: Tensor, until: Tensor) -> Population:
        """Particles at the beginning.

        Args:
            problem: prior and likelihood.
            noise: ``[chains * particles, *shape]``, draws at time ``t``.
            t: the last time.
            until: the time before it, where the particles go next.
        """
        seen = self.twist.evaluate(problem, noise, t, until)
        log_twist = seen.log_prob.reshape(-1, self.num_particles)
        zeros = torch.zeros_like(log_twist[:, 0])
        full = torch.full_like(zeros, self.num_particles)
        return Population(noise, seen.data, seen.score, log_twist, log_twist, zeros, full)

    def step(
        self, problem: InverseProblem, population: Population, t: Tensor, s: Tensor, until: Tensor
    ) -> Population:
        """Particles at the time ``s`` before ``t``, which go to ``until`` after that."""
        population = self._resampled(population)
        x, data, score = population[:3]
        process = problem.prior.process
        prior = process.bridge(data, x, s, t)
        guided = process.bridge(data + spread(problem.prior, x, t) * score, x, s, t)
        noise = torch.randn_like(x)
        moved = (guided.mean - prior.mean) / prior.stddev
        correction = -(moved * noise + 0.5 * moved.square()).flatten(1).sum(1)
        position = guided.mean + prior.stddev * noise
        seen = self.twist.evaluate(problem, position, s, until)
        log_twist = seen.log_prob.reshape(-1, self.num_particles)
        gain = correction.reshape(log_twist.shape) + log_twist - population.log_twist
        return population._replace(
            position=position,
            data=seen.data,
            score=seen.score,
            log_twist=log_twist,
            log_weight=population.log_weight + gain,
        )

    def finish(self, problem: InverseProblem, population: Population) -> Population:
        """One particle for each chain, denoised, ``[chains, *shape]``; what was known of all is
        that of this one."""
        log_likelihood = problem.log_likelihood(population.data)
        log_likelihood = log_likelihood.reshape(population.log_twist.shape)
        log_weight = population.log_weight + log_likelihood - population.log_twist
        ess = torch.minimum(population.least_ess, effective(log_weight))
        evidence = population.log_evidence + log_mean_exp(log_weight)
        uniform = torch.rand_like(log_weight[:, :1])
        chosen = _chosen(log_weight, uniform)
        data = _gathered(population.data, chosen)
        return Population(
            data, data, data, log_likelihood.gather(1, chosen), chosen * 0.0, evidence, ess
        )

    def _resampled(self, population: Population) -> Population:
        """Particles drawn anew in the chains where few are left that matter."""
        log_weight, count = population.log_weight, self.num_particles
        ess = effective(log_weight)
        poor = ess < self.resample_below * count
        steps = torch.arange(count, dtype=log_weight.dtype, device=log_weight.device)
        uniform = (steps + torch.rand_like(log_weight[:, :1])) / count
        stay = torch.arange(count, device=log_weight.device).expand(log_weight.shape)
        index = torch.where(poor.unsqueeze(1), _chosen(log_weight, uniform), stay)
        return Population(
            position=_gathered(population.position, index),
            data=_gathered(population.data, index),
            score=_gathered(population.score, index),
            log_twist=population.log_twist.gather(1, index),
            log_weight=torch.where(poor.unsqueeze(1), 0.0, log_weight),
            log_evidence=population.log_evidence + torch.where(poor, log_mean_exp(log_weight), 0.0),
            least_ess=torch.minimum(population.least_ess, ess),
        )


def effective(log_weight: Tensor) -> Tensor:
    """The effective number of particles, ``[chains]``."""
    share = log_weight.softmax(-1)
    return 1 / share.square().sum(-1)


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
    chains, count = index.shape
    per_chain = values.shape[0] // chains
    first = per_chain * torch.arange(chains, device=index.device).unsqueeze(1)
    return values[(first + index).reshape(-1)]
