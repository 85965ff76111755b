"""Normalising flows learn densities of the plane: density, draws and transport in one picture.

Three toy densities are learned from draws by each of the flows, by stochastic variational
inference, which for an exact likelihood is maximum likelihood. Written to ``--output-dir``:

* ``flows.png``: for each flow and toy the density, with its divergence KL(p to q) from the toy in
  nats; draws; and where the mass comes from. There the hue tells the direction from the centre of
  the normal base, and each ring of one shade holds a fifth of its mass. So one sees how a flow
  stretches what it cannot tear.
* ``report.md``: a table of these divergences.

    python examples/flow_density.py [--flows nsf ffjord] [--toys moons] [--steps 1000]
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
import torch
from matplotlib.colors import LinearSegmentedColormap
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import models, training
from pyrogen.distributions import Checkerboard, EightGaussians, TwoMoons
from pyrogen.guides import Empty
from pyrogen.losses import Compiled
from pyrogen.transforms import Gaussianization

TOYS = {"8 Gaussians": EightGaussians, "checkerboard": Checkerboard, "moons": TwoMoons}
BATCH, BOUND, GREY = 512, 4.6, "#333333"
INK = LinearSegmentedColormap.from_list("ink", ["white", "#88ccee", "#332288", "#120a3a"])


def gaussianization() -> models.Flow:
    """Layers of rotations and splines, which are fitted to data one by one before training."""
    return models.Flow(2, [Gaussianization(2, num_layers=12)])


FLOWS: dict[str, Callable[[], Any]] = {
    "NICE": partial(models.nice, 2, num_layers=8, hidden=(128, 128)),
    "RealNVP": partial(models.real_nvp, 2, num_layers=12),
    "MAF": partial(models.maf, 2, num_layers=8),
    "IAF": partial(models.iaf, 2, num_layers=8),
    "NSF": partial(models.nsf, 2),
    "FFJORD": partial(models.ffjord, 2),
    "Gaussianization": gaussianization,
}


def build(name: str, compiled: bool) -> tuple[models.Flow, ELBO]:
    """A flow and the loss to train it by, compiled where that pays."""
    if name == "FFJORD":  # Its steps depend on values: the field is compiled, not the loss.
        solver = {"atol": 1e-3, "rtol": 1e-3, "compile": compiled}
        return FLOWS[name](solver=solver), Trace_ELBO()
    return FLOWS[name](), Compiled(Trace_ELBO()) if compiled else Trace_ELBO()


@dataclass(frozen=True)
class Size:
    """How much to compute."""

    steps: int
    test: int = 20_000
    draws: int = 3000
    pixels: int = 200


def train(model: models.Flow, toy: TorchDistribution, loss: ELBO, size: Size) -> None:
    """Trains a flow on draws of a toy, each seen once."""
    steps = size.steps
    model.initialize(toy.sample((size.test,)))
    training.fit(
        model,
        Empty(),
        toy.sample((steps * BATCH,)),
        loss=loss,
        optimizer=partial(Adam, lr=3e-3, fused=True),
        batch_size=BATCH,
        max_epochs=1,
        clip_norm=10.0,
        scheduler=partial(OneCycleLR, max_lr=3e-3, total_steps=steps + 1, pct_start=0.1),
        scheduler_interval="step",
        shuffle=False,
        progress=False,
    )


@dataclass
class Panels:
    """What is drawn of one density: its values on a grid, draws, and colours of the transport."""

    density: Tensor
    draws: Tensor
    transport: Tensor
    divergence: float | None = None


def grid(pixels: int) -> Tensor:
    """The centres of the pixels of a picture, ``[pixels, pixels, 2]``, from the top left."""
    side = torch.linspace(-BOUND, BOUND, 2 * pixels + 1)[1::2]
    return torch.stack(torch.meshgrid(side, -side, indexing="xy"), dim=-1)


@torch.no_grad()
def look_at(model: models.Flow, toy: TorchDistribution, size: Size) -> Panels:
    """Evaluates a trained flow on a grid, draws from it, and measures its divergence."""
    flow, origin = model.distribution(), grid(size.pixels)
    density, target = flow.log_prob(origin).exp(), toy.log_prob(origin).exp()
    for transform in reversed(flow.transforms):
        origin = transform.inv(origin)
    x = toy.sample((size.test,))
    divergence = (toy.log_prob(x) - flow.log_prob(x)).mean().item()
    transport = colours(origin, density / target.max())
    return Panels(density, flow.sample((size.draws,)), transport, divergence)


def truth(toy: TorchDistribution, size: Size) -> Panels:
    """The toy itself; in place of a transport, the base that all flows start from."""
    points = grid(size.pixels)
    base = colours(points, torch.exp(-points.square().sum(-1) / 2))
    return Panels(toy.log_prob(points).exp(), toy.sample((size.draws,)), base)


def colours(origin: Tensor, density: Tensor) -> Tensor:
    """Colours of a picture ``[*, 3]``: hue and shade by place in the base, fading to white."""
    angle = torch.atan2(origin[..., 1], origin[..., 0])
    mass_within = 1 - torch.exp(-origin.square().sum(-1) / 2)
    ring = (5 * mass_within).floor().clamp_max(4) % 2
    lightness, chroma = 0.62 + 0.16 * ring, 0.13
    rgb = oklab(lightness, chroma * angle.cos(), chroma * angle.sin())
    strength = density.clamp(0, 1).sqrt().unsqueeze(-1)
    return 1 - strength + strength * rgb


def oklab(lightness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Colours of even lightness and saturation as sRGB (B. Ottosson, *Oklab*, 2020)."""
    lms = torch.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        dim=-1,
    )
    matrix = lms.new_tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (lms**3 @ matrix.T).clamp(0, 1)
    return torch.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def draw_row(axes: Any, panels: Panels, top: float) -> None:
    """Draws density, draws and transport side by side."""
    extent = (-BOUND, BOUND, -BOUND, BOUND)
    axes[0].imshow(panels.density, extent=extent, cmap=INK, vmin=0, vmax=top)
    axes[1].scatter(*panels.draws.T, s=1.2, c="#332288", alpha=0.55, linewidths=0)
    axes[2].imshow(panels.transport, extent=extent)
    if panels.divergence is not None:
        label = f"KL {panels.divergence:.3f}"
        box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
        place = {"transform": axes[0].transAxes, "ha": "right", "bbox": box}
        axes[0].text(0.97, 0.04, label, size=6.5, color=GREY, **place)


def picture(rows: dict[str, dict[str, Panels]]) -> Any:
    """One row for each flow, three columns for each toy."""
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
            if panels[toy].divergence is None:
                line[2].text(0.06, 0.06, "base", transform=line[2].transAxes, size=7, color=GREY)
            line[0].set_ylabel(name if toy == toys[0] else "", size=9)
        for axis, title in zip(axes[0], ("density", "draws", "transport"), strict=True):
            axis.set_title(title, size=8, color=GREY, pad=4)
        for axis in axes.flat:
            axis.set(xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND), xticks=[], yticks=[], aspect=1)
            for spine in axis.spines.values():
                spine.set(color="#cccccc", linewidth=0.6)
    return figure


def report(rows: dict[str, dict[str, Panels]]) -> str:
    """The divergences as a page of Markdown."""
    toys = list(next(iter(rows.values())))
    lines = [
        "# KL(p to q) in nats",
        "",
        f"| flow | {' | '.join(toys)} |",
        "|---" * (len(toys) + 1) + "|",
    ]
    for name, panels in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{panels[t].divergence:.4f}" for t in toys) + " |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains all flows on all toys, then draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/flow_density"))
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    arguments = parser.parse_args()
    size = Size(2, 200, 100, 20) if arguments.smoke else Size(arguments.steps)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(arguments.seed)
    toys = {name: TOYS[name]() for name in arguments.toys}
    rows: dict[str, dict[str, Panels]] = {}
    for name in arguments.flows:
        model, loss = build(name, compiled=not arguments.smoke)
        rows[name] = {}
        start = copy.deepcopy(model.state_dict())
        for toy_name, toy in toys.items():
            begin = time.perf_counter()
            model.load_state_dict(start)  # and so one compilation serves all toys
            train(model, toy, loss, size)
            rows[name][toy_name] = panels = look_at(model, toy, size)
            seconds = time.perf_counter() - begin
            print(
                f"{name:16} {toy_name:12} KL {panels.divergence:.4f}  {seconds:.0f} s", flush=True
            )
    page = report(rows)
    (arguments.output_dir / "report.md").write_text(page, encoding="utf-8")
    rows = {"truth": {name: truth(toy, size) for name, toy in toys.items()}, **rows}
    picture(rows).savefig(arguments.output_dir / "flows.png", dpi=200)
    print(f"\n{page}\nwritten to {arguments.output_dir}/")


if __name__ == "__main__":
    main()
