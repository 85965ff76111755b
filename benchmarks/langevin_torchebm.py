"""The negative phase of contrastive divergence side by side with torchebm's Langevin sampler.

Equal work: the same network as energy, with the same weights, as many chains and steps, started at
standard normal draws, and the same transition x - (h/2) grad U(x) + sqrt(h) z. The base, a standard
normal too, is part of the potential of both. Both take turns, round after round; what is printed is
the median time of one phase and the median ratio over rounds. Target: at most 0.5 of torchebm's
time.

Ours is a short run as ``ContrastiveDivergence`` has it inside a compiled step: the energy, its
gradient and all transitions in one graph. It also checks each chain for divergence. Compiling it
takes some seconds, once, and is not counted. torchebm's sampler runs operation by operation; with
``--compiled-model`` it is given a network that torch.compile was called on.

torchebm is run by another interpreter, which needs ``torchebm`` and the same version of torch:

    python benchmarks/langevin_torchebm.py --torchebm-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from side_by_side import Remote, answer, ratio, side_by_side
from torch import Tensor, nn

TARGET, STEP = 0.5, 0.01
Function = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """How large a phase is."""

    dimensions: int
    hidden: int
    chains: int
    steps: int


CASES = {
    "2 dimensions, 128 units, 512 chains, 10 steps": Case(2, 128, 512, 10),
    "2 dimensions, 64 units, 64 chains, 20 steps": Case(2, 64, 64, 20),
    "64 dimensions, 256 units, 100 chains, 20 steps": Case(64, 256, 100, 20),
}


def network(case: Case) -> nn.Sequential:
    """The energy, of equal weights in both interpreters."""
    torch.manual_seed(0)
    sizes = (case.dimensions, case.hidden), (case.hidden, case.hidden), (case.hidden, 1)
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(*size), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def of_torchebm(case: Case, compiled: bool) -> Function:
    """The contestant of another interpreter."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Tilted(BaseModel):  # type: ignore[misc]
        """The network and a standard normal base."""

        def __init__(self) -> None:
            super().__init__()
            net = network(case)
            self.net = torch.compile(net) if compiled else net

        def forward(self, x: Tensor) -> Tensor:
            """The potential of each point."""
            return self.net(x).squeeze(-1) + 0.5 * x.square().sum(-1)

    # Its step is x - eta grad U + sqrt(2 eta) z, with eta = h / 2.
    sampler = LangevinDynamics(Tilted(), step_size=STEP / 2, noise_scale=1.0)
    size = {"dim": case.dimensions, "n_samples": case.chains, "n_steps": case.steps}
    return lambda: sampler.sample(**size).square().mean().item()


def of_pyrogen(case: Case) -> Function:
    """The contestant of this library."""
    from pyrogen.graph import Captured
    from pyrogen.kernels import Langevin, ShortRun
    from pyrogen.models import EnergyModel

    model = EnergyModel(network(case), base=case.dimensions)
    run = ShortRun(Langevin(step_size=STEP), num_steps=case.steps)
    model.sampler = run
    phase = Captured(lambda: model.distribution().sample((case.chains,)))
    return lambda: phase().square().mean().item()


def line(name: str, options: argparse.Namespace) -> str:
    """Times one case."""
    how = ["--serve", name, "--threads", str(options.threads)]
    how += ["--compiled-model"] if options.compiled_model else []
    remote = Remote(options.torchebm_python, __file__, *how)
    contestants = {"torchebm": remote, "PyroGen": of_pyrogen(CASES[name])}
    # Both are Langevin chains of one law: their mean squares agree but for noise.
    squares = {who: median(run() for _ in range(50)) for who, run in contestants.items()}
    times = side_by_side(contestants, rounds=options.rounds, calls=20)
    remote.close()
    relative = ratio(times["PyroGen"], times["torchebm"])
    shown = "".join(f"{median(times[who]):12.3f}" for who in contestants)
    means = ", ".join(f"{value:.3f}" for value in squares.values())
    return f"{name:48s}{shown}{relative:8.2f}{TARGET:8.2f}    mean squares {means}"


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--torchebm-python", help="an interpreter with torchebm")
    parser.add_argument("--compiled-model", action="store_true", help="torch.compile its network")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="the cases whose name holds this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        answer(of_torchebm(CASES[options.serve], options.compiled_model))
        return
    if not options.torchebm_python:
        print("skipped: needs --torchebm-python, the path of an interpreter with torchebm")
        return
    print(f"{'case':48s}{'torchebm':>12s}{'PyroGen':>12s}{'ratio':>8s}{'target':>8s}    (ms)")
    for name in CASES:
        if options.only in name:
            print(line(name, options), flush=True)


if __name__ == "__main__":
    main()
