"""An integer flow of handwritten digits, and how many bits it needs for a pixel.

The scans have 17 grey levels, 0 to 16. An integer flow is a bijection of the integers in front of
independent discretised logistic mixtures: it gives each image a probability, not a density, and
``-log2`` of that is the length of a lossless code, with no bound and no dequantisation between.

Here the bijection goes from coarse to fine. Each coupling doubles the pixels of the grid: it
predicts the new ones from those it has, rounds, and leaves the difference to be coded.
The flow is trained by SVI, and writes to ``--output-dir``

* ``samples.png``: test images, draws from the flow, and draws of independent pixels
* ``report.md``: code lengths in bits per pixel, beside those of simpler codes

    python examples/integer_digits.py [--epochs 150]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions.transforms import Permute
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import CosineAnnealingLR
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pyrogen.diagnostics import plot_images
from pyrogen.guides import Empty
from pyrogen.losses import Compiled
from pyrogen.models import IntegerFlow, LogisticMixtureBase, bits_per_dimension
from pyrogen.transforms import IntegerCoupling

SIDE, LEVELS, BATCH = 8, 17, 100
IMAGE, PIXELS = (SIDE, SIDE), SIDE**2
NOTES = """\
The code length of the integer flow is exact; an entropy coder stores an unseen image in that many
bits for each pixel. A draw may fall outside 0..16, for the flow knows integers, not levels; the
probability that it gives to those is lost to the code. `glow_digits.py` computes the bound of a
continuous flow with dequantisation on the same test images."""


def load(seed: int) -> dict[str, Tensor]:
    """The scans as grey levels 0..16, split at random."""
    scans = load_digits(return_X_y=True)[0]
    rest, test = train_test_split(scans, test_size=297, random_state=seed)
    train, validation = train_test_split(rest, test_size=200, random_state=seed)
    parts = {"train": train, "validation": validation, "test": test}
    return {name: torch.as_tensor(x).long() for name, x in parts.items()}


def fineness() -> list[Tensor]:
    """Masks ``[PIXELS]`` of the pixels that each coupling predicts, from coarse to fine.

    The finest are every other pixel, as on a chessboard, and lie between four known ones. The next
    are every other row of what is left, whose neighbours are diagonal, and so on.
    """
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    left, masks = torch.ones(SIDE, SIDE, dtype=torch.bool), []
    for step in (1, 2):
        for mask in ((row + column) // step % 2 == 1, row // step % 2 == 1):
            masks.append((mask & left).flatten())
            left = left & ~mask
    return masks[::-1]


def network(inputs: int, outputs: int, hidden: int) -> nn.Module:
    """Predicts some pixels from the others: nothing at first, so that the flow starts as none."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.4),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.4),
        last,
    )  # fmt: skip


def build(masks: list[Tensor], hidden: int = 512) -> IntegerFlow:
    """A coupling for each mask, between independent pixels and images."""
    chain: list[Any] = []
    for mask in masks:
        order = torch.cat([(~mask).nonzero(), mask.nonzero()]).squeeze(-1)
        kept = int((~mask).sum())
        predict = network(kept, PIXELS - kept, hidden)
        coupling = IntegerCoupling(PIXELS, predict, split=kept, scale=8.0)
        chain += [Permute(order), coupling, Permute(order.argsort())]
    base = LogisticMixtureBase(PIXELS, num_components=5, loc=8.0, scale=8.0)
    return IntegerFlow(base, chain)


def train(model: IntegerFlow, images: dict[str, Tensor], epochs: int, compile: bool) -> int:
    """Trains by SVI, and returns the epoch of the best validation, whose parameters it keeps."""
    steps, elbo = len(images["train"]) // BATCH, Trace_ELBO(max_plate_nesting=1)
    optimizer = CosineAnnealingLR(
        {
            "optimizer": torch.optim.Adam,
            # The mixtures have far to go: most pixels of the border are always 0.
            "optim_args": lambda name: {"lr": 3e-2 if name.startswith("base") else 2e-3},
            "T_max": epochs,
        }
    )
    svi = SVI(model, Empty(), optimizer, loss=Compiled(elbo) if compile else elbo)
    best, best_epoch, state = math.inf, 0, {}
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(len(images["train"]))
        total = sum(svi.step(images["train"][rows]) for rows in order.split(BATCH)[:steps])
        optimizer.step()
        if epoch % 5 == 0 or epoch == epochs:
            bits = code_length(model, images["validation"])
            if bits < best:
                best, best_epoch, state = bits, epoch, copy.deepcopy(model.state_dict())
            if epoch % 25 == 0:
                trained = bits_per_dimension(total / steps / BATCH, IMAGE)
                print(f"epoch {epoch}: {trained:.3f} bits, validation {bits:.3f}", flush=True)
    model.load_state_dict(state)
    return best_epoch


@torch.no_grad()
def code_length(model: IntegerFlow, images: Tensor) -> float:
    """Bits for each pixel of images."""
    model.eval()
    bits: float = bits_per_dimension(-model.log_prob(images).mean().item(), IMAGE)
    return bits


def histograms(images: Tensor, pseudocount: float) -> Tensor:
    """How often each pixel has each level ``[PIXELS, LEVELS]``."""
    counts = nn.functional.one_hot(images, LEVELS).sum(0) + pseudocount
    return counts / counts.sum(-1, keepdim=True)


def histogram_bits(frequencies: Tensor, images: Tensor) -> float:
    """Bits for each pixel of images, by a code for independent pixels."""
    bits = -frequencies.log2().gather(-1, images.T)  # [PIXELS, n]
    return bits.mean().item()


def main() -> None:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/integer_digits"))
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    epochs = 1 if options.smoke else options.epochs
    pyro.set_rng_seed(options.seed)

    images = load(options.seed)
    test = images["test"]
    overall = histograms(images["train"].reshape(-1, 1), 0.1).expand(PIXELS, LEVELS)
    pixels = histograms(images["train"], 0.1)
    bits = {
        "uniform code": math.log2(LEVELS),
        "one histogram for all pixels": histogram_bits(overall, test),
        "a histogram for each pixel": histogram_bits(pixels, test),
    }
    flows = {"a logistic mixture for each pixel": [], "integer flow": fineness()}
    for name, masks in flows.items():
        begin = time.perf_counter()
        pyro.clear_param_store()  # of the flow before, whose parameters have the same names
        model = build(masks)
        best = train(model, images, epochs, compile=not options.smoke)
        bits[name] = code_length(model, test)
        print(f"{name}: best of {epochs} epochs {best}, {time.perf_counter() - begin:.0f} s")

    with torch.no_grad():
        draws = model(None, num_samples=500)
    outside = ((draws < 0) | (draws >= LEVELS)).float().mean().item()
    independent = torch.distributions.Categorical(pixels).sample((30,))
    rows = torch.cat([test[:30], draws[:30].clamp(0, LEVELS - 1), independent])
    figure = plot_images(
        rows, columns=15, title="From the top: test images; draws of the flow; independent pixels"
    )
    figure.savefig(options.output_dir / "samples.png", dpi=150)
    page = report(bits, len(test), outside)
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


def report(bits: dict[str, float], images: int, outside: float) -> str:
    """The code lengths as a page of Markdown."""
    return "\n".join(
        [
            f"# Code lengths of {images} test images",
            "",
            "| code | bits per pixel |",
            "|---|---|",
            *(f"| {name} | {value:.3f} |" for name, value in bits.items()),
            "",
            f"Of the pixels of draws, {outside:.2%} are outside 0..16.",
            "",
            NOTES,
            "",
        ]
    )


if __name__ == "__main__":
    main()
