r"""Pseudo-inverse guidance: a normal law of fixed covariance about the denoised state."""

from __future__ import annotations

from torch import Tensor

from pyrogen.kernels._guidance import Twist, solve
from pyrogen.kernels._inverse import InverseProblem
from pyrogen.kernels._options import positive, whole

__all__ = ["PiGDM"]


class PiGDM(Twist):
    r"""Guidance by a normal law of the data about the denoised state, for normal observations.

    .. math:: x_0 \mid x_t \approx N(\hat x(x_t),\; r_t^2 I), \qquad
       \frac{1}{r_t^2} = \frac{1}{v} + \frac{\alpha^2}{\sigma^2}, \qquad
       \log \tilde p(y \mid x_t) = \log N(y;\; m(\hat x),\; R + r_t^2 A A^\top),

    with :math:`A` the derivative of the mean :math:`m`. It is exact where the data are normal with
    variance :math:`v` in each direction. The system is solved by conjugate gradients on products
    with :math:`A` and its transpose, which come from differentiating the model; a mean that is not
    linear is linearised at :math:`\hat x`.

    Args:
        data_variance: :math:`v`, the variance of the data in each direction.
        num_iterations: of the conjugate gradients; as many as :math:`A` has distinct singular
            values are enough, one if an observation is part of the data.

    Raises:
        ValueError: for an argument out of its range.

    References:
        J. Song, A. Vahdat, M. Mardani, J. Kautz, *Pseudoinverse-guided diffusion models for inverse
        problems*, 2023, ICLR.

    Example:
        >>> PiGDM(data_variance=0.25).data_variance
        0.25
    """

    needs_gaussian = True

    def __init__(self, data_variance: float = 1.0, num_iterations: int = 10) -> None:
        self.data_variance = positive("data_variance", data_variance)
        self.num_iterations = whole("num_iterations", num_iterations, 1)

    def at(
        self, problem: InverseProblem, data: Tensor, t: Tensor, until: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The log-density of the observation up to a constant, and its gradient."""
        linear = problem.linearized(data)
        process = problem.prior.process
        variance, mean_scale = process.variance(t), process.mean_scale(t)
        around = self.data_variance * variance / (self.data_variance * mean_scale**2 + variance)
        solved = solve(
            lambda u: around * linear.forth(linear.back(u)), linear.residual, self.num_iterations
        )
        return -0.5 * (linear.residual * solved).sum(-1), linear.back(solved)
