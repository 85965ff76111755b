"""A classifier of digits that is also a density of its inputs (JEM), against a plain one.

Of the scans that come with scikit-learn a few hundred are labelled and a thousand are not. Three
classifiers of the same architecture are trained by the same number of steps, on blurred images:

* plain: cross-entropy on the labelled images,
* joint: log p(x) + log p(y | x) on the labelled images, with p(x) by denoising score matching,
* semi-supervised: the same, and log p(x) of the images whose label is missing.

Everything is repeated over several splits. Written to ``--output-dir``:

* ``reliability.png``: how often each classifier is right where it says how sure it is
* ``draws.png``: short Langevin runs on p(x | y), a row for each digit
* ``report.md``: accuracy, calibration, and how well foreign images are told by log p(x) and by the
  probability of the first choice

    python examples/jem_digits.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import diagnostics, kernels, losses, training
from pyrogen.distributions import EnergyBased
from pyrogen.guides import Empty
from pyrogen.models import JointEnergyModel
from pyrogen.nn import MLP

PIXELS, CLASSES, BATCH = 64, 10, 100
NOISE, BLUR = 0.1, 0.3  # of the images that every classifier sees, and of score matching besides
KINDS = ("plain", "joint", "semi-supervised")


class Plain(JointEnergyModel):
    """The same program without its density: p(y | x) of given inputs."""

    def forward(self, data: Tensor, labels: Tensor) -> Tensor:
        """Scores labels."""
        with pyro.plate("data", len(data), dim=-1):
            y: Tensor = pyro.sample("y", self.classify(data), obs=labels)
        return y


def load(seed: int, num_labelled: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training images with labels, -1 where they are missing, and test images with theirs."""
    digits = load_digits()
    images = torch.as_tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1300], order[1300:]
    known = labels[train].clone()
    known[num_labelled:] = -1
    return (images[train], known), (images[test], labels[test])


class Contestant:
    """A model of one kind and its loss; built once, so that one compilation serves all splits."""

    def __init__(self, kind: str, smoke: bool) -> None:
        self.kind = kind
        make = Plain if kind == "plain" else JointEnergyModel
        base = dist.Normal(torch.full((PIXELS,), 0.3), 0.6).to_event(1)
        self.model = make(network(), base, density_weight=0.01)
        score_matching = losses.ScoreMatching("denoising", sigma=BLUR)
        loss = Trace_ELBO() if kind == "plain" else score_matching
        self.loss = loss if smoke else losses.Compiled(loss)

    def fit(self, images: Tensor, labels: Tensor, steps: int) -> JointEnergyModel:
        """Trains the model from the beginning."""
        self.model.classifier.load_state_dict(network().state_dict())
        if self.kind != "semi-supervised":
            images, labels = images[labels >= 0], labels[labels >= 0]
        chosen = torch.randint(len(images), (steps * BATCH,))
        seen = images[chosen] + NOISE * torch.randn(len(chosen), PIXELS)
        training.fit(
            self.model,
            Empty(),
            (seen, labels[chosen]),
            loss=self.loss,
            optimizer=partial(Adam, lr=1e-3, fused=True),
            batch_size=BATCH,
            max_epochs=1,
            clip_norm=10.0,
            scheduler=partial(OneCycleLR, max_lr=1e-3, total_steps=steps + 1, pct_start=0.05),
            scheduler_interval="step",
            shuffle=False,
            progress=False,
        )
        return self.model


def network() -> MLP:
    """A classifier with random weights."""
    return MLP(PIXELS, CLASSES, hidden=(256, 256), activation=nn.SiLU)


def foreign(test: Tensor) -> dict[str, Tensor]:
    """Images that are no digits."""
    return {
        "negatives": 1 - test,
        "pixels shuffled": test[:, torch.randperm(PIXELS)],
        "turned by 90 degrees": test.reshape(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, PIXELS),
        "means of two": (test + test.roll(1, 0)) / 2,
    }


def cleared(fn: EnergyBased, x: Tensor) -> Tensor:
    """The mean of the clean image, given a blurred one (Tweedie's formula)."""
    x = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(fn.unnormalized_log_prob(x).sum(), x)
    return (x + (BLUR**2 + NOISE**2) * score).detach()


@torch.no_grad()
def novelty(model: JointEnergyModel, test: Tensor) -> dict[str, tuple[float, float]]:
    """For each kind of foreign images the AUROC of log p(x) and of the first choice."""

    def scores(x: Tensor) -> tuple[Tensor, Tensor]:
        density = model.distribution().unnormalized_log_prob(x)
        return density, model.classify(x).probs.amax(-1)

    found = {}
    for name, images in foreign(test).items():
        pairs = zip(scores(test), scores(images), strict=True)
        results = [diagnostics.out_of_distribution(*pair).auroc for pair in pairs]
        found[name] = (results[0], results[1])
    return found


def spread(values: list[float], digits: int = 4) -> str:
    """Mean and standard error over the splits."""
    numbers = torch.tensor(values, dtype=torch.float64)
    error = numbers.std() / len(numbers) ** 0.5 if len(numbers) > 1 else numbers.new_zeros(())
    return f"{numbers.mean():.{digits}f} ± {error:.{digits}f}"


def report(
    results: dict[str, list[diagnostics.Calibration]],
    others: dict[str, list[dict[str, tuple[float, float]]]],
) -> str:
    """Both tables as a page of Markdown."""
    measures = {
        "accuracy": "accuracy",
        "expected_error": "expected calibration error",
        "brier": "Brier score",
        "nats": "nats per label",
    }
    lines = ["# A classifier of digits as a density", ""]
    lines += ["| measure | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for field, name in measures.items():
        cells = [spread([getattr(r, field) for r in runs]) for runs in results.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "AUROC against test images, of log p(x) and of the first choice:", ""]
    lines += ["| foreign images | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
    for name in next(iter(others.values()))[0]:
        cells = [
            " / ".join(spread([run[name][i] for run in runs], 3) for i in (0, 1))
            for runs in others.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains all classifiers on all splits, then judges and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/jem_digits"))
    parser.add_argument("--labelled", type=int, default=300, help="images that have a label")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.steps, arguments.splits = 2, 1
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(0)
    results: dict[str, list[diagnostics.Calibration]] = {kind: [] for kind in KINDS}
    others: dict[str, list[dict[str, tuple[float, float]]]] = {kind: [] for kind in KINDS}
    answers: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    contestants = [Contestant(kind, arguments.smoke) for kind in KINDS]
    truth = []
    for split in range(arguments.splits):
        pyro.set_rng_seed(split)
        train, (images, labels) = load(split, arguments.labelled)
        truth.append(labels)
        for contestant in contestants:
            kind, model = contestant.kind, contestant.fit(*train, arguments.steps)
            answers[kind].append(model.classify(images).probs.detach())
            results[kind].append(diagnostics.calibration(answers[kind][-1], labels))
            others[kind].append(novelty(model, images))
            print(f"split {split}, {kind}: accuracy {results[kind][-1].accuracy:.4f}", flush=True)

    page = report(results, others)
    (output / "report.md").write_text(page, encoding="utf-8")
    pooled = {
        kind: diagnostics.calibration(torch.cat(given), torch.cat(truth))
        for kind, given in answers.items()
    }
    figure = diagnostics.plot_reliability(pooled, title="Test images of all splits")
    figure.savefig(output / "reliability.png", dpi=150)
    model.sampler = kernels.ShortRun(
        kernels.Langevin(step_size=0.01), num_steps=5 if arguments.smoke else 1000
    )
    of_classes = model.given(torch.arange(CLASSES).repeat_interleave(10))
    drawn = cleared(of_classes, of_classes.sample())
    title = "Draws of p(x | y), the blur taken off, a row for each digit"
    diagnostics.plot_images(drawn.clamp(0, 1), columns=10, title=title).savefig(
        output / "draws.png", dpi=150
    )
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
