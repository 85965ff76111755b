"""Three bosons in a trap that repel each other: energies, densities, and paths.

The wave function of three particles in two dimensions is trained by its local energy, for a weak
and for a strong repulsion. Pictures as in the paper of Barr, Gispen and Lamacraft (2020):

* the density of a particle in the trap, which repulsion flattens, beside that without repulsion;
* the density of the distance of two particles, with its hole;
* paths of the trained process: three particles in imaginary time, which avoid each other.

Written to ``--output-dir``: ``bosons.png`` and ``report.md``.

    python examples/three_bosons.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from pyrogen.diagnostics import GroundStateEnergy, ground_state_energy
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, LocalEnergy
from pyrogen.models import FeynmanKac, TrappedBosons
from pyrogen.nn import WaveFunction

BOUNDS = {3.0: 3.886440, 16.0: 4.986609}  # of a diagonalisation; the energies are below
INK, COLOURS = "#333333", ("#332288", "#117733", "#cc6677")


def trained(
    coupling: float, steps: int, walkers: int, compile: bool
) -> tuple[FeynmanKac, PathDrift, Tensor]:
    """Model, guide, and where the walkers are."""
    pyro.clear_param_store()
    potential = TrappedBosons(3, coupling)
    model = FeynmanKac(potential, 6, duration=2.0, num_steps=200, num_walkers=walkers)
    guide, objective = PathDrift(model, drift=WaveFunction.trap(3, 2)), LocalEnergy()
    cosine = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": 1e-2, "betas": (0.9, 0.99)},
        "T_max": steps,
    }
    optimizer = pyro.optim.CosineAnnealingLR(cosine)
    svi = SVI(model, guide, optimizer, loss=Compiled(objective) if compile else objective)
    for _ in range(steps):
        svi.step()
        optimizer.step()
    return model, guide, objective.carried["x"]


def evaluated(
    model: FeynmanKac, guide: PathDrift, x: Tensor, duration: float, compile: bool
) -> GroundStateEnergy:
    """By walkers of their own."""
    return ground_state_energy(
        model,
        guide,
        num_walkers=2 * len(x),
        dt=0.02,
        duration=duration,
        equilibration=2.0,
        window=0.2 * duration,
        initial=x.repeat(2, 1),
        compile=compile,
    )


def draws(guide: PathDrift, x: Tensor, rounds: int) -> Tensor:
    """Particles ``[n, 3, 2]`` along paths of the trained process."""
    with torch.no_grad():
        law = guide.law().started_at(x)
        found = [law.sample()[:, ::50] for _ in range(rounds)]
    return torch.cat(found).flatten(0, 1).unflatten(-1, (3, 2))


def picture(found: dict[float, tuple[Tensor, Tensor]]) -> Any:
    """A row for each coupling: the density, that of distances, and paths."""
    figure, axes = plt.subplots(
        len(found), 3, figsize=(10.2, 3.3 * len(found)), squeeze=False, layout="constrained"
    )
    r = torch.linspace(0, 3.6, 200)
    for line, (coupling, (particles, path)) in zip(axes, found.items(), strict=True):
        _radial(line[0], particles.flatten(0, 1).norm(dim=-1))
        line[0].plot(r, (-r.square()).exp() / math.pi, "--", color=INK, label="no repulsion")
        line[0].set(title=f"g = {coupling:g}: density", xlabel="distance from the middle")
        apart = torch.cat([particles[:, i] - particles[:, j] for i, j in ((0, 1), (0, 2), (1, 2))])
        _radial(line[1], apart.norm(dim=-1))
        free = (-0.5 * r.square()).exp() / (2 * math.pi)
        line[1].plot(r, free, "--", color=INK, label="no repulsion")
        line[1].set(title="density of differences", xlabel="distance of two particles")
        for axis in line[:2]:
            axis.legend(frameon=False, fontsize=8)
            axis.set(xlim=(0, 3.6), yticks=[])
            axis.spines[["top", "left", "right"]].set_visible(False)
        for k, colour in enumerate(COLOURS):
            line[2].plot(*path[:, k].T, color=colour, linewidth=0.6)
            line[2].plot(*path[-1, k], "o", color=colour, markersize=5)
        line[2].set(title="three particles, a time of 2", aspect=1, xlim=(-3, 3), ylim=(-3, 3))
    return figure


def _radial(axis: Any, distances: Tensor) -> None:
    """The density in the plane of points at these distances."""
    edges = torch.linspace(0, 3.6, 61)
    counts = torch.histogram(distances, edges).hist
    areas = math.pi * edges.square().diff()
    axis.stairs(counts / areas / len(distances), edges, fill=True, color=COLOURS[0], alpha=0.4)


def main() -> None:
    """Trains, evaluates and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/three_bosons"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--walkers", type=int, default=1000)
    parser.add_argument("--duration", type=float, default=20.0, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)
    if options.smoke:
        options.steps, options.walkers, options.duration = 2, 20, 1.0
    lines = ["| g | energy | bound | importance-sampled | minutes |", "|---|---|---|---|---|"]
    found: dict[float, tuple[Tensor, Tensor]] = {}
    for coupling, bound in BOUNDS.items():
        begin = time.perf_counter()
        model, guide, x = trained(coupling, options.steps, options.walkers, not options.smoke)
        minutes = (time.perf_counter() - begin) / 60
        energy = evaluated(model, guide, x, options.duration, not options.smoke)
        row = f"{energy.best} | {bound} | {energy.projected} | {minutes:.1f}"
        lines.append(f"| {coupling:g} | {row} |")
        print(lines[-1], flush=True)
        with torch.no_grad():
            path = guide.law().started_at(x).sample()[0].unflatten(-1, (3, 2))
        found[coupling] = draws(guide, x, 1 if options.smoke else 8), path
    page = "\n".join(["# Three bosons in a trap", "", *lines, ""])
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    picture(found).savefig(options.output_dir / "bosons.png", dpi=160)
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
