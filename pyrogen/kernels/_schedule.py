"""Step sizes that change from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pyrogen.kernels._options import positive

__all__ = ["PolynomialDecay", "Schedule", "checked_step_size", "step_size_at"]

Schedule: TypeAlias = "float | Callable[[int], float]"


@dataclass(frozen=True)
class PolynomialDecay:
    r"""The step sizes :math:`h_t = a (b + t)^{-\gamma}`.

    Draws that are to converge to the target need :math:`\sum h_t = \infty`, hence
    :math:`\gamma \le 1`. Weigh each draw by its step size; then the error falls fastest, as
    :math:`t^{-1/3}`, with :math:`\gamma = 1/3`.

    Args:
        a: scale.
        b: how many steps the decay takes to set in.
        gamma: rate of decay, in (0, 1].

    Raises:
        ValueError: for an argument out of its range.

    References:
        Welling, Teh, *Bayesian Learning via Stochastic Gradient Langevin Dynamics*, ICML 2011. Teh,
        Thiery, Vollmer, *Consistency and fluctuations for stochastic gradient Langevin dynamics*,
        2016 (arXiv:1409.0578).

    Example:
        >>> schedule = PolynomialDecay(a=1.0, b=1.0, gamma=0.5)
        >>> schedule(0), schedule(3)
        (1.0, 0.5)
    """

    a: float
    b: float = 1.0
    gamma: float = 1 / 3

    def __post_init__(self) -> None:
        for name, value in (("a", self.a), ("b", self.b), ("gamma", self.gamma)):
            positive(name, value)
        if self.gamma > 1:
            raise ValueError(f"gamma: expected a number in (0, 1], got {self.gamma!r}")

    def __call__(self, step: int) -> float:
        """The size of the step after ``step`` others."""
        return float(self.a * (self.b + step) ** -self.gamma)


def checked_step_size(schedule: Schedule) -> Schedule:
    """A schedule, or a finite number above zero."""
    return schedule if callable(schedule) else positive("step_size", schedule)


def step_size_at(schedule: Schedule, iteration: int) -> float:
    """The step size at an iteration, counted from the first step of warm-up.

    Raises:
        ValueError: if a schedule gives a number that is not positive.
    """
    if not callable(schedule):
        return schedule
    return positive(f"step_size({iteration})", float(schedule(iteration)))
