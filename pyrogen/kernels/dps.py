r"""Diffusion posterior sampling: the likelihood of the denoised state."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad_and_value

from pyrogen.kernels._guidance import Twist
from pyrogen.kernels._inverse import InverseProblem

__all__ = ["DPS"]


class DPS(Twist):
    r"""Guidance by the likelihood of the denoised state, for any likelihood.

    .. math:: \log \tilde p(y \mid x_t) = \log p(y \mid \hat x(x_t)) .

    It takes the data for known once they are denoised, and so pulls too hard while there is much
    noise: the posterior comes out too narrow, and far observations with little noise make the
    steps unstable. The published rule instead moves the state, after each step, by a fixed share
    of the gradient of the distance,

    .. math:: x_s \leftarrow x_s - \zeta\, \nabla_{x_t} \lVert y - m(\hat x(x_t)) \rVert ,

    which stays stable and heeds the noise of the observation no more; the distance is taken in
    units of that noise here.

    Args:
        step_size: :math:`\zeta` of the published rule; by default none, and the gradient of the
            likelihood itself is followed. It needs normal observations.
        tempered: weigh the log-likelihood by :math:`\alpha^2 / (\alpha^2 + \sigma^2)`, the share
            of a state that is known of data of variance 1. Not with a step size.

    Raises:
        ValueError: if the step size is not positive, or tempered.

    References:
        H. Chung, J. Kim, M. T. Mccann, M. L. Klasky, J. C. Ye, *Diffusion posterior sampling for
        general noisy inverse problems*, 2022, arXiv:2209.14687.

    Example:
        >>> DPS(step_size=0.5).needs_gaussian, DPS().needs_gaussian
        (True, False)
    """

    def __init__(self, step_size: float | None = None, tempered: bool = False) -> None:
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f"step_size: expected a positive number, got {step_size!r}")
        if step_size is not None and tempered:
            raise ValueError("tempered: expected False with a step_size, which heeds no likelihood")
        self.step_size = step_size
        self.tempered = tempered

    @property
    def needs_gaussian(self) -> bool:  # type: ignore[override]
        """Whether the distance to the observation is needed."""
        return self.step_size is not None

    def at(
        self, problem: InverseProblem, data: Tensor, t: Tensor, until: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The log-likelihood of the denoised state, or minus the distance, and the gradient."""

        def total(data: Tensor) -> tuple[Tensor, Tensor]:
            log_prob = self._log_prob(problem, data, t, until)
            return log_prob.sum(), log_prob

        slope, (_, log_prob) = grad_and_value(total, has_aux=True)(data)
        return log_prob, slope

    def _log_prob(
        self, problem: InverseProblem, data: Tensor, t: Tensor, until: Tensor | None
    ) -> Tensor:
        process = problem.prior.process
        if self.step_size is None:
            log_likelihood = problem.log_likelihood(data)
            return (
                process.log_snr(t).sigmoid() * log_likelihood if self.tempered else log_likelihood
            )
        residual = problem.residual(data)
        if until is None:
            return 0.0 * residual.sum(-1)
        # By how much a step moves the state for a unit of score.
        shrink = process.mean_scale(until) / process.mean_scale(t)
        moved = shrink * process._variance_between(until, t)
        tiny = torch.finfo(data.dtype).tiny
        distance = (residual.square().sum(-1) + tiny).sqrt()
        return -self.step_size * distance / moved
