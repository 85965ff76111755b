"""Glow on handwritten digits: code length, draws, and paths from one digit to another.

The scans have 17 grey levels. A flow is a density of real values, so each level is a bin of values,
and a guide says where in the bin a pixel lies: uniformly (dequantisation). The ELBO of that guide
bounds the probability of the levels themselves, and importance weighting tightens it. The flow is
trained by SVI, and writes to ``--output-dir``

* ``samples.png``: draws
* ``interpolation.png``: test images at both ends, and what lies between them in the latent space
* ``report.md``: code lengths in bits per pixel

    python examples/glow_digits.py [--epochs 75]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ExponentialLR
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pyrogen.diagnostics import iwae_bound, plot_images
from pyrogen.guides import UniformDequantization
from pyrogen.losses import Compiled
from pyrogen.models import Flow, bits_per_dimension, glow

IMAGE, LEVELS = (1, 8, 8), 17
BATCH, LEARNING_RATE, STEPS_ON_PATH = 100, 2e-3, 10
NOTES = """\
The bounds lie above the code length of the flow, by what the uniform guide loses; more particles
come closer. An entropy coder would need that many bits for each pixel of an unseen image."""


def load(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The scans as grey levels 0..16, split at random, and the digits that the test images show."""
    scans, digits = load_digits(return_X_y=True)
    rest, test, _, labels = train_test_split(scans, digits, test_size=297, random_state=seed)
    train, validation = train_test_split(rest, test_size=200, random_state=seed)
    parts = {"train": train, "validation": validation, "test": test}
    images = {name: torch.as_tensor(part).long() for name, part in parts.items()}
    return {name: x.reshape(-1, *IMAGE) for name, x in images.items()}, torch.as_tensor(labels)


def train(
    model: Flow, guide: nn.Module, images: dict[str, Tensor], epochs: int, compile: bool
) -> int:
    """Trains by SVI, and returns the epoch of the best validation, whose parameters it keeps."""
    model.initialize(images["train"][:500])
    steps, elbo = len(images["train"]) // BATCH, Trace_ELBO(max_plate_nesting=1)
    optimizer = ExponentialLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": LEARNING_RATE},
            "gamma": 0.1 ** (1 / max(1, epochs)),
        },
        {"clip_norm": 100.0},
    )
    svi = SVI(model, guide, optimizer, loss=Compiled(elbo) if compile else elbo)
    best, best_epoch, state = math.inf, 0, {}
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(images["train"]))
        total = sum(svi.step(images["train"][rows]) for rows in order.split(BATCH)[:steps])
        optimizer.step()
        if epoch % 5 == 0 or epoch == epochs:
            loss = svi.evaluate_loss(images["validation"]) / len(images["validation"])
            if loss < best:
                best, best_epoch, state = loss, epoch, copy.deepcopy(model.state_dict())
            if epoch % 25 == 0:
                bits = [bits_per_dimension(x, IMAGE) for x in (total / steps / BATCH, loss)]
                print(f"epoch {epoch}: {bits[0]:.3f} bits, validation {bits[1]:.3f}", flush=True)
    model.load_state_dict(state)
    return best_epoch


@torch.no_grad()
def interpolate(model: Flow, first: Tensor, last: Tensor) -> Tensor:
    r"""Goes from each image to another along an arc in the latent space.

    A straight line would pass too near the origin, where a normal law of 64 dimensions has nearly
    no mass. The arc keeps to

    .. math:: \epsilon(s) = \cos(\pi s / 2)\, \epsilon_0 + \sin(\pi s / 2)\, \epsilon_1 ,

    which is standard normal at every :math:`s` if both ends are.
    """
    chain = list(model.transforms)
    ends = [(image.float() + 0.5) / LEVELS for image in (first, last)]
    for transform in reversed(chain):
        ends = [transform.inv(value) for value in ends]
    angle = torch.linspace(0, math.pi / 2, STEPS_ON_PATH).unsqueeze(-1)
    path = angle.cos() * ends[0].unsqueeze(1) + angle.sin() * ends[1].unsqueeze(1)
    for transform in chain:
        path = transform(path)
    return (path * LEVELS).floor().clamp(0, LEVELS - 1)


def pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the first test image of each digit 0..9, and of the next digit."""
    rows = torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])
    return rows, rows.roll(-1)


def report(bits: dict[str, float], images: int) -> str:
    """The code lengths as a page of Markdown."""
    return "\n".join(
        [
            f"# Glow on {images} test images",
            "",
            "| measure | bits per pixel |",
            "|---|---|",
            *(f"| {name} | {value:.3f} |" for name, value in bits.items()),
            "",
            NOTES,
            "",
        ]
    )


def main() -> None:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/glow_digits"))
    parser.add_argument("--epochs", type=int, default=75)
    parser.add_argument("--particles", type=int, default=100, help="of the IWAE bound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.epochs, options.particles = 1, 5
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    images, labels = load(options.seed)
    size = {"num_steps": 1, "hidden": 8} if options.smoke else {"num_steps": 4, "hidden": 64}
    model = glow(IMAGE, num_levels=2, levels=LEVELS, boundary=0.02, **size)
    guide = UniformDequantization(LEVELS, IMAGE)
    begin = time.perf_counter()
    epoch = train(model, guide, images, options.epochs, compile=not options.smoke)
    print(f"best of {options.epochs} epochs: {epoch}, {time.perf_counter() - begin:.0f} s")

    test = images["test"]
    bounds = {k: -iwae_bound(model, guide, test, num_particles=k) for k in (1, options.particles)}
    bits = {
        "uniform code": math.log2(LEVELS),
        "Glow, ELBO": bits_per_dimension(bounds[1], IMAGE),
        f"Glow, IWAE bound, {options.particles} particles": bits_per_dimension(
            bounds[options.particles], IMAGE
        ),
    }
    with torch.no_grad():
        draws = model(None, num_samples=100)
    pictures = {
        "samples": plot_images(draws, columns=10, title="Draws from the flow"),
        "interpolation": plot_images(
            interpolate(model, *(test[rows] for rows in pairs(labels))).flatten(0, 1),
            columns=STEPS_ON_PATH,
            title="Test images (left and right), and arcs between them in latent space",
        ),
    }
    for name, figure in pictures.items():
        figure.savefig(options.output_dir / f"{name}.png", dpi=150)
    page = report(bits, len(test))
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
