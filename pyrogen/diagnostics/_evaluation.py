"""A run of walkers, and what is kept of it: per walker, for each of a few blocks of time."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from pyrogen.diagnostics._walkers import Dynamics, Hopping, Walkers, local_energy
from pyrogen.errors import NonFiniteError
from pyrogen.kernels._runner import Runner

__all__ = ["Evaluation"]

_BETWEEN = 0.1  # the time between two looks at the local energy, which changes slowly


class Evaluation:
    """Runs the walkers of one process.

    Args:
        dynamics: their steps.
        times: of the model's paths, which a drift that depends on time goes through again and
            again.
        site: name of the path's site, for messages.
        compile: run each step as a compiled graph.
    """

    def __init__(self, dynamics: Dynamics, times: Tensor, site: str, compile: bool) -> None:
        self.dynamics, self.site = dynamics, site
        cycle = max(1, round(float(times[-1] - times[0]) / dynamics.dt))
        self._times = (times[0] + dynamics.dt * torch.arange(cycle).to(times)).unbind()
        no_target: Any = None
        self._run = Runner(no_target, compile)
        self._steps = 0

    def run(
        self,
        x: Tensor,
        duration: float,
        equilibration: float,
        window: float | None,
        num_blocks: int,
    ) -> dict[str, Tensor]:
        """What walkers at ``x [W, D]`` find, each ``[*, W]``."""
        dt = self.dynamics.dt
        walkers = self._moved(self.dynamics.start(x), round(equilibration / dt))
        length = max(1, round(duration / dt / num_blocks))
        half = 0 if window is None else max(1, round(0.5 * window / dt))
        weights = _Weights(self.dynamics, half)
        walkers = weights.begin(walkers)
        blocks, local = [], []
        for _ in range(num_blocks):
            walkers = self._block(walkers, length, weights)
            blocks.append(walkers.costs / (length * dt))
            local.append(local_energy(self.dynamics, walkers.fine, self._now))
        coarse, fine = torch.stack(blocks, 1)
        found = {"coarse": coarse, "fine": fine, "local": torch.stack(local), **weights.sums()}
        if self.dynamics.amplitude is not None:
            found.update(self._hop(walkers.fine, equilibration, length, num_blocks))
        return found

    @property
    def _now(self) -> Tensor:
        return self._times[self._steps % len(self._times)]

    def _moved(self, walkers: Walkers, count: int) -> Walkers:
        for _ in range(count):
            step = torch.tensor(self._steps, device=walkers.fine.device)
            walkers = self._run.plain(self.dynamics.move, walkers, self._now, step)
            self._steps += 1
        self._refuse_nonfinite(int(walkers.failed))
        return walkers

    def _block(self, walkers: Walkers, length: int, weights: _Weights) -> Walkers:
        """Moves walkers, with a look at the weights wherever a window has its middle or end."""
        walkers = walkers._replace(costs=torch.zeros_like(walkers.costs))
        while length > 0:
            count = min(length, weights.ahead)
            walkers = weights.seen(self._moved(walkers, count), count)
            length -= count
        return walkers

    def _refuse_nonfinite(
        self, step: int, what: str = "a walker, or its drift or potential,"
    ) -> None:
        if step < 0:
            return
        raise NonFiniteError(
            f"site {self.site!r}: {what} is not finite after step {step}. Use smaller steps, or a "
            "drift that leads back",
            site=self.site,
            step=step,
        )

    # With the test of Metropolis.

    def _hop(
        self, x: Tensor, equilibration: float, length: int, num_blocks: int
    ) -> dict[str, Tensor]:
        dynamics, run = self.dynamics, self._run
        walkers: Hopping = run.plain(dynamics.stand, x, self._now)
        walkers = self._hopped(walkers, round(equilibration / dynamics.dt))
        walkers = walkers._replace(accepted=torch.zeros_like(walkers.accepted))
        between = max(1, round(_BETWEEN / dynamics.dt))
        looks = max(1, length // between)
        blocks, squares = [], torch.zeros_like(walkers.log_amplitude, dtype=torch.float64)
        for _ in range(num_blocks):
            total = torch.zeros_like(squares)
            for _ in range(looks):
                walkers = self._hopped(walkers, between)
                energy = run.plain(dynamics.local_energy, walkers)
                total, squares = total + energy, squares + energy.square()
            if not bool(total.isfinite().all()):
                self._refuse_nonfinite(self._steps, "the local energy of a walker")
            blocks.append(total / looks)
        hops = num_blocks * looks * between
        return {
            "variational": torch.stack(blocks),
            "square": squares / (num_blocks * looks),
            "accepted": walkers.accepted / hops,
        }

    def _hopped(self, walkers: Hopping, count: int) -> Hopping:
        for _ in range(count):
            walkers = self._run.plain(self.dynamics.hop, walkers, self._now)
            self._steps += 1
        return walkers


class _Weights:
    """Sums, over the windows of each walker, of the weights at their middle and at their end.

    Args:
        dynamics: the walkers' steps.
        half: steps of half a window; 0 for no windows.
    """

    def __init__(self, dynamics: Dynamics, half: int) -> None:
        self._dynamics, self._half = dynamics, half
        self.ahead = half or sys.maxsize  # steps to the next middle or end
        self._middle: Tensor | None = None  # of the window that is not at its end yet
        self._sums: list[Tensor] = []
        self._count = 0

    def begin(self, walkers: Walkers) -> Walkers:
        """Walkers at the beginning of a window."""
        self._beginning = self._log_amplitude(walkers)
        return walkers._replace(log_ratio=torch.zeros_like(walkers.log_ratio))

    def seen(self, walkers: Walkers, count: int) -> Walkers:
        """Notes the weights where due, after so many steps; a window's end is the next's begin."""
        self.ahead -= count
        if self.ahead > 0:
            return walkers
        self.ahead = self._half
        log_weight = self._log_amplitude(walkers) - self._beginning - walkers.log_ratio
        if self._middle is None:
            self._middle = log_weight
            return walkers
        new = [self._middle, log_weight, 2 * log_weight]
        pairs = zip(self._sums, new, strict=True)
        self._sums = [a.logaddexp(b) for a, b in pairs] if self._sums else new
        self._middle = None
        self._count += 1
        return self.begin(walkers)

    def sums(self) -> dict[str, Tensor]:
        """Logarithms of the sums, each ``[W]``, and the number of windows."""
        if not self._sums:
            return {}
        names = ("log_middle", "log_end", "log_square")
        found = dict(zip(names, self._sums, strict=True))
        return {**found, "windows": torch.full_like(self._sums[0], self._count)}

    def _log_amplitude(self, walkers: Walkers) -> Tensor:
        if self._dynamics.amplitude is None or self._half == 0:
            return torch.zeros_like(walkers.log_ratio)
        return self._dynamics.log_amplitude(walkers.fine).double()
