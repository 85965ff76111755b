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

_BETWEEN = 0.02  # the time between two looks at the local energy, which costs many times a step
# Windows begin where the potential is not among its highest. There the ground state is smallest,
# and weights, which are in inverse proportion to it, have a mean but no variance.
_KEPT = 0.75


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
        dt, known = self.dynamics.dt, self.dynamics.amplitude is not None
        walkers = self._moved(self.dynamics.start(x), round(equilibration / dt))
        walkers = walkers._replace(log_ratio=torch.zeros_like(walkers.log_ratio))
        length = max(1, round(duration / dt / num_blocks))
        windows = _Windows(0 if known else _half(window, dt))
        highest = self.dynamics.potential(walkers.fine).quantile(_KEPT)
        windows.begin(self.dynamics.potential(walkers.fine) <= highest)
        blocks, local = [], []
        for _ in range(num_blocks):
            walkers = self._block(walkers, length, windows, highest)
            blocks.append(walkers.costs / (length * dt))
            if not known:
                local.append(local_energy(self.dynamics, walkers.fine, self._now))
        coarse, fine = torch.stack(blocks, 1)
        found = {"coarse": coarse, "fine": fine}
        if known:
            hopped = self._hop(walkers.fine, equilibration, length, window, num_blocks)
            return {**found, **hopped}
        return {**found, "local": torch.stack(local), **windows.sums()}

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

    def _block(self, walkers: Walkers, length: int, windows: _Windows, highest: Tensor) -> Walkers:
        """Moves walkers, with a look at the weights wherever a window has its middle or end."""
        walkers = walkers._replace(costs=torch.zeros_like(walkers.costs))
        while length > 0:
            count = min(length, windows.ahead)
            walkers = self._moved(walkers, count)
            if windows.closed_by(-walkers.log_ratio, count):
                walkers = walkers._replace(log_ratio=torch.zeros_like(walkers.log_ratio))
                windows.begin(self.dynamics.potential(walkers.fine) <= highest)
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
        self,
        x: Tensor,
        equilibration: float,
        length: int,
        window: float | None,
        num_blocks: int,
    ) -> dict[str, Tensor]:
        dynamics, run = self.dynamics, self._run
        walkers = dynamics.stand(x, self._now)  # once, which is not worth a graph
        walkers = self._hopped(walkers, round(equilibration / dynamics.dt))
        pace = walkers.pace
        walkers = walkers._replace(accepted=torch.zeros_like(walkers.accepted))
        between = max(1, round(_BETWEEN / dynamics.dt))
        apart, looks = between * dynamics.dt, max(1, length // between)
        windows = _Windows(_half(window, apart))
        energy = run.plain(dynamics.local_energy, walkers)
        everyone = torch.ones_like(energy, dtype=torch.bool)
        windows.begin(everyone)
        blocks, squares, spent = [], torch.zeros_like(energy), torch.zeros_like(energy)
        for _ in range(num_blocks):
            total = torch.zeros_like(energy)
            for _ in range(looks):
                before = energy
                walkers = self._hopped(walkers, between)
                energy = run.plain(dynamics.local_energy, walkers)
                total, squares = total + energy, squares + energy.square()
                spent = spent + 0.5 * apart * pace * (before + energy)
                if windows.closed_by(-spent, 1):
                    spent = torch.zeros_like(spent)
                    windows.begin(everyone)
            if not bool(total.isfinite().all()):
                self._refuse_nonfinite(self._steps, "the local energy of a walker")
            blocks.append(total / looks)
        return {
            "variational": torch.stack(blocks),
            "square": squares / (num_blocks * looks),
            "accepted": walkers.accepted / (num_blocks * looks * between),
            "pace": pace.expand_as(energy),
            **windows.sums(),
        }

    def _hopped(self, walkers: Hopping, count: int) -> Hopping:
        for _ in range(count):
            walkers = self._run.plain(self.dynamics.hop, walkers, self._now)
            self._steps += 1
        return walkers


def _half(window: float | None, dt: float) -> int:
    return 0 if window is None else max(1, round(0.5 * window / dt))


class _Windows:
    """Sums, over the windows of each walker, of the weights at their middle and at their end.

    Args:
        half: steps of half a window; 0 for no windows.
    """

    def __init__(self, half: int) -> None:
        self._half = half
        self.ahead = half or sys.maxsize  # steps to the next middle or end
        self._middle: Tensor | None = None  # of the window that is not at its end yet
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    def begin(self, counted: Tensor) -> None:
        """Begins a window, of the walkers ``[W]`` that are to be counted."""
        self._counted = counted

    def closed_by(self, log_weight: Tensor, count: int) -> bool:
        """Notes the logarithms ``[W]`` of the weights since the window began, if this is its middle
        or end; whether it is the end, after which another is to begin."""
        self.ahead -= count
        if self.ahead > 0:
            return False
        self.ahead = self._half
        if self._middle is None:
            self._middle = log_weight
            return False
        weights = torch.stack([self._middle, log_weight, 2 * log_weight])
        self._sums.append(torch.where(self._counted, weights, -torch.inf))
        self._counts.append(self._counted.to(log_weight))
        self._sums = [torch.stack(self._sums).logsumexp(0)]
        self._counts = [torch.stack(self._counts).sum(0)]
        self._middle = None
        return True

    def sums(self) -> dict[str, Tensor]:
        """Logarithms of the sums, each ``[W]``, and the number of windows."""
        if not self._sums:
            return {}
        middle, end, square = self._sums[0]
        counts = {"windows": self._counts[0]}
        return {"log_middle": middle, "log_end": end, "log_square": square, **counts}
