"""A diffusion of handwritten digits: draws, their way out of the noise, and a code length.

The 8 x 8 scans of scikit-learn have 17 levels of grey; noise uniform within a level makes them
continuous. A variance-preserving process turns them into noise, and a small U-Net learns the score
at every level of noise by denoising, with the likelihood's weighting. The moving average of its
parameters is what is used. Then

* draws are made by the reverse diffusion, and by the multistep solver in a tenth of the steps;
* the probability flow gives the density of test images, so bits per pixel, to be set beside those
  of a flow (``glow_digits.py``) and of an integer flow (``integer_digits.py``);
* a classifier tries to tell draws from test images.

Written to ``--output-dir``: ``draws.png``, ``trajectories.png``, ``report.md``.

    python examples/diffusion_digits.py
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pyro
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import diagnostics, training
from pyrogen.distributions import ScoreBased
from pyrogen.guides import Empty
from pyrogen.kernels import ReverseDiffusion
from pyrogen.losses import Compiled, DenoisingScoreMatching
from pyrogen.models import ScoreModel, bits_per_dimension
from pyrogen.nn import UNet
from pyrogen.processes import VariancePreserving

IMAGE, LEVELS, BATCH, LEARNING_RATE = (1, 8, 8), 17, 64, 2e-3


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Training and test scans, grey levels 0..16 as ``[n, 1, 8, 8]``."""
    scans, _ = load_digits(return_X_y=True)
    train, test = train_test_split(scans, test_size=297, random_state=seed)
    first, second = (
        torch.as_tensor(x, dtype=torch.float32).reshape(-1, *IMAGE) for x in (train, test)
    )
    return first, second


def dequantized(levels: Tensor) -> Tensor:
    """Grey levels with uniform noise, between -1 and 1."""
    return (levels + torch.rand_like(levels)) * (2 / LEVELS) - 1


def quantized(x: Tensor) -> Tensor:
    """The grey levels that are meant."""
    return ((x + 1) * (LEVELS / 2)).floor().clamp(0, LEVELS - 1)


class Batches:
    """The data in a new order, and under new noise within their levels, at every walk."""

    def __init__(self, levels: Tensor) -> None:
        self._levels = levels

    def __len__(self) -> int:
        return len(self._levels) // BATCH

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self._levels))
        for rows in order.split(BATCH)[: len(self)]:
            yield dequantized(self._levels[rows])


def fit(model: ScoreModel, levels: Tensor, epochs: int, compile: bool) -> None:
    """Trains by SVI, and leaves the averaged parameters in the model."""
    batches = Batches(levels)
    objective = DenoisingScoreMatching("likelihood")
    result = training.fit(
        model,
        Empty(),
        batches,
        loss=Compiled(objective) if compile else objective,
        optimizer=lambda parameters: AdamW(parameters, lr=LEARNING_RATE),
        scheduler=lambda optimizer: OneCycleLR(
            optimizer, max_lr=LEARNING_RATE, total_steps=epochs * len(batches) + 1
        ),
        scheduler_interval="step",
        max_epochs=epochs,
        ema_decay=0.999 if compile else 0.5,
        progress=False,
    )
    result.load_ema()


@torch.no_grad()
def code_length(model: ScoreModel, levels: Tensor) -> tuple[float, float]:
    """Bits per pixel of each image by the probability flow, their mean and its standard error."""
    fn: ScoreBased = model.distribution()
    pixels = math.prod(IMAGE)
    nats = torch.cat([-fn.log_prob(dequantized(part)) for part in levels.split(100)])
    bits = torch.tensor(
        [bits_per_dimension(float(x) - pixels * math.log(2 / LEVELS), IMAGE) for x in nats]
    )
    return float(bits.mean()), float(bits.std() / math.sqrt(len(bits)))


@torch.no_grad()
def trajectories(model: ScoreModel, count: int, steps: int, shown: int) -> Tensor:
    """States of the probability flow from noise to data, ``[count * shown, 1, 8, 8]``."""
    fn = model.distribution()
    x = fn.terminal().sample((count,))
    times = torch.linspace(fn.max_time, fn.min_time, steps + 1)
    states = [x]
    for start, end in itertools.pairwise(times):
        middle = x + 0.5 * (end - start) * fn.velocity(x, start)
        x = x + (end - start) * fn.velocity(middle, 0.5 * (start + end))
        states.append(x)
    rows = torch.linspace(0, steps, shown).long().tolist()
    return torch.stack([states[row] for row in rows], 1).flatten(0, 1)


def main() -> None:
    """Trains, draws and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/diffusion_digits"))
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    output: Path = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    train, test = load(options.seed)
    channels, steps = (32, 64), 250
    if options.smoke:
        train, test, options.epochs, channels, steps = train[:130], test[:20], 1, (8, 16), 5
    process = VariancePreserving()
    model = ScoreModel(
        process, UNet(IMAGE, channels=channels), IMAGE, atol=1e-4, rtol=1e-4, trace="hutchinson"
    )
    begin = time.perf_counter()
    fit(model, train, options.epochs, compile=not options.smoke)
    print(f"{options.epochs} epochs, {time.perf_counter() - begin:.0f} s", flush=True)

    methods = {
        f"reverse diffusion, {steps} steps": ReverseDiffusion(
            num_steps=steps, compile=not options.smoke
        ),
        f"multistep, {max(steps // 10, 2)} steps": ReverseDiffusion(
            num_steps=max(steps // 10, 2),
            method="multistep",
            grid="log-snr",
            compile=not options.smoke,
        ),
    }
    rows = ["# A diffusion of handwritten digits", "", "| measure | value |", "|---|---|"]
    bits, error = code_length(model, test)
    rows.append(
        f"| bits per pixel of test images, by the probability flow (uniform code "
        f"{math.log2(LEVELS):.3f}) | {bits:.3f} ± {error:.3f} |"
    )
    draws = {}
    for name, kernel in methods.items():
        model.sampler = kernel
        with torch.no_grad():
            draws[name] = quantized(model(None, num_samples=len(test)))
    told = {**draws, "training images": train}
    for name, images in told.items():
        result = diagnostics.two_sample_test(test, images)
        low, high = result.interval
        rows.append(
            f"| {name} told from test images (0.5: not at all) | {result.accuracy:.3f} "
            f"[{low:.3f}, {high:.3f}] |"
        )
    page = "\n".join([*rows, ""])
    (output / "report.md").write_text(page, encoding="utf-8")
    first = next(iter(draws.values()))
    shown = trajectories(model, 8, steps // 5 + 1, 9).clamp(-1, 1)
    pictures = {
        "draws": diagnostics.plot_images(first[:100], columns=10, title="Draws"),
        "trajectories": diagnostics.plot_images(
            shown, columns=9, title="From noise to data along the probability flow"
        ),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=150)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
