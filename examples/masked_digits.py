"""A diffusion of levels (D3PM) paints handwritten digits by taking a mask away.

The scans have 17 grey levels, 0 to 16. In the forward chain, pixels are masked one after another,
until nothing is left; the model, a small U-Net that reads levels and mask as indicators, learns to
put them back. Its variational bound is a code length in bits for each pixel, of the levels
themselves. Weights are averaged over the training, and the averages are what is measured and drawn
from.

Written to ``--output-dir``:

* ``digits.png``: draws on their way from the mask to a digit, and test images;
* ``report.md``: code lengths of test images, beside those of simpler codes.

    python examples/masked_digits.py [--epochs 80] [--transitions uniform]
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import one_hot
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen.guides import ForwardNoising
from pyrogen.losses import Compiled
from pyrogen.models import CategoricalDiffusion, bits_per_dimension
from pyrogen.nn import UNet
from pyrogen.training import fit

IMAGE, LEVELS, STEPS, BATCH = (8, 8), 17, 200, 100
SHOWN = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


def load(seed: int) -> tuple[Tensor, Tensor]:
    """The scans as grey levels 0..16, ``[n, 8, 8]``, for training and for testing."""
    scans = load_digits(return_X_y=True)[0].reshape(-1, *IMAGE)
    train, test = train_test_split(scans, test_size=297, random_state=seed)
    return torch.as_tensor(train).long(), torch.as_tensor(test).long()


def build(transitions: str, steps: int) -> CategoricalDiffusion:
    """A chain of levels, whose states are one more with a mask."""
    states = LEVELS + (transitions == "absorbing")
    network = UNet(IMAGE, channels=(32, 64), num_classes=states, dropout=0.1)
    return CategoricalDiffusion(network, IMAGE, LEVELS, steps, transitions)


def train(model: CategoricalDiffusion, images: Tensor, epochs: int, compiled: bool) -> None:
    """Trains by the bound, and leaves the averaged weights in the model."""
    loss, batches = TraceMeanField_ELBO(max_plate_nesting=2), len(images) // BATCH
    schedule = partial(OneCycleLR, max_lr=2e-3, total_steps=batches * epochs + 1)
    result = fit(
        model,
        ForwardNoising(model),
        images[: batches * BATCH],
        loss=Compiled(loss) if compiled else loss,
        optimizer=partial(Adam, lr=2e-3),
        batch_size=BATCH,
        max_epochs=epochs,
        clip_norm=100.0,
        scheduler=schedule,
        scheduler_interval="step",
        ema_decay=0.99,
        progress=False,
    )
    result.load_ema()


@torch.no_grad()
def measure(model: CategoricalDiffusion, images: Tensor, rounds: int) -> tuple[float, float]:
    """The bound in bits for each pixel, and the standard error of the steps that were looked at."""
    elbo, guide = TraceMeanField_ELBO(), ForwardNoising(model)
    nats = torch.tensor([elbo.loss(model, guide, images) / len(images) for _ in range(rounds)])
    bits = bits_per_dimension(nats, IMAGE)
    return bits.mean().item(), (bits.std() / math.sqrt(rounds)).item()


@torch.no_grad()
def trajectories(model: CategoricalDiffusion, n: int) -> list[Tensor]:
    """States of ``n`` draws on their way from noise to data."""
    trace = poutine.trace(model).get_trace(None, num_samples=n)
    names = [f"x_{round(t * model.num_timesteps)}" if t else "x" for t in SHOWN]
    return [trace.nodes[name]["value"] for name in names]


def histogram_bits(train: Tensor, test: Tensor) -> float:
    """Bits for each pixel by a code for independent pixels, each with its own frequencies."""
    counts = one_hot(train, LEVELS).sum(0) + 0.1
    frequencies = counts / counts.sum(-1, keepdim=True)
    chosen = (one_hot(test, LEVELS) * frequencies).sum(-1)
    return -chosen.log2().mean().item()


def picture(states: list[Tensor], test: Tensor) -> Any:
    """A row for each moment, and one of test images; what is masked is blue."""
    columns = states[0].shape[0]
    figure, axes = plt.subplots(len(states) + 1, columns, figsize=(0.62 * columns + 0.8, 5.0))
    colours = plt.get_cmap("Greys").copy()
    colours.set_over("#88aacc")
    labels = [*(f"t = {t:g}" for t in SHOWN), "test"]
    for row, images, label in zip(axes, [*states, test[:columns]], labels, strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, cmap=colours, vmin=0, vmax=LEVELS - 1)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color="#cccccc", linewidth=0.5)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", size=9)
    figure.subplots_adjust(0.09, 0.02, 0.99, 0.98, wspace=0.08, hspace=0.1)
    return figure


def main() -> None:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/masked_digits"))
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument(
        "--transitions", choices=("absorbing", "uniform", "gaussian"), default="absorbing"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    begin = time.perf_counter()
    images, test = load(options.seed)
    steps, epochs, rounds = (25, 1, 2) if options.smoke else (STEPS, options.epochs, 25)
    model = build(options.transitions, steps)
    train(model, images[:200] if options.smoke else images, epochs, compiled=not options.smoke)
    print(f"trained in {time.perf_counter() - begin:.0f} s", flush=True)

    model.eval()
    model.subsample_size = min(8, steps)  # with 25 rounds, all of the 200 steps of each image
    bits, error = measure(model, test, rounds)
    picture(trajectories(model, 14), test).savefig(options.output_dir / "digits.png", dpi=150)
    page = "\n".join(
        [
            f"# Code lengths of {len(test)} test images",
            "",
            "| code | bits per pixel |",
            "|---|---|",
            f"| uniform code | {math.log2(LEVELS):.3f} |",
            f"| a histogram for each pixel | {histogram_bits(images, test):.3f} |",
            f"| diffusion of levels, {options.transitions} | {bits:.3f} ± {error:.3f} |",
            "",
            "The last is a variational bound; ± is the error of the steps that were looked at.",
            "",
        ]
    )
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/, after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
