"""Samplers that walk down a grid of times by a solver, with Langevin steps between its steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._options import positive, whole
from pyrogen.kernels._reverse import Reverse, Walk
from pyrogen.kernels._score_site import Denoising
from pyrogen.processes import Solver, langevin_step

__all__ = ["Solved"]


class Solved(Reverse):
    """A sampler that walks down a grid of times by a solver.

    Args:
        model: as of every :class:`Reverse`.
        solver: how to step.
        num_steps: likewise.
        grid: likewise.
        denoise: likewise.
        compile: likewise.
        corrector_steps: Langevin steps after each step of the solver.
        snr: their signal-to-noise ratio.
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None,
        solver: Solver,
        num_steps: int,
        grid: str,
        denoise: bool,
        compile: bool,
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> None:
        super().__init__(model, num_steps, grid, denoise, compile)
        self.solver = solver
        self.corrector_steps = whole("corrector_steps", corrector_steps, 0)
        self.snr = positive("snr", snr)

    @property
    def evaluations(self) -> int:
        """How often a run asks the network."""
        moves = self.num_steps - self.denoise
        return moves * (self.solver.evaluations + self.corrector_steps) + self.denoise

    def obstacle(self, fn: ScoreBased) -> str | None:
        """Why a distribution cannot be sampled so; ``None`` if it can."""
        signal = fn.process.mean_scale(fn.max_time)  # type: ignore[arg-type]
        if fn.prediction in ("noise", "score") and not bool(signal > 0):
            return (
                f"expected some signal at max_time = {fn.max_time:g}, where data are to be told "
                f"from a predicted {fn.prediction}, got none of {type(fn.process).__name__}; "
                'begin at ScoreBased(..., max_time=0.999), or predict "data" or "velocity"'
            )
        return super().obstacle(fn) or self.solver.obstacle(fn.process, fn.max_time)

    def first_carry(self, x: Tensor) -> Any:
        """That of the solver."""
        return self.solver.init(x)

    def pairs(self, times: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each time and the next."""
        return itertools.pairwise(times)

    def move(self, potential: Denoising, walk: Walk, t: Tensor, s: Tensor) -> Walk:
        """A step of the solver, and those of the corrector at its end."""
        process, predict = potential.process, potential.predictor(s)
        noise = torch.randn_like(walk.x) if self.solver.stochastic else walk.x
        x, carry = self.solver.step(process, predict, walk.x, t, s, noise, walk.carry)
        for _ in range(self.corrector_steps):
            size = 4 * self.snr**2
            x = langevin_step(process, predict, x, s, size, torch.randn_like(x))
        return walk.to(x, carry)
