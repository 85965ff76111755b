r"""Moment matching: a normal law with the covariance that the network itself implies."""

from __future__ import annotations

from torch import Tensor
from torch.func import vjp

from pyrogen.kernels._guidance import Guidance, Guided, solve, spread
from pyrogen.kernels._inverse import InverseProblem
from pyrogen.kernels._options import whole

__all__ = ["MMPS"]


class MMPS(Guidance):
    r"""Moment matching posterior sampling, for normal observations.

    .. math:: x_0 \mid x_t \approx N(\hat x(x_t),\; V), \qquad
       V = \frac{\sigma^2}{\alpha} \nabla \hat x(x_t), \qquad
       \nabla \log \tilde p(y \mid x_t) = (\nabla \hat x)^\top A^\top
       (R + A V A^\top)^{-1} (y - m(\hat x)) .

    Mean and covariance are those of the data given the noisy state, by Tweedie's formulas: where
    the data are normal it is exact. Each conjugate gradient step costs one product with the
    derivative of the network. A mean :math:`m` that is not linear is linearised at
    :math:`\hat x`.

    Args:
        num_iterations: of the conjugate gradients.

    Raises:
        ValueError: if that is no positive integer.

    References:
        F. Rozet, G. Andry, F. Lanusse, G. Louppe, *Learning diffusion priors from observations by
        expectation maximization*, 2024, arXiv:2405.13712.

    Example:
        >>> MMPS(num_iterations=3).needs_gaussian
        True
    """

    needs_gaussian = True

    def __init__(self, num_iterations: int = 5) -> None:
        self.num_iterations = whole("num_iterations", num_iterations, 1)

    def __call__(
        self, problem: InverseProblem, x: Tensor, t: Tensor, until: Tensor | None
    ) -> Guided:
        """The guidance at noisy states."""
        data, pull_back = vjp(lambda state: problem.prior.denoise(state, t), x)  # type: ignore[misc]
        linear, scale = problem.linearized(data), spread(problem.prior, x, t)

        def covariance(u: Tensor) -> Tensor:  # the derivative of the best denoiser is symmetric
            along: Tensor = pull_back(linear.back(u))[0]
            return linear.forth(scale * along)

        solved = solve(covariance, linear.residual, self.num_iterations)
        return Guided(data, pull_back(linear.back(solved))[0])
