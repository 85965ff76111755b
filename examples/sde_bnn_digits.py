"""How sure a classifier of digits may be: a network whose weights are a diffusion, and others.

The scans that come with scikit-learn, 1,300 to learn from and 497 to test, over several splits. All
but the last see the images with a little noise:

* SDE-BNN: a network of infinite depth whose weights are a diffusion with a learned drift, once with
  the weight 1 on the divergence from the prior, which is the bound on the evidence, and once with a
  lower weight (tempered); predictions are the mean over draws of the path,
* neural ODE: the same network and drift, with as many parameters, without noise, by maximum
  likelihood with weight decay,
* Bayes by backprop: a network of one hidden layer, with a scale mixture as prior of each weight, a
  normal law for each, and local reparametrisation,
* Laplace: such a network with a normal prior, by Pyro's ``AutoLaplaceApproximation``, linearised to
  predict.

Weight decay, learning rate and scales were chosen on splits that are not among those reported.
Written to ``--output-dir``:

* ``reliability.png``: how often all but the last are right where they say how sure they are
* ``report.md``: accuracy, nats per label and calibration error, mean and range over the splits

    python examples/sde_bnn_digits.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import diagnostics
from pyrogen.guides import NormalWeights, PathDrift
from pyrogen.losses import PathELBO
from pyrogen.models import SDEBNN, BayesianNetwork, scale_mixture
from pyrogen.nn import TimeMLP
from pyrogen.processes import OrnsteinUhlenbeck, simulate

PIXELS, CLASSES, TRAIN, BATCH, DRAWS = 64, 10, 1300, 260, 200
NOISE = 0.3  # of the images that every classifier sees, in standard deviations of their pixels
TEMPERED = 0.01
SCALE = 0.15  # of the noise of the weights
DECAY = 0.3  # of the weights that are parameters
Data = tuple[Tensor, Tensor]


def load(split: int) -> tuple[Data, Data]:
    """Images ``[n, 64]``, centred, and labels ``[n]``, to learn from and to test."""
    digits = load_digits()
    images = torch.as_tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(split))
    train, test = order[:TRAIN], order[TRAIN:]
    images = images - images[train].mean(0)
    images = images / images[train].std()
    return (images[train], labels[train]), (images[test], labels[test])


def fit(
    loss: Callable[[Tensor, Tensor], Tensor],
    groups: Iterable[tuple[nn.Module, float]],
    data: Data,
    steps: int,
    decay: float = 0.0,
) -> None:
    """Minimises a loss in nats summed over the data, in one cycle of the learning rates.

    Args:
        loss: of images, which are seen with noise, and labels.
        groups: modules with their learning rates.
        data: all images and labels.
        steps: how many.
        decay: of the weights (decoupled).
    """
    options = [{"params": list(part.parameters()), "lr": rate} for part, rate in groups]
    optimizer = AdamW(options, weight_decay=decay)
    schedule = OneCycleLR(
        optimizer, max_lr=[each["lr"] for each in options], total_steps=steps + 9, pct_start=0.1
    )
    for _ in range(steps):
        chosen = torch.randperm(TRAIN)[:BATCH]
        seen = data[0][chosen]
        optimizer.zero_grad()
        (loss(seen + NOISE * torch.randn_like(seen), data[1][chosen]) / TRAIN).backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 10.0)
        optimizer.step()
        schedule.step()


def of_depth() -> tuple[SDEBNN, PathDrift]:
    """The network of infinite depth and its drift."""
    model = SDEBNN(
        PIXELS,
        num_classes=CLASSES,
        state_dim=32,
        hidden=(64,),
        num_steps=8,
        solver="euler",
        prior=OrnsteinUhlenbeck(rate=1.0, scale=SCALE),
        num_data=TRAIN,
    )
    drift = TimeMLP(model.initial.numel(), hidden=(32,))
    nn.init.zeros_(drift.layers[-1].weight)  # no divergence from the prior at first
    return model, PathDrift(model, drift)


class Classifier:
    """Probabilities of test images, and what is said of the training.

    Attributes:
        probabilities: ``[n, 10]``.
        note: for the log.
        parameters: how many numbers were trained.
    """

    def __init__(self, probabilities: Tensor, parts: Iterable[nn.Module], note: str = "") -> None:
        self.probabilities = probabilities.detach().double()
        self.parameters = sum(p.numel() for part in parts for p in part.parameters())
        self.note = note


def sde_bnn(weight: float, data: Data, x: Tensor, steps: int) -> Classifier:
    """``weight`` is that of the divergence."""
    model, guide = of_depth()
    loss = PathELBO(kl_weight=weight)(model, guide)
    # Where the divergence costs less, the drift may do more.
    rate = 1e-3 if weight == 1 else 5e-3
    fit(loss, ((model, 1.5e-2), (guide, rate)), data, steps, decay=DECAY)
    with torch.no_grad():
        law = guide.law()
        paths = law.sample((DRAWS, 1))
        divergence = law.log_ratio(paths, model.prior(), martingale=False).mean()
        probabilities = model.predict(x, paths).probs.mean(0)
    return Classifier(probabilities, (model, guide), f"divergence {float(divergence):.1f} nats")


def neural_ode(data: Data, x: Tensor, steps: int) -> Classifier:
    """The noise left out."""
    model, guide = of_depth()
    still = torch.zeros(len(model.times) - 1, model.initial.numel())

    def predict(x: Tensor) -> Any:
        return model.predict(x, simulate(guide.law().process, model.initial, model.times, still))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        nats: Tensor = -TRAIN * predict(x).log_prob(y).mean()
        return nats

    fit(loss, ((model, 1.5e-2), (guide, 1.5e-2)), data, steps, decay=DECAY)
    return Classifier(predict(x).probs, (model, guide))


def averaged(model: BayesianNetwork, guide: Any, x: Tensor) -> Tensor:
    """The mean over draws of the weights."""
    found = Predictive(model, guide=guide, num_samples=DRAWS)(x[:1])
    weights = [found[name].reshape(-1, 1, *shape) for name, shape in model.weight_shapes.items()]
    probabilities: Tensor = model.predict(x, weights).probs.mean(0)
    return probabilities


def backprop(data: Data, x: Tensor, steps: int) -> Classifier:
    """Bayes by backprop."""
    model = BayesianNetwork(
        PIXELS, CLASSES, hidden=(64,), prior=scale_mixture(0.5, 0.5, 0.05), num_data=TRAIN
    )
    guide = NormalWeights(model, local=True)
    loss = Trace_ELBO()(model, guide)
    fit(loss, ((loss, 1e-2),), data, 2 * steps)
    return Classifier(averaged(model, guide.eval(), x), (guide,))


def linearised(model: BayesianNetwork, normal: Any, data: Any) -> Callable[[Tensor], Any]:
    """Predictions by the network's tangent at the mode, for draws of a normal law about it.

    Far from the mode a normal law of the weights is none of the network's: A. Immer, M. Korzepa,
    M. Bauer, *Improving predictions of Bayesian neural nets via local linearization*, 2021,
    arXiv:2008.08400.
    """
    found = Predictive(model, guide=normal, num_samples=DRAWS)(data[0][:1])
    mode = [normal.median(*data)[name].detach() for name in model.weight_shapes]
    moves = [
        found[name].flatten(0, 1) - at for name, at in zip(model.weight_shapes, mode, strict=True)
    ]

    def predict(x: Tensor) -> Any:
        def network(weights: list[Tensor]) -> Tensor:
            return model.network(x, weights)

        def moved(by: list[Tensor]) -> Tensor:
            return torch.func.jvp(network, (mode,), (by,))[1]

        return model.outputs(network(mode) + torch.func.vmap(moved)(moves))

    return predict


def laplace(data: Data, x: Tensor, steps: int) -> Classifier:
    """A normal law about the mode, which is that of the images without added noise."""
    model = BayesianNetwork(PIXELS, CLASSES, hidden=(16,), prior=0.5, activation=nn.Tanh).double()
    data, x = (data[0].double(), data[1]), x.double()
    guide = AutoLaplaceApproximation(model)
    guide(*data)
    loss = Trace_ELBO()(model, guide)
    optimizer = torch.optim.LBFGS(
        loss.parameters(), max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        nats: Tensor = loss(*data)
        nats.backward()
        return nats

    optimizer.step(closure)
    predict = linearised(model, guide.laplace_approximation(*data), data)
    return Classifier(predict(x).probs.mean(0), (guide,))


PROGRAMS: dict[str, Callable[[Data, Tensor, int], Classifier]] = {
    "SDE-BNN, KL weight 1": lambda *given: sde_bnn(1.0, *given),
    f"SDE-BNN, KL weight {TEMPERED:g}": lambda *given: sde_bnn(TEMPERED, *given),
    "neural ODE": neural_ode,
    "Bayes by backprop": backprop,
    "Laplace": laplace,
}
MEASURES = {
    "accuracy": "accuracy",
    "nats": "nats per label (NLL)",
    "expected_error": "expected calibration error (ECE)",
}


def spread(values: list[float]) -> str:
    """Mean and range over the splits."""
    return f"{sum(values) / len(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def report(
    results: dict[str, list[diagnostics.Calibration]],
    pooled: dict[str, diagnostics.Calibration],
    parameters: dict[str, int],
) -> str:
    """A page of Markdown, with a verdict on the SDE-BNN."""
    heads = ["program", *MEASURES.values(), "ECE of all splits", "parameters"]
    lines = ["# Digits, and how sure classifiers are of them", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, runs in results.items():
        cells = [spread([getattr(run, field) for run in runs]) for field in MEASURES]
        cells += [f"{pooled[name].expected_error:.4f}", str(parameters[name])]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += ["", "Differences from the neural ODE on the same split, mean and range:", ""]
    for name, runs in results.items():
        if name.startswith("SDE"):
            pairs = list(zip(runs, results["neural ODE"], strict=True))
            found = [
                f"{field} {spread([getattr(a, field) - getattr(b, field) for a, b in pairs])}"
                for field in MEASURES
            ]
            lines.append(f"* {name}: " + ", ".join(found))
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains all classifiers on all splits, then judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/sde_bnn_digits"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--first-split", type=int, default=0, help="the number of the first split")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.steps, arguments.splits = 3, 1
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.settings.set(module_local_params=True)

    results: dict[str, list[diagnostics.Calibration]] = {}
    answers: dict[str, list[Tensor]] = {}
    parameters: dict[str, int] = {}
    truth = []
    for split in range(arguments.first_split, arguments.first_split + arguments.splits):
        data, (images, labels) = load(split)
        truth.append(labels)
        for name, program in PROGRAMS.items():
            pyro.set_rng_seed(split)
            begin = time.perf_counter()
            try:
                classifier = program(data, images, arguments.steps)
            except torch.linalg.LinAlgError:
                print(f"split {split}, {name}: left out, the curvature is not positive", flush=True)
                continue
            found = diagnostics.calibration(classifier.probabilities, labels)
            results.setdefault(name, []).append(found)
            answers.setdefault(name, []).append(classifier.probabilities)
            parameters[name] = classifier.parameters
            print(
                f"split {split}, {name}: accuracy {found.accuracy:.4f}, NLL {found.nats:.4f}, "
                f"ECE {found.expected_error:.4f} in {time.perf_counter() - begin:.0f} s "
                f"{classifier.note}",
                flush=True,
            )

    pooled = {
        name: diagnostics.calibration(torch.cat(given), torch.cat(truth))
        for name, given in answers.items()
        if len(given) == len(truth)
    }
    complete = {name: results[name] for name in pooled}
    page = report(complete, pooled, parameters)
    (output / "report.md").write_text(page, encoding="utf-8")
    shown = {
        name: diagnostics.calibration(torch.cat(answers[name]), torch.cat(truth), num_bins=8)
        for name in pooled
        if name != "Laplace"  # as many as there are colours
    }
    figure = diagnostics.plot_reliability(shown, title="Test images of all splits")
    figure.axes[0].legend(loc="lower right", fontsize=8, framealpha=0.9)
    figure.savefig(output / "reliability.png", dpi=150)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
