"""Molecules from noise: networks that turn with their atoms learn laws that are known.

* A harmonic chain: five atoms, neighbours on springs. Its bonds are independent, and their lengths
  follow p(r) ~ r^2 exp(-k (r - 1)^2 / 2).
* A Lennard-Jones cluster: three atoms that attract each other at a distance and repel each other
  near by, in a weak trap. The law of a distance is found by quadrature over all three. Data come
  from Hamiltonian Monte Carlo on the energy.

Two networks learn the score of each by denoising score matching: an equivariant graph network that
moves coordinates (EGNN), and one that sees only distances, whose scores the chain rule hands on to
coordinates. Two samplers turn noise into molecules: a predictor-corrector, that is the reverse
diffusion with Langevin steps at each level, and annealed Langevin dynamics, that is the latter
alone. Their distances are held against the law: by its density in a picture, and by the largest
difference of the distribution functions (Kolmogorov and Smirnov), with the p-value of as many exact
draws.

The cluster has atoms that are bound or apart, and little between. Langevin's steps at a level lag
behind as the noise falls, and below the level at which atoms no longer come and go, what is apart
stays apart. So annealing alone takes ten times as many steps there as for the chain.

Written to ``--output-dir``: ``molecules.png`` and ``report.md``.

    python examples/molecule.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import scipy.stats
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import training
from pyrogen.guides import Empty
from pyrogen.kernels import HMC, MCMC, AnnealedLangevin, ReverseDiffusion
from pyrogen.losses import Compiled, DenoisingScoreMatching
from pyrogen.models import ScoreModel
from pyrogen.nn import EGNN, DistanceScore, Preconditioned
from pyrogen.processes import VarianceExploding

STIFFNESS, TEMPERATURE, TRAP = 60.0, 0.5, 0.3
BATCH, LEARNING_RATE = 256, 3e-3
INK, COLOURS = "#333333", ("#332288", "#117733")
STYLES: tuple[dict[str, Any], ...] = (
    {"alpha": 0.35},
    {"histtype": "step", "linestyle": ":"},
    {"histtype": "step"},
)


@dataclass
class Law:
    """A density on distances, by its values on a grid."""

    grid: Tensor
    density: Tensor

    def __post_init__(self) -> None:
        """Normalises, and sums up."""
        cell = self.grid[1] - self.grid[0]
        self.density = self.density / (self.density.sum() * cell)
        self.cumulative = torch.cat([torch.zeros(1), self.density.cumsum(0) * cell])
        self.edges = torch.cat([self.grid - 0.5 * cell, self.grid[-1:] + 0.5 * cell])

    def cdf(self, r: Any) -> Any:
        """The distribution function, of numpy arrays."""
        return torch.from_numpy(_interpolated(r, self.edges.numpy(), self.cumulative.numpy()))

    def sample(self, n: int) -> Tensor:
        """``[n]``."""
        uniform = torch.rand(n).numpy()
        drawn = _interpolated(uniform, self.cumulative.numpy(), self.edges.numpy())
        return torch.from_numpy(drawn).float()


def _interpolated(x: Any, points: Any, values: Any) -> Any:
    import numpy as np

    return np.interp(x, points, values)


@dataclass
class Molecule:
    """A law of ``atoms`` in space, and what of it is known.

    Attributes:
        atoms: how many.
        bonds: the pairs that are drawn as bonds.
        pairs: what the networks are told of pairs, ``[atoms, atoms, features]``.
        draw: ``n -> [n, atoms, 3]``.
        law: of the distances of ``measured`` pairs, which are independent.
        measured: pairs of atoms.
        epochs: how long the networks are trained.
        langevin: how many steps a level annealed Langevin dynamics is given.
    """

    atoms: int
    bonds: Sequence[tuple[int, int]]
    pairs: Tensor | None
    draw: Callable[[int], Tensor]
    law: Law
    measured: Sequence[tuple[int, int]]
    epochs: int = 20
    langevin: Sequence[int] = (6,)

    def distances(self, x: Tensor) -> Tensor:
        """Of the measured pairs in ``x [n, atoms, 3]``."""
        one, other = (list(side) for side in zip(*self.measured, strict=True))
        return (x[:, one] - x[:, other]).norm(dim=-1).flatten()


def centred(x: Tensor) -> Tensor:
    """Molecules about their mean, which no law here has anything to say of."""
    return x - x.mean(-2, keepdim=True)


def chain(atoms: int = 5) -> Molecule:
    """Neighbours on springs."""
    grid = torch.linspace(0.001, 2, 4000)
    law = Law(grid, grid.square() * torch.exp(-0.5 * STIFFNESS * (grid - 1).square()))
    bonds = [(i, i + 1) for i in range(atoms - 1)]
    bonded = torch.zeros(atoms, atoms, 1)
    for i, j in bonds:
        bonded[i, j] = bonded[j, i] = 1.0

    def draw(n: int) -> Tensor:
        steps = torch.nn.functional.normalize(torch.randn(n, atoms - 1, 3), dim=-1)
        steps = steps * law.sample(n * (atoms - 1)).reshape(n, atoms - 1, 1)
        return centred(torch.cat([torch.zeros(n, 1, 3), steps.cumsum(1)], 1))

    return Molecule(atoms, bonds, bonded, draw, law, bonds)


def pair_energy(r: Tensor) -> Tensor:
    """Lennard-Jones's and the trap's, of one pair, in units of the temperature."""
    sixth = r.clamp(min=1e-3).pow(-6)
    return 4 * (sixth.square() - sixth) / TEMPERATURE + 0.5 * TRAP * r.square()


def energy(x: Tensor) -> Tensor:
    """Of three atoms ``[*, 3, 3]``; the last term holds their mean."""
    first, second, third = x.unbind(-2)
    sides = torch.stack([first - second, second - third, third - first], -2).norm(dim=-1)
    return pair_energy(sides).sum(-1) + x.mean(-2).square().sum(-1)


def cluster(compile: bool, chains: int = 500) -> Molecule:
    """Three atoms. In the law of their distances r, s, t each counts r s t, wherever they make a
    triangle."""
    grid = torch.linspace(0.7, 6, 240)
    weight = grid * torch.exp(-pair_energy(grid))
    r, s, t = grid[:, None, None], grid[None, :, None], grid[None, None, :]
    triangle = (r < s + t) & (s < r + t) & (t < r + s)
    law = Law(grid, weight * (triangle * weight[:, None] * weight).sum((1, 2)))

    def draw(n: int) -> Tensor:
        kernel = HMC(energy=energy, event_shape=(3, 3), num_steps=8, compile=compile)
        start = torch.tensor([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [0.6, 1.0, 0.0]])
        mcmc = MCMC(
            kernel,
            -(-n // chains),
            warmup_steps=200 if compile else 20,
            num_chains=chains,
            thinning=5,
            initial_params={"x": start + 0.05 * torch.randn(chains, 3, 3)},
            disable_progbar=True,
        )
        mcmc.run()
        x = centred(mcmc.get_samples()["x"])
        return x[torch.randperm(len(x))[:n]]

    return Molecule(3, [(0, 1), (1, 2), (2, 0)], None, draw, law, [(0, 1)], 60, (6, 60))


class Centred(nn.Module):
    """A denoiser of molecules about their mean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The mean of the data given ``x``."""
        data: Tensor = self.network(centred(x), t)
        return data


NETWORKS = {"EGNN": EGNN, "distances": DistanceScore}


def samplers(molecule: Molecule, smoke: bool) -> dict[str, Any]:
    """From noise to molecules."""
    levels = 3 if smoke else 100
    found: dict[str, Any] = {
        "predictor-corrector": ReverseDiffusion(
            num_steps=levels,
            method="heun",
            grid="log-snr",
            corrector_steps=4,
            snr=0.27,
            compile=not smoke,
        )
    }
    for steps in molecule.langevin:
        found[f"Langevin, {steps} steps a level"] = AnnealedLangevin(
            num_levels=levels,
            steps_per_level=2 if smoke else steps,
            step_size=0.3,
            compile=not smoke,
        )
    return found


def fit(molecule: Molecule, data: Tensor, name: str, epochs: int, compile: bool) -> ScoreModel:
    """A score-based model of a molecule."""
    shape, width = (molecule.atoms, 3), 32 if compile else 8
    process = VarianceExploding(0.02, 3.0)
    network = NETWORKS[name](shape, pairs=molecule.pairs, width=width)
    denoiser = Centred(Preconditioned(network, process, data_std=float(data.std())))
    model = ScoreModel(process, denoiser, shape, prediction="data", min_time=0.0)
    objective = DenoisingScoreMatching("sigma2")
    steps = epochs * (-(-len(data) // BATCH))
    result = training.fit(
        model,
        Empty(),
        data,
        loss=Compiled(objective) if compile else objective,
        optimizer=lambda parameters: AdamW(parameters, lr=LEARNING_RATE),
        scheduler=lambda optimizer: OneCycleLR(
            optimizer, max_lr=LEARNING_RATE, total_steps=steps + 1
        ),
        scheduler_interval="step",
        batch_size=BATCH,
        max_epochs=epochs,
        clip_norm=10.0,
        ema_decay=0.995 if compile else 0.5,
        progress=False,
    )
    result.load_ema()
    return model.eval().requires_grad_(False)


def compared(molecule: Molecule, x: Tensor, title: str) -> str:
    """A line of the report."""
    r = molecule.distances(x)
    test = scipy.stats.kstest(r.numpy(), lambda r: molecule.law.cdf(r).numpy())
    grid, density = molecule.law.grid, molecule.law.density
    cell = grid[1] - grid[0]
    mean = (grid * density).sum() * cell
    std = ((grid - mean).square() * density).sum().mul(cell).sqrt()
    return (
        f"| {title} | {float(r.mean()):.4f} ({float(mean):.4f}) | {float(r.std()):.4f} "
        f"({float(std):.4f}) | {test.statistic:.4f} | {test.pvalue:.2g} | {len(r)} |"
    )


def draw_molecules(axis: Any, molecule: Molecule, x: Tensor) -> None:
    """Some of them side by side, seen from the front."""
    for k, atoms in enumerate(x):
        place = atoms[:, :2] + torch.tensor([3.4 * (k % 3), -3.4 * (k // 3)])
        for i, j in molecule.bonds:
            axis.plot(*place[[i, j]].T, color="#999999", linewidth=1.2, zorder=1)
        axis.scatter(*place.T, s=26, c=atoms[:, 2], cmap="cividis", vmin=-2, vmax=2, zorder=2)
    axis.set(xticks=[], yticks=[], aspect=1)
    axis.axis("off")


def picture(found: dict[str, tuple[Molecule, dict[str, dict[str, Tensor]]]]) -> Any:
    """A row for each molecule: distances against their law, and molecules drawn."""
    figure, axes = plt.subplots(
        len(found), 3, figsize=(9.6, 2.9 * len(found)), squeeze=False, layout="constrained"
    )
    for line, (title, (molecule, drawn)) in zip(axes, found.items(), strict=True):
        law = molecule.law
        seen = law.density > 1e-3 * law.density.max()
        low, high = float(law.grid[seen][0]), float(law.grid[seen][-1])
        options: dict[str, Any] = {"bins": 50, "range": (low, high), "density": True}
        for axis, (name, by), colour in zip(line[:2], drawn.items(), COLOURS, strict=True):
            for (how, x), style in zip(by.items(), STYLES, strict=False):
                r = molecule.distances(x).numpy()
                axis.hist(r, **options, **style, color=colour, label=how)
            axis.plot(law.grid, law.density, color=INK, linewidth=1.1, label="law")
            axis.set(xlim=(low, high), yticks=[], xlabel="distance")
            axis.set_title(f"{title}: {name}", size=9, color=INK)
            axis.spines[["top", "left", "right"]].set_visible(False)
        draw_molecules(line[2], molecule, drawn["EGNN"]["predictor-corrector"][:6])
    axes[-1, 0].legend(frameon=False, fontsize=7)
    return figure


def main() -> None:
    """Learns both laws with both networks, and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/molecule"))
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)
    size = 20_000
    if options.smoke:
        options.draws, size = 20, 300

    head = ["molecule", "network", "sampler", "mean (exact)", "deviation (exact)", "KS", "p", "n"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    found: dict[str, tuple[Molecule, dict[str, dict[str, Tensor]]]] = {}
    molecules = {
        "harmonic chain": chain(),
        "Lennard-Jones": cluster(not options.smoke, 30 if options.smoke else 500),
    }
    for title, molecule in molecules.items():
        begin = time.perf_counter()
        data = molecule.draw(size)
        lines.append(compared(molecule, data[: options.draws], f"{title} | the data | "))
        print(lines[-1], f"{time.perf_counter() - begin:.0f} s", flush=True)
        found[title] = molecule, {}
        for name in NETWORKS:
            begin = time.perf_counter()
            epochs = 1 if options.smoke else molecule.epochs
            model = fit(molecule, data, name, epochs, not options.smoke)
            print(f"{title}, {name}: {time.perf_counter() - begin:.0f} s", flush=True)
            drawn = found[title][1][name] = {}
            for how, sampler in samplers(molecule, options.smoke).items():
                begin = time.perf_counter()
                model.sampler = sampler
                with torch.no_grad():
                    drawn[how] = model(None, num_samples=options.draws)
                lines.append(compared(molecule, drawn[how], f"{title} | {name} | {how}"))
                print(lines[-1], f"{time.perf_counter() - begin:.0f} s", flush=True)
    page = "\n".join(["# Distances in molecules drawn by a diffusion", "", *lines, ""])
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    picture(found).savefig(options.output_dir / "molecules.png", dpi=160)
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
