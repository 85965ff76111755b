"""The hydrogen molecule: its binding curve, where its electrons are, and where they are driven.

One wave function is trained by its local energy at the separation of the molecule at rest, and then
carried to its neighbours, one after the other, with its walkers. Each energy is another run, of
walkers in the law of the wave function, and stands beside those known to many digits.

* ``curve.png``: the energy of ten separations, against exact values; below, the differences.
* ``electrons.png``: the density of an electron in a plane through the nuclei, from walkers, and the
  drift of one electron while the other is at one of the nuclei: it is driven to the other nucleus.

Written to ``--output-dir``, with ``report.md``.

    python examples/hydrogen_molecule.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from pyrogen.diagnostics import ground_state_energy
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, LocalEnergy
from pyrogen.models import FeynmanKac, Molecule
from pyrogen.nn import WaveFunction

SEPARATIONS = (1.4, 1.2, 1.0, 0.8, 1.7, 2.0, 2.4, 2.8, 3.4, 4.0)
EXACT = {
    1.0: -1.124539720,
    1.4: -1.174475714,
    2.0: -1.138132957,
    2.8: -1.070683233,
    4.0: -1.016390253,
}
INK, BLUE, RED = "#333333", "#332288", "#cc6677"


class Bond:
    """A molecule whose nuclei can be moved, with a wave function that goes with them."""

    def __init__(self, separation: float, walkers: int, compile: bool) -> None:
        self.molecule = Molecule.diatomic(separation)
        self.psi = WaveFunction.molecule(self.molecule.nuclei, self.molecule.charges)
        atoms = self.molecule.nuclei[(torch.arange(2) + torch.randint(2, (walkers, 1))) % 2]
        start = (atoms + 0.5 * torch.randn(walkers, 2, 3)).flatten(-2)
        self.model = FeynmanKac(self.molecule, 6, 1.0, 50, num_walkers=walkers, initial=start)
        self.guide = PathDrift(self.model, drift=self.psi)
        self.objective = LocalEnergy()
        self.loss = Compiled(self.objective) if compile else self.objective
        self.compile = compile

    def move(self, separation: float) -> None:
        """Puts the nuclei at another separation; electrons go with the nearer one."""
        nuclei = Molecule.diatomic(separation).nuclei
        with torch.no_grad():
            if self.objective.carried:
                x = self.objective.carried["x"].unflatten(-1, (2, 3))
                near = torch.cdist(x, self.molecule.nuclei).argmin(-1)
                moved = (x + (nuclei - self.molecule.nuclei)[near]).flatten(-2)
                self.objective.carry({**self.objective.carried, "x": moved})
            orbitals: Any = self.psi.terms[0]
            network: Any = self.psi.terms[2]
            for places in (self.molecule.nuclei, orbitals.nuclei, network.centers):
                places.copy_(nuclei)

    def train(self, steps: int, learning_rate: float) -> None:
        """Minimises the local energy; the learning rate falls to zero like a cosine."""
        cosine = {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": learning_rate, "betas": (0.9, 0.99)},
            "T_max": steps,
        }
        optimizer = pyro.optim.CosineAnnealingLR(cosine)
        svi = SVI(self.model, self.guide, optimizer, loss=self.loss)
        for _ in range(steps):
            svi.step()
            optimizer.step()

    def energy(self, walkers: int, duration: float) -> Any:
        """By walkers of their own."""
        x = self.objective.carried["x"]
        return ground_state_energy(
            self.model,
            self.guide,
            num_walkers=walkers,
            duration=duration,
            equilibration=2.0,
            window=None,
            initial=x.repeat(-(-walkers // len(x)), 1)[:walkers],
            compile=self.compile,
        )

    def draws(self, count: int) -> Tensor:
        """Electrons ``[n, 2, 3]`` in the law of the wave function."""
        loss, drawn = self.objective, []
        with torch.no_grad():
            for _ in range(-(-count // len(loss.carried["x"]))):
                loss.carry(loss.advance(loss.carried, self.model, self.guide, (), {}))
                drawn.append(loss.carried["x"])
        return torch.cat(drawn).unflatten(-1, (2, 3))


def curve(rows: list[tuple[float, float, float]]) -> Any:
    """Energies against separations, and what they differ by from the exact ones."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 5.6), height_ratios=(3, 1.3), sharex=True, layout="constrained"
    )
    r, e, _ = (list(column) for column in zip(*sorted(rows), strict=True))
    above.axhline(-1.0, color="#bbbbbb", linewidth=0.8)
    above.text(r[-1], -0.997, "two atoms", color="#888888", size=8, ha="right")
    above.plot(r, e, "o-", color=BLUE, markersize=4, linewidth=1, label="trained")
    above.plot(list(EXACT), list(EXACT.values()), "x", color=RED, markersize=8, label="exact")
    above.set(ylabel="energy / Hartree")
    above.legend(frameon=False)
    known = [(a, 1e3 * (b - EXACT[a]), 1e3 * c) for a, b, c in sorted(rows) if a in EXACT]
    if known:
        at, off, error = zip(*known, strict=True)
        below.errorbar(at, off, error, fmt="o", color=BLUE, markersize=4, capsize=3)
    below.axhline(0.0, color=RED, linewidth=0.8)
    below.set(xlabel="separation / Bohr", ylabel="trained − exact\n/ milli-Hartree")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def electrons(bond: Bond, draws: int) -> Any:
    """The density of an electron, and the drift of one beside the other."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    x = bond.draws(draws).flatten(0, 1)
    # Round about the axis, and the same at both ends: counts in rings over their volume.
    rings, slices = torch.linspace(0, 2, 17), torch.linspace(-2.6, 2.6, 53)
    places = torch.stack([x[:, :2].norm(dim=-1), x[:, 2]], -1)
    counts = torch.histogramdd(places, [rings, slices]).hist
    density = (counts + counts.flip(1)) / rings.square().diff().unsqueeze(-1)
    plane = torch.cat([density.flip(0), density])
    left.imshow(plane, extent=(-2.6, 2.6, -2, 2), cmap="Blues", interpolation="bilinear")
    left.set_title("density of an electron", size=10, color=INK)
    across = torch.linspace(-2.4, 2.4, 25)
    up = torch.linspace(-1.8, 1.8, 19)
    grid_z, grid_x = torch.meshgrid(across, up, indexing="xy")
    one = torch.stack([grid_x, torch.zeros_like(grid_x), grid_z], -1)
    other = bond.molecule.nuclei[1].expand_as(one)
    with torch.no_grad():
        drift = bond.psi(torch.cat([one, other], -1))[..., :3]
    size = drift.norm(dim=-1)
    arrows = right.quiver(
        grid_z, grid_x, drift[..., 2] / size, drift[..., 0] / size, size, cmap="viridis", scale=30
    )
    figure.colorbar(arrows, ax=right, label="size of the drift", shrink=0.8)
    right.plot(0.7, 0, "o", color=RED, markersize=9, fillstyle="none")
    right.set_title("drift of an electron; the other is in the circle", size=10, color=INK)
    for axis in (left, right):
        axis.plot(bond.molecule.nuclei[:, 2], [0, 0], "+", color=INK, markersize=8)
        axis.set(aspect=1, xlabel="along the axis / Bohr", xlim=(-2.6, 2.6), ylim=(-2, 2))
    return figure


def main() -> None:
    """Trains one separation after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/hydrogen_molecule"))
    parser.add_argument("--walkers", type=int, default=1000)
    parser.add_argument("--duration", type=float, default=10.0, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)
    separations, first, further, draws = SEPARATIONS, 500, 200, 60_000
    if options.smoke:
        separations, first, further, draws = SEPARATIONS[:2], 2, 1, 40
        options.walkers, options.duration = 20, 1.0
    bond = Bond(separations[0], options.walkers, not options.smoke)
    rows: list[tuple[float, float, float]] = []
    at_rest: dict[str, Tensor] = {}
    lines = ["| R | energy | exact | off | minutes |", "|---|---|---|---|---|"]
    for k, separation in enumerate(separations):
        begin = time.perf_counter()
        if at_rest and separation > separations[0] > separations[k - 1]:
            bond.psi.load_state_dict(at_rest)  # from the shortest bond back to the beginning
        bond.move(separation)
        bond.train(first if k == 0 else further, 1e-2 if k == 0 else 4e-3)
        minutes = (time.perf_counter() - begin) / 60
        found = bond.energy(2 * options.walkers, options.duration)
        rows.append((separation, found.energy, found.error))
        exact = EXACT.get(separation)
        off = "" if exact is None else f"{100 * (found.energy - exact) / abs(exact):+.4f} %"
        known = "" if exact is None else f"{exact:.6f}"
        lines.append(f"| {separation} | {found.best} | {known} | {off} | {minutes:.1f} |")
        print(lines[-1], flush=True)
        if k == 0:
            at_rest = {name: value.clone() for name, value in bond.psi.state_dict().items()}
            electrons(bond, draws).savefig(options.output_dir / "electrons.png", dpi=160)
        curve(rows).savefig(options.output_dir / "curve.png", dpi=160)
        plt.close("all")
    page = "\n".join(["# The hydrogen molecule", "", *lines, ""])
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
