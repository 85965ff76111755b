"""The Ising model: a phase transition by Gibbs sampling, and its free energy by annealing.

Spins on a periodic square lattice, bound to their neighbours by a coupling K. Below the critical
coupling log(1 + sqrt 2) / 2 the lattice is disordered; above, it is magnetised. Thousands of chains
are moved at once by colours of the checkerboard. Onsager's magnetisation and Kaufman's normaliser
are known exactly and stand beside what is found. The script writes to ``--output-dir``

* ``phases.png``: lattices below, at and above the transition
* ``magnetisation.png``: against Onsager and Yang
* ``report.md``: log Z by annealed importance sampling against Kaufman

    python examples/ising.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor

from pyrogen import diagnostics, kernels
from pyrogen.models import Ising

CRITICAL = math.log(1 + math.sqrt(2)) / 2
COUPLINGS = (0.3, 0.38, 0.42, CRITICAL, 0.46, 0.5, 0.6)


def lattices(model: Ising, kernel: kernels.Gibbs, coupling: float, sweeps: int) -> Tensor:
    """States ``[draws, sites]`` of chains that start with all spins up: walls are slow to go."""
    torch.nn.init.constant_(model.coupling, coupling)
    start = torch.ones(50, 1, model.event_shape[0])
    mcmc = kernels.MCMC(
        kernel,
        num_samples=20,
        warmup_steps=sweeps,
        num_chains=len(start),
        thinning=max(sweeps // 100, 1),
        initial_params={"x": start},
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples()["x"].squeeze(1)


def spontaneous(coupling: float) -> float:
    """The magnetisation of the infinite lattice."""
    if coupling <= CRITICAL:
        return 0.0
    return float((1 - math.sinh(2 * coupling) ** -4) ** 0.125)


def main() -> None:
    """Samples, anneals and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/ising"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--temperatures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.size, arguments.sweeps, arguments.temperatures = 8, 20, 50
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(arguments.seed)

    model = Ising((arguments.size, arguments.size))
    kernel = kernels.Gibbs(model)
    drawn = {k: lattices(model, kernel, k, arguments.sweeps) for k in COUPLINGS}
    figure, panels = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    for panel, coupling in zip(panels, (0.38, CRITICAL, 0.5), strict=True):
        panel.imshow(drawn[coupling][-1].reshape(model.shape), cmap="gray", vmin=-1, vmax=1)
        panel.set(title=f"K = {coupling:.4g}", xticks=[], yticks=[])
    figure.savefig(output / "phases.png", dpi=150)

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    grid = [0.25 + 0.001 * i for i in range(400)]
    axes.plot(grid, [spontaneous(k) for k in grid], color="black", label="infinite lattice, exact")
    means = [float(x.mean(1).abs().mean()) for x in drawn.values()]
    axes.plot(COUPLINGS, means, "o", label=f"Gibbs sampling, {arguments.size} x {arguments.size}")
    axes.set(xlabel="coupling", ylabel="absolute magnetisation")
    axes.legend()
    figure.savefig(output / "magnetisation.png", dpi=150)

    rows = []
    for size in (4, 8, 16):
        small = Ising((size, size))
        estimate = diagnostics.ais(
            small, num_chains=200, num_temperatures=arguments.temperatures, burn_in=500
        )
        low, high = estimate.interval
        rows.append(
            f"| {size} x {size} | {float(small.double().exact_log_z()):.4f} | "
            f"{estimate.log_z:.4f} | [{low:.4f}, {high:.4f}] | {estimate.ess:.0f} of 200 |"
        )
    page = "\n".join(
        [
            "# The Ising model at its critical coupling",
            "",
            "| lattice | log Z, exact | annealed | interval (95 %) | effective chains |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (output / "report.md").write_text(page, encoding="utf-8")
    print(f"{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
