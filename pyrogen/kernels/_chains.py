"""Chains in motion: the state, the tuning and the iteration of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrogen.kernels._adaptation import harmonic_mean, window_ends
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._target import Target

if TYPE_CHECKING:
    from pyrogen.kernels._kernel import Kernel

__all__ = ["Chains"]

_MAX_DOUBLINGS = 50


class Chains:
    """All chains of one run of a kernel, moved one step at a time.

    Args:
        kernel: how they move.
        target: what they sample.
        run: runs the kernel's functions.
        position: ``[chains, size]``, where they start.
        warmup_steps: for how many steps the kernel is tuned.
    """

    def __init__(
        self, kernel: Kernel, target: Target, run: Runner, position: Tensor, warmup_steps: int
    ) -> None:
        self.kernel = kernel
        self.target = target
        self.run = run
        self.warmup_steps = warmup_steps
        self.iteration = 0
        self.tuning = kernel.initial_tuning(target)
        self.state = run.once(kernel.init, position, self.tuning)
        self._warm_up = kernel.warm_up() if warmup_steps > 0 else None
        self._window_ends = window_ends(warmup_steps, len(position))
        if self._warm_up is not None:
            if self._warm_up.step_size:
                self._find_step_size(self._warm_up.target_accept_prob)
            if self._warm_up.trajectory:
                self.tuning = self.tuning._replace(trajectory_length=self.tuning.step_size)
            self._warm = self._warm_up.init(self.tuning, position)

    @property
    def position(self) -> Tensor:
        """``[chains, size]``."""
        position: Tensor = self.state.position
        return position

    def restart(self, position: Tensor) -> None:
        """Goes on from elsewhere."""
        self.state = self.run.once(self.kernel.init, position, self.tuning)

    def advance(self) -> Any:
        """One step of every chain; returns the kernel's ``Info``."""
        self.state, info = self.kernel.transition(self.run, self.state, self.tuning, self.iteration)
        self.iteration += 1
        if self._warm_up is not None:
            self._adapt(info)
        return info

    def _adapt(self, info: Any) -> None:
        warm_up = self._warm_up
        assert warm_up is not None  # noqa: S101
        self._warm, self.tuning = self.run.plain(
            warm_up.update, self._warm, self.tuning, self.position, info
        )
        if self.iteration == self.warmup_steps:
            self.tuning = warm_up.finish(self._warm, self.tuning)
            self._warm_up = None
        elif (learn := self._window_ends.get(self.iteration)) is not None:
            last = self.iteration == max(self._window_ends)
            self._warm, self.tuning = warm_up.close_window(
                self._warm, self.tuning, self.position, learn, last
            )

    def _find_step_size(self, target: float) -> None:
        """Doubles or halves the step size until the acceptance probability crosses its target."""
        first = self._accepts(target)
        for _ in range(_MAX_DOUBLINGS):
            factor = 2.0 if first else 0.5
            self.tuning = self.tuning._replace(step_size=self.tuning.step_size * factor)
            if self._accepts(target) != first:
                return

    def _accepts(self, target: float) -> bool:
        accept_prob = self.kernel.probe(self.run, self.state, self.tuning)
        return bool(harmonic_mean(accept_prob) > target)
