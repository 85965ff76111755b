"""Paths of an SDE and their gradient, side by side with torchsde and a plain loop; their memory.

Equal work: 256 paths of 10 dimensions in 100 steps of Euler and Maruyama, drift a network with 64
hidden units, and the gradient of the mean square of all states in its parameters.

* torchsde: ``sdeint`` with the Brownian motion that it makes by itself. Target: at least 30 times
  our time.
* plain: a loop in torch that draws and scales all increments before it begins,
  ``x = x + f(x) * dt + dw[k]``. Target: ours in at most its time.

Then the memory of the same with 512 hidden units in more steps, each in a process of its own: what
the largest resident size grows by from before the path is drawn until its gradient is there (on
Linux, where glibc is told to give each tensor memory of its own; else what is freed may stay in
pieces, and the sizes say more of glibc than of what is kept). The path itself is kept by all.

    python benchmarks/paths.py [--rounds 40] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchsde
from side_by_side import ratio, side_by_side
from torch import Tensor, nn

from pyrogen import distributions
from pyrogen.processes import Process

BATCH, SIZE, STEPS, SCALE = 256, 10, 100, 0.2
WIDE = 512
WAYS = {
    "direct": ("euler", "direct"),
    "checkpointed": ("euler", "checkpointed"),
    "adjoint": ("torchsde:reversible_heun", "adjoint"),
}


class Drift(nn.Sequential):
    """A network of the state alone."""

    def __init__(self, hidden: int = 64) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(SIZE, hidden), nn.Tanh(), nn.Linear(hidden, SIZE))

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """``[*, 10]``."""
        return super().forward(x)


def differentiated(path: Callable[[], Tensor]) -> Callable[[], float]:
    """Draws, and takes the gradient."""

    def run() -> float:
        loss = path().square().mean()
        loss.backward()
        return loss.item()

    return run


def ours(
    steps: int = STEPS, solver: str = "euler", gradient: str = "direct", hidden: int = 64
) -> Callable[[], float]:
    """The contestant of this library."""
    times, process = torch.linspace(0.0, 1.0, steps + 1), Process(Drift(hidden), SCALE)
    start = torch.zeros(BATCH, SIZE)
    law = distributions.Path(process, start, times, solver=solver, gradient=gradient)
    return differentiated(law.rsample)


def plain() -> Callable[[], float]:
    """The loop that one writes by hand."""
    drift, dt = Drift(), 1 / STEPS

    def path() -> Tensor:
        dw = torch.randn(STEPS, BATCH, SIZE) * (SCALE * dt**0.5)
        x = torch.zeros(BATCH, SIZE)
        states = [x]
        for k in range(STEPS):
            x = x + drift(x) * dt + dw[k]
            states.append(x)
        return torch.stack(states)

    return differentiated(path)


def by_torchsde() -> Callable[[], float]:
    """The solver of torchsde."""
    drift, times = Drift(), torch.linspace(0.0, 1.0, STEPS + 1)

    class SDE(nn.Module):
        """The process in its words."""

        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            """Drift."""
            return drift(y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            """Diffusion."""
            return torch.full_like(y, SCALE)

    sde, start = SDE(), torch.zeros(BATCH, SIZE)
    return differentiated(lambda: torchsde.sdeint(sde, start, times, dt=1 / STEPS, method="euler"))


def grown(way: str, steps: int) -> float:
    """By how many MiB the resident size grows at most, after a run that loads what there is to."""
    solver, gradient = WAYS[way]
    ours(2, solver, gradient, WIDE)()
    run = ours(steps, solver, gradient, WIDE)
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A line of Linux' status of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def memory(counts: list[int], runs: int) -> None:
    """Prints the memory of each way, for each number of steps, the median of some runs."""
    print(f"\n{'MiB':16s}" + "".join(f"{count:>10d}" for count in counts) + "   steps")
    for way in WAYS:
        found = []
        for count in counts:
            command = [sys.executable, __file__, "--grown", way, "--steps", str(count)]
            found.append(median(float(run_apart(command)) for _ in range(runs)))
        print(f"{way:16s}" + "".join(f"{value:10.1f}" for value in found), flush=True)


def run_apart(command: list[str]) -> str:
    """What a process of its own prints."""
    apart = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True, env=apart
    )
    return done.stdout


def main() -> None:
    """Prints the times, their ratios, and the memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="one round, to see that it runs")
    parser.add_argument("--grown", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.grown:
        print(grown(options.grown, options.steps))
        return
    rounds = 1 if options.smoke else options.rounds
    near = side_by_side({"plain": plain(), "PyroGen": ours()}, rounds=rounds, calls=5, warmup=2)
    far = side_by_side(
        {"torchsde": by_torchsde(), "PyroGen": ours()},
        rounds=max(1, rounds // 8),
        calls=1,
        warmup=1,
    )
    for name, times in (("plain", near), ("PyroGen", near), ("torchsde", far)):
        print(f"{name:10s} {median(times[name]):10.2f} ms")
    print(f"PyroGen / plain loop {ratio(near['PyroGen'], near['plain']):8.3f}   (target 1.0)")
    print(f"torchsde / PyroGen   {ratio(far['torchsde'], far['PyroGen']):8.1f}   (target 30)")
    if options.smoke:
        memory([50], 1)
    else:
        memory([100, 400, 800], 5)


if __name__ == "__main__":
    main()
