"""One prior, four inverse problems: coloured digits from half of them, from few pixels, from coarse
ones, and from grey.

The 8 x 8 scans of scikit-learn are coloured by a known map: the class of a digit says its hue. A
small U-Net learns their score by denoising, and knows of no problem to be solved. Then each problem
is a Pyro program around that prior,

    def program(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(observe(x), noise).to_event(3), obs=y)

and the reverse diffusion, guided by the program's likelihood, draws digits that go with ``y``:

* inpainting: the upper half is seen,
* masked data: a quarter of all pixels is seen,
* super-resolution: the means of squares of 2 x 2 pixels are seen,
* colourisation: the mean of the three colours is seen. The hue tells whether the class was found.

Written to ``--output-dir``: for each guidance a picture of test digits, what is seen of them, and
draws (``mmps.png``, ...); and ``report.md``, for each guidance and problem:

* error: of the mean of the draws from the truth, root mean square of the pixels not seen as such,
* misfit: the mean squared residual of a draw in units of the noise, 1 for draws that fit,
* hue: the share of draws whose hue is nearest to that of the true class.

    python examples/inverse_digits.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import training
from pyrogen.distributions import ScoreBased
from pyrogen.guides import Empty
from pyrogen.kernels import MCMC, ReverseDiffusion
from pyrogen.losses import Compiled, DenoisingScoreMatching
from pyrogen.models import ScoreModel
from pyrogen.nn import Preconditioned, UNet
from pyrogen.processes import VariancePreserving

IMAGE, BATCH, LEARNING_RATE, NOISE = (3, 8, 8), 64, 2e-3, 0.1
SEEN = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.25


def hues() -> Tensor:
    """The colour of each class, ``[10, 3]``, all of the same mean."""
    angle = torch.arange(10) / 10
    return 0.5 + 0.5 * torch.cos(2 * torch.pi * (angle.unsqueeze(1) - torch.arange(3) / 3))


def load(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coloured digits for training and tests, between -1 and 1, and the classes of the latter."""
    scans, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(scans, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.as_tensor(classes)
    coloured = 2 * images * hues()[labels][:, :, None, None] - 1
    train, test = train_test_split(torch.arange(len(labels)), test_size=297, random_state=seed)
    return coloured[train], coloured[test], labels[test]


@dataclass(frozen=True)
class Problem:
    """What is seen of a digit ``[*, 3, 8, 8]``; where a mask hides something of that, and how it is
    shown."""

    observe: Callable[[Tensor], Tensor]
    show: Callable[[Tensor], Tensor]
    mask: Tensor | None = None

    def program(self, prior: ScoreBased) -> Callable[[Tensor], None]:
        """The Pyro program."""

        def program(y: Tensor) -> None:
            x = pyro.sample("x", prior)
            seen = dist.Normal(self.observe(x), NOISE)
            if self.mask is not None:
                seen = seen.mask(self.mask)
            pyro.sample("y", seen.to_event(3), obs=y)

        return program

    def misfit(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean squared residual in units of the noise, ``[*]``."""
        squares = ((y - self.observe(x)) / NOISE).square()
        if self.mask is None:
            return squares.mean((-1, -2, -3))
        return (squares * self.mask).mean((-1, -2, -3)) / self.mask.float().mean()


def blank(x: Tensor, where: Tensor) -> Tensor:
    """Grey where nothing is seen."""
    return torch.where(where, x, torch.zeros_like(x))


def blocks(x: Tensor) -> Tensor:
    """Means over squares of 2 x 2 pixels."""
    return avg_pool2d(x.reshape(-1, *IMAGE), 2).reshape(*x.shape[:-2], 4, 4)


PROBLEMS = {
    "inpainting": Problem(
        lambda x: x[..., :4, :], lambda y: torch.cat([y, torch.zeros_like(y)], -2)
    ),
    "masked data": Problem(lambda x: x, lambda y: blank(y, SEEN), SEEN),
    "super-resolution": Problem(
        blocks, lambda y: y.repeat_interleave(2, -1).repeat_interleave(2, -2)
    ),
    "colourisation": Problem(
        lambda x: x.mean(-3, keepdim=True), lambda y: y.expand(*y.shape[:-3], *IMAGE)
    ),
}


def fit(data: Tensor, epochs: int, channels: tuple[int, int], compile: bool) -> ScoreBased:
    """The prior, trained by SVI."""
    process = VariancePreserving()
    network = Preconditioned(UNet(IMAGE, channels=channels), process, data_std=0.9)
    model = ScoreModel(process, network, IMAGE, prediction="data", min_time=1e-3)
    objective = DenoisingScoreMatching("likelihood")
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
        ema_decay=0.995 if compile else 0.5,
        progress=False,
    )
    result.load_ema()
    return model.eval().requires_grad_(False).distribution()


def found_hue(x: Tensor) -> Tensor:
    """The class whose hue is nearest to that of images ``[*, 3, 8, 8]``."""
    ink = (0.5 * x + 0.5).clamp(0, 1).sum((-1, -2))
    similarity = torch.cosine_similarity(ink.unsqueeze(-2), hues(), dim=-1)
    return similarity.argmax(-1)


@dataclass
class Result:
    """Draws ``[digits, draws, 3, 8, 8]`` of one problem, what was seen, and the seconds it took."""

    draws: Tensor
    seen: Tensor
    seconds: float

    def row(self, name: str, guidance: str, truth: Tensor, classes: Tensor) -> str:
        """A line of the report."""
        problem = PROBLEMS[name]
        error = (self.draws.mean(1) - truth).square().mean().sqrt()
        misfit = problem.misfit(self.draws, self.seen.unsqueeze(1)).mean()
        hue = (found_hue(self.draws) == classes.unsqueeze(1)).float().mean()
        return (
            f"| {name} | {guidance} | {error:.3f} | {misfit:.2f} | {hue:.2f} | {self.seconds:.0f} |"
        )


def solve(
    problem: Problem, prior: ScoreBased, guidance: str, truth: Tensor, draws: int, steps: int
) -> Result:
    """Draws for each digit by itself; the graphs of the first serve the others too."""
    begin = time.perf_counter()
    seen = problem.observe(truth) + NOISE * torch.randn_like(problem.observe(truth))
    kernel = ReverseDiffusion(
        problem.program(prior),
        num_steps=steps,
        method="multistep",
        grid="karras",
        guidance=guidance,
        compile=False,
    )
    found = []
    for y in seen:
        mcmc = MCMC(kernel, 1, 0, num_chains=draws, disable_progbar=True)
        mcmc.run(y)
        found.append(mcmc.get_samples()["x"])
    return Result(torch.stack(found), seen, time.perf_counter() - begin)


def panel(truth: Tensor, results: dict[str, Result]) -> Any:
    """For each problem and digit: the truth, what is seen, the mean of the draws, three draws."""
    columns = ("truth", "seen", "mean", "draws")
    digits = len(truth)
    height = 0.37 * digits + 0.5
    figure = plt.figure(figsize=(8.8, height))
    blocks_of = figure.subfigures(1, len(results), wspace=0.02)
    for block, (name, result) in zip(blocks_of, results.items(), strict=True):
        axes = block.subplots(digits, 6, squeeze=False)
        block.subplots_adjust(0.02, 0.01, 0.98, 1 - 0.48 / height, wspace=0.06, hspace=0.06)
        block.suptitle(name, size=9, y=1 - 0.06 / height)
        for i in range(digits):
            seen = PROBLEMS[name].show(result.seen[i])
            images = [truth[i], seen, result.draws[i].mean(0), *result.draws[i, :3]]
            for axis, image in zip(axes[i], images, strict=True):
                axis.imshow((0.5 * image + 0.5).clamp(0, 1).movedim(0, -1))
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set(color="#cccccc", linewidth=0.5)
        for place, title in zip((0, 1, 2, 4), columns, strict=True):
            axes[0, place].set_title(title, size=6.5, color="#333333", pad=3)
    return figure


def main() -> None:
    """Trains the prior, then solves all problems."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/inverse_digits"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--digits", type=int, default=5)
    parser.add_argument("--guidance", nargs="+", default=["mmps", "pigdm"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    train, test, classes = load(options.seed)
    channels, draws, steps, names = (24, 48), 16, 50, list(PROBLEMS)
    if options.smoke:
        train, channels, draws, steps, names = train[:128], (4, 4), 3, 3, names[:2]
        options.epochs, options.digits, options.guidance = 1, 2, ["dps"]
    begin = time.perf_counter()
    prior = fit(train, options.epochs, channels, compile=not options.smoke)
    print(f"prior: {options.epochs} epochs, {time.perf_counter() - begin:.0f} s", flush=True)

    truth, classes = test[: options.digits], classes[: options.digits]
    lines = ["| problem | guidance | error | misfit | hue | seconds |", "|---" * 6 + "|"]
    for guidance in options.guidance:
        results = {}
        for name in names:
            results[name] = solve(PROBLEMS[name], prior, guidance, truth, draws, steps)
            lines.append(results[name].row(name, guidance, truth, classes))
            print(lines[-1], flush=True)
        panel(truth, results).savefig(options.output_dir / f"{guidance}.png", dpi=200)
    page = "\n".join(["# Inverse problems of coloured digits", "", *lines, ""])
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
