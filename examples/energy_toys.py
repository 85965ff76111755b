"""A network as an energy learns densities of the plane, three ways, and Langevin chains sample it.

The density is p(x) = p0(x) exp(-E(x)) / Z with a broad normal p0 and a multilayer perceptron E. Its
Z is unknown, so the likelihood is out of reach. Each toy is learned from draws by

* contrastive divergence with persistent chains: maximum likelihood, chains give the gradient of Z,
* denoising score matching: the score alone is fitted, no chain and no Z,
* noise-contrastive estimation: data are told from noise, and the energy learns its own Z.

In two dimensions Z can be found on a grid after all. So each result is judged by its divergence
KL(p to q) from the toy. Written to ``--output-dir``:

* ``energies.png``: for each way and toy the density, with that divergence; what Langevin chains
  (MALA) that start at random reach; and the path of some of them.
* ``report.md``: a table of the divergences.

    python examples/energy_toys.py [--ways denoising] [--toys moons]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.colors import LinearSegmentedColormap
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import kernels, losses, training
from pyrogen.distributions import Checkerboard, EightGaussians, TwoMoons
from pyrogen.guides import Empty
from pyrogen.models import EnergyModel
from pyrogen.nn import MLP

TOYS = {"8 Gaussians": EightGaussians, "checkerboard": Checkerboard, "moons": TwoMoons}
BATCH, BOUND, GREY = 512, 4.6, "#333333"
INK = LinearSegmentedColormap.from_list("ink", ["white", "#88ccee", "#332288", "#120a3a"])


def broad() -> TorchDistribution:
    """What the energy tilts, where chains start, and the noise to tell data from."""
    normal: TorchDistribution = dist.Normal(torch.zeros(2), 3.0).to_event(1)
    return normal


@dataclass(frozen=True)
class Way:
    """How to train: the loss, the learning rate, and the number of steps."""

    loss: Callable[[], ELBO]
    learning_rate: float
    steps: int


def contrastive_divergence() -> ELBO:
    """512 chains that go on from step to step, but for some that start anew, and so may find
    another mode; a light weight on the energies keeps them near 0."""
    return losses.ContrastiveDivergence(
        kernels.MALA(step_size=0.2),
        num_steps=10,
        persistent=True,
        restart_prob=0.05,
        energy_penalty=0.01,
    )


WAYS = {
    "contrastive divergence": Way(contrastive_divergence, 3e-3, 1500),
    "denoising": Way(partial(losses.ScoreMatching, "denoising", sigma=0.1), 3e-3, 1500),
    "noise contrast": Way(lambda: losses.NoiseContrastive(broad(), ratio=4), 3e-3, 1500),
}


@dataclass(frozen=True)
class Size:
    """How much to compute."""

    share: float = 1.0
    test: int = 20_000
    chains: int = 2000
    chain_steps: int = 300
    pixels: int = 200


def train(model: EnergyModel, toy: TorchDistribution, loss: ELBO, way: Way, size: Size) -> None:
    """Trains an energy on draws of a toy, each seen once."""
    steps = max(2, int(size.share * way.steps))
    training.fit(
        model,
        Empty(),
        toy.sample((steps * BATCH,)),
        loss=loss,
        optimizer=partial(Adam, lr=way.learning_rate, fused=True),
        batch_size=BATCH,
        max_epochs=1,
        clip_norm=10.0,
        scheduler=partial(
            OneCycleLR, max_lr=way.learning_rate, total_steps=steps + 1, pct_start=0.05
        ),
        scheduler_interval="step",
        shuffle=False,
        progress=False,
    )


@dataclass
class Panels:
    """What is drawn of one density: its values on a grid, draws, and the paths of chains."""

    density: Tensor
    draws: Tensor
    paths: Tensor | None = None
    divergence: float | None = None


def grid(pixels: int, bound: float) -> Tensor:
    """The centres of the pixels of a picture, ``[pixels, pixels, 2]``, from the top left."""
    side = torch.linspace(-bound, bound, 2 * pixels + 1)[1::2]
    return torch.stack(torch.meshgrid(side, -side, indexing="xy"), dim=-1)


@torch.no_grad()
def look_at(model: EnergyModel, toy: TorchDistribution, size: Size, compiled: bool) -> Panels:
    """Normalises a trained energy on a grid, measures its divergence, and runs chains on it."""
    fn, bound = model.distribution(), 15.0
    cells = 4 * size.pixels
    mass = fn.unnormalized_log_prob(grid(cells, bound)).flatten().logsumexp(0)
    log_z = mass + 2 * torch.tensor(2 * bound / cells).log()
    x = toy.sample((size.test,))
    divergence = (toy.log_prob(x) - fn.unnormalized_log_prob(x)).mean() + log_z
    density = (fn.unnormalized_log_prob(grid(size.pixels, BOUND)) - log_z).exp()

    chains = kernels.MCMC(
        kernels.MALA(model, step_size=0.1, adapt_step_size=False, compile=compiled),
        num_samples=size.chain_steps,
        warmup_steps=0,
        num_chains=size.chains,
        initial_params={"x": broad().sample((size.chains, 1))},
        disable_progbar=True,
    )
    chains.run(None)
    paths = chains.get_samples(group_by_chain=True)["x"].squeeze(-2)
    return Panels(density, paths[:, -1], paths[:25], divergence.item())


def draw_row(axes: Any, panels: Panels, top: float) -> None:
    """Draws density, ends of chains and paths side by side."""
    extent = (-BOUND, BOUND, -BOUND, BOUND)
    axes[0].imshow(panels.density, extent=extent, cmap=INK, vmin=0, vmax=top)
    axes[1].scatter(*panels.draws.T, s=1.2, c="#332288", alpha=0.55, linewidths=0)
    if panels.paths is not None:
        axes[2].imshow(panels.density, extent=extent, cmap="Greys", vmin=0, vmax=3 * top)
        for path in panels.paths:
            axes[2].plot(*path.T, color="#882255", linewidth=0.35, alpha=0.6)
        axes[2].scatter(*panels.paths[:, 0].T, s=4, c="#44aa99", linewidths=0, zorder=3)
        axes[2].scatter(*panels.paths[:, -1].T, s=4, c="#332288", linewidths=0, zorder=3)
    if panels.divergence is not None:
        label = f"KL {panels.divergence:.3f}"
        box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
        place = {"transform": axes[0].transAxes, "ha": "right", "bbox": box}
        axes[0].text(0.97, 0.04, label, size=6.5, color=GREY, **place)


def picture(rows: dict[str, dict[str, Panels]]) -> Any:
    """One row for each way to train, three columns for each toy."""
    toys = list(next(iter(rows.values())))
    width, height = 4.1 * len(toys) + 0.4, 1.36 * len(rows) + 0.7
    figure = plt.figure(figsize=(width, height))
    blocks = figure.subfigures(1, len(toys), wspace=0.0)
    for block, toy in zip(np.atleast_1d(blocks), toys, strict=True):
        axes = block.subplots(len(rows), 3, squeeze=False)
        block.subplots_adjust(0.09, 0.01, 0.99, 1 - 0.6 / height, wspace=0.06, hspace=0.06)
        block.suptitle(toy, size=12, y=1 - 0.14 / height)
        top = next(iter(rows.values()))[toy].density.max().item()
        for line, (name, panels) in zip(axes, rows.items(), strict=True):
            draw_row(line, panels[toy], top)
            line[0].set_ylabel(name.replace(" ", "\n") if toy == toys[0] else "", size=8)
        first = [axes[0, 0], axes[0, 1], axes[1, 2]]  # the truth has no chains
        for axis, title in zip(first, ("density", "draws", "paths of chains"), strict=True):
            axis.set_title(title, size=8, color=GREY, pad=4)
        for axis in axes.flat:
            axis.set(xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND), xticks=[], yticks=[], aspect=1)
            for spine in axis.spines.values():
                spine.set(color="#cccccc", linewidth=0.6)
        axes[0, 2].set_visible(axes[0, 2].has_data())
    return figure


def report(rows: dict[str, dict[str, Panels]]) -> str:
    """The divergences as a page of Markdown."""
    toys = list(next(iter(rows.values())))
    lines = ["# KL(p to q) in nats", ""]
    lines += [f"| way | {' | '.join(toys)} |", "|---" * (len(toys) + 1) + "|"]
    for name, panels in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{panels[t].divergence:.4f}" for t in toys) + " |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains on all toys in all ways, then draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/energy_toys"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="two steps on one toy, to see that it runs"
    )
    arguments = parser.parse_args()
    size = Size(0.0, 200, 50, 5, 20) if arguments.smoke else Size()
    if arguments.smoke:
        arguments.toys = arguments.toys[:1]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(arguments.seed)
    toys = {name: TOYS[name]() for name in arguments.toys}
    rows: dict[str, dict[str, Panels]] = {}
    for name in arguments.ways:
        way = WAYS[name]
        model = EnergyModel(MLP(2, 1, (128, 128), activation=nn.SiLU), broad())
        start = copy.deepcopy(model.state_dict())
        rows[name] = {}
        for toy_name, toy in toys.items():
            begin = time.perf_counter()
            model.load_state_dict(start)
            loss = way.loss()
            loss = loss if arguments.smoke else losses.Compiled(loss)
            train(model, toy, loss, way, size)
            panels = look_at(model, toy, size, compiled=not arguments.smoke)
            rows[name][toy_name] = panels
            seconds = time.perf_counter() - begin
            print(
                f"{name:22} {toy_name:12} KL {panels.divergence:.4f}  {seconds:.0f} s", flush=True
            )
    page = report(rows)
    (arguments.output_dir / "report.md").write_text(page, encoding="utf-8")
    truth = {
        name: Panels(toy.log_prob(grid(size.pixels, BOUND)).exp(), toy.sample((size.chains,)))
        for name, toy in toys.items()
    }
    picture({"truth": truth, **rows}).savefig(arguments.output_dir / "energies.png", dpi=200)
    print(f"\n{page}\nwritten to {arguments.output_dir}/")


if __name__ == "__main__":
    main()
