"""Kernels that warm-up tunes to an acceptance probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pyrogen.kernels._adaptation import WarmUp
from pyrogen.kernels._kernel import Kernel, Source, standard_tuning
from pyrogen.kernels._options import between_0_and_1, one_of, positive
from pyrogen.kernels._target import Target
from pyrogen.kernels._tuning import Tuning

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AdaptiveKernel", "MassMatrix"]

MassMatrix = Literal["diagonal", "dense"] | None


class AdaptiveKernel(Kernel):
    """A kernel with a :class:`Tuning` of step size and mass matrix, learned from all chains.

    Args:
        model: a Pyro model of static structure.
        step_size: to begin with.
        mass_matrix: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: mean acceptance probability that the step size is adapted to.
        adapt_trajectory: whether warm-up adapts the trajectory length.
        **source: see :class:`Kernel`.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None,
        step_size: float,
        mass_matrix: MassMatrix,
        adapt_step_size: bool,
        target_accept_prob: float,
        adapt_trajectory: bool = False,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(model, **source)
        self.step_size = positive("step_size", step_size)
        self.mass_matrix = one_of("mass_matrix", mass_matrix, ("diagonal", "dense", None))
        target = between_0_and_1("target_accept_prob", target_accept_prob)
        learned = mass_matrix is not None
        self._warm_up = WarmUp(target, adapt_step_size, learned, adapt_trajectory)

    def initial_tuning(self, target: Target) -> Tuning:
        """The step size given, also for a trajectory length, and the identity for a mass matrix."""
        return standard_tuning(target, self.step_size, self.mass_matrix == "dense")

    def warm_up(self) -> WarmUp:
        """Step size and mass matrix, from all chains."""
        return self._warm_up
