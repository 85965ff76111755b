"""Diffusions of the plane: scores, velocities, paths and densities.

Each toy is learned from draws by the same network, three ways:

* denoising score matching of a variance-preserving process, with the likelihood's weighting;
* flow matching along straight lines from data to noise;
* flow matching between data and noise that were paired by optimal transport, whose paths are
  straighter.

The probability flow of each is a bijection with a density, so that it can be judged by its
divergence KL(p to q) from the toy. Written to ``--output-dir``:

* ``diffusions.png``: for each toy and way the density, with that divergence; draws; the velocity
  back to data in the middle of time, over the noised law; and paths from noise (green) to data.
* ``report.md``: the divergences, and how far paths are from straight lines.

    python examples/diffusion_toys.py [--toys moons]
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from matplotlib.colors import LinearSegmentedColormap
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import training
from pyrogen.distributions import Checkerboard, EightGaussians, ScoreBased, TwoMoons
from pyrogen.guides import Empty
from pyrogen.losses import Compiled, DenoisingScoreMatching, FlowMatching
from pyrogen.models import ScoreModel
from pyrogen.nn import Preconditioned, TimeMLP
from pyrogen.processes import LinearProcess, Rectified, VariancePreserving

TOYS = {"8 Gaussians": EightGaussians, "checkerboard": Checkerboard, "moons": TwoMoons}
BATCH, BOUND, GREY, STEPS_OF_PATHS = 512, 4.6, "#333333", 100
INK = LinearSegmentedColormap.from_list("ink", ["white", "#88ccee", "#332288", "#120a3a"])


@dataclass(frozen=True)
class Way:
    """A process, what the network predicts, and how it is trained."""

    process: LinearProcess
    prediction: str
    loss: ELBO


WAYS = {
    "score\nmatching": Way(VariancePreserving(), "data", DenoisingScoreMatching("likelihood")),
    "flow\nmatching": Way(Rectified(), "velocity", FlowMatching()),
    "with optimal\ntransport": Way(Rectified(), "velocity", FlowMatching("optimal-transport")),
}


def build(way: Way, hidden: int) -> ScoreModel:
    """A model of the plane."""
    network: nn.Module = TimeMLP(2, hidden=(hidden,) * 3, frequencies=5, activation=nn.SiLU)
    if way.prediction == "data":
        network = Preconditioned(network, way.process, data_std=2.0)
    return ScoreModel(way.process, network, 2, way.prediction, min_time=1e-3, atol=1e-4, rtol=1e-4)


def fit(model: ScoreModel, loss: ELBO, toy: TorchDistribution, steps: int) -> None:
    """Trains on draws of a toy, each seen once, and leaves the averaged parameters."""
    result = training.fit(
        model,
        Empty(),
        toy.sample((steps * BATCH,)),
        loss=loss,
        optimizer=partial(Adam, lr=2e-3, fused=True),
        batch_size=BATCH,
        max_epochs=1,
        scheduler=partial(OneCycleLR, max_lr=2e-3, total_steps=steps + 1, pct_start=0.1),
        scheduler_interval="step",
        ema_decay=0.99,
        shuffle=False,
        progress=False,
    )
    result.load_ema()


@dataclass
class Panels:
    """What is drawn of one law."""

    density: Tensor
    draws: Tensor
    paths: Tensor
    velocity: Tensor
    noised: Tensor
    divergence: float
    bend: float


def grid(pixels: int) -> Tensor:
    """Centres of the pixels of a picture, ``[pixels, pixels, 2]``, from the top left."""
    side = torch.linspace(-BOUND, BOUND, 2 * pixels + 1)[1::2]
    return torch.stack(torch.meshgrid(side, -side, indexing="xy"), dim=-1)


def follow(fn: ScoreBased, x: Tensor) -> Tensor:
    """Paths of the probability flow from noise to data, ``[steps + 1, n, 2]``."""
    times = torch.linspace(fn.max_time, fn.min_time, STEPS_OF_PATHS + 1)
    states = [x]
    for start, end in itertools.pairwise(times):
        first = fn.velocity(x, start)
        second = fn.velocity(x + (end - start) * first, end)
        x = x + 0.5 * (end - start) * (first + second)
        states.append(x)
    return torch.stack(states)


def bend_of(paths: Tensor) -> float:
    """By how much paths are longer than the straight lines between their ends."""
    length = paths.diff(dim=0).norm(dim=-1).sum(0)
    return float((length / (paths[-1] - paths[0]).norm(dim=-1)).mean() - 1)


@torch.no_grad()
def look_at(fn: ScoreBased, toy: TorchDistribution, test: int, pixels: int) -> Panels:
    """Evaluates what was learned."""
    x = toy.sample((test,))
    middle = 0.35
    alpha, sigma = fn.process.mean_scale(middle), fn.process.std(middle)
    arrows = grid(min(17, pixels))
    paths = follow(fn, fn.terminal().sample((1_000,)))
    return Panels(
        density=fn.log_prob(grid(pixels)).exp(),
        draws=fn.sample((3_000 if test > 1_000 else 100,)),
        paths=paths[:, :60],
        velocity=torch.cat([arrows, -fn.velocity(arrows, middle)], -1),
        noised=alpha * x[:2_000] + sigma * torch.randn_like(x[:2_000]),
        divergence=float((toy.log_prob(x) - fn.log_prob(x)).mean()),
        bend=bend_of(paths),
    )


def draw_row(axes: Any, panels: Panels, top: float) -> None:
    """Density, draws, velocity and paths, side by side."""
    extent = (-BOUND, BOUND, -BOUND, BOUND)
    axes[0].imshow(panels.density, extent=extent, cmap=INK, vmin=0, vmax=top)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    place = {"transform": axes[0].transAxes, "ha": "right", "bbox": box}
    axes[0].text(0.97, 0.04, f"KL {panels.divergence:.3f}", size=6.5, color=GREY, **place)
    axes[1].scatter(*panels.draws.T, s=1.2, c="#332288", alpha=0.55, linewidths=0)
    axes[2].scatter(*panels.noised.T, s=1, c="#88ccee", alpha=0.4, linewidths=0)
    x, y, u, v = panels.velocity.flatten(0, 1).T
    speed = torch.hypot(u, v)
    axes[2].quiver(x, y, u / speed, v / speed, speed.clamp(max=6), cmap="magma_r", scale=24)
    for path in panels.paths.transpose(0, 1):
        axes[3].plot(*path.T, color="#882255", linewidth=0.5, alpha=0.7)
    axes[3].scatter(*panels.paths[0].T, s=4, c="#44aa99", linewidths=0, zorder=3)
    axes[3].scatter(*panels.paths[-1].T, s=4, c="#332288", linewidths=0, zorder=3)


def picture(rows: dict[str, dict[str, Panels]], toys: dict[str, TorchDistribution]) -> Any:
    """A block for each toy, a row for each way."""
    height = 1.36 * len(rows) + 0.7
    figure = plt.figure(figsize=(5.4 * len(toys) + 0.4, height))
    blocks: Any = figure.subfigures(1, len(toys), squeeze=False)[0]
    for block, (toy_name, toy) in zip(blocks, toys.items(), strict=True):
        axes = block.subplots(len(rows), 4, squeeze=False)
        block.subplots_adjust(0.09, 0.01, 0.99, 1 - 0.6 / height, wspace=0.06, hspace=0.06)
        block.suptitle(toy_name, size=12, y=1 - 0.14 / height)
        top = float(toy.log_prob(grid(100)).exp().max())
        for line, (name, panels) in zip(axes, rows.items(), strict=True):
            draw_row(line, panels[toy_name], top)
            line[0].set_ylabel(name if toy_name == next(iter(toys)) else "", size=8)
        for axis, title in zip(axes[0], ("density", "draws", "velocity", "paths"), strict=True):
            axis.set_title(title, size=8, color=GREY, pad=4)
        for axis in axes.flat:
            axis.set(xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND), xticks=[], yticks=[], aspect=1)
            for spine in axis.spines.values():
                spine.set(color="#cccccc", linewidth=0.6)
    return figure


def report(rows: dict[str, dict[str, Panels]], toys: dict[str, TorchDistribution]) -> str:
    """The divergences, and how bent the paths are, as a page of Markdown."""
    lines = ["# KL(p to q) in nats, and by how much paths are longer than straight lines", ""]
    lines += [f"| way | {' | '.join(toys)} |", "|---" * (len(toys) + 1) + "|"]
    for name, panels in rows.items():
        cells = [f"{panels[t].divergence:.4f}, {panels[t].bend:.1%}" for t in toys]
        lines.append(f"| {name.replace(chr(10), ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains all ways on all toys, then draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/diffusion_toys"))
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    options = parser.parse_args()
    output: Path = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    steps, test, pixels, hidden = (
        (2, 200, 20, 8) if options.smoke else (options.steps, 5000, 120, 128)
    )

    pyro.set_rng_seed(options.seed)
    toys: dict[str, TorchDistribution] = {name: TOYS[name]() for name in options.toys}
    rows: dict[str, dict[str, Panels]] = {}
    for name, way in WAYS.items():
        rows[name] = {}
        loss = way.loss if options.smoke else Compiled(way.loss)
        for toy_name, toy in toys.items():
            begin = time.perf_counter()
            model = build(way, hidden)
            fit(model, loss, toy, steps)
            rows[name][toy_name] = panels = look_at(model.distribution(), toy, test, pixels)
            shown = name.replace("\n", " ")
            seconds = time.perf_counter() - begin
            print(
                f"{shown:24} {toy_name:12} KL {panels.divergence:.4f}, paths longer by "
                f"{panels.bend:.1%}  {seconds:.0f} s",
                flush=True,
            )
    page = report(rows, toys)
    (output / "report.md").write_text(page, encoding="utf-8")
    picture(rows, toys).savefig(output / "diffusions.png", dpi=180)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
