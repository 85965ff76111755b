"""Regression in one dimension by networks that know what they do not know, and how well they do.

Two sets of 200 points, with noise that is known:

* gap: a wave whose noise grows from left to right, and a stretch without any points,
* bimodal: two branches that cross, of which each point takes one by chance.

Four programs with the same likelihood (its mean and scale are put out by the network; of two
components for the second set) are trained on each:

* SDE-BNN: a network of infinite depth whose weights are a diffusion, its drift learned,
* neural ODE: the same network and drift without noise, by maximum likelihood,
* Bayes by backprop: a network of one hidden layer with a normal law for each weight,
* Laplace: the same network, by Pyro's ``AutoLaplaceApproximation``, linearised to predict.

Written to ``--output-dir``:

* ``predictions.png``: intervals of the predictive law, and the data
* ``paths.png``: paths of weights and of the hidden state, before and after, and predictive draws
* ``report.md``: how often test points lie in the intervals of 50, 80, 90 and 95 %, their widths,
  and nats per test point

    python examples/sde_bnn_regression.py
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen.guides import NormalWeights, PathDrift
from pyrogen.losses import PathELBO
from pyrogen.models import SDEBNN, BayesianNetwork, NormalMixture
from pyrogen.nn import TimeMLP
from pyrogen.processes import OrnsteinUhlenbeck, simulate

LEVELS = (0.5, 0.8, 0.9, 0.95)
TRAIN, TEST, DRAWS = 200, 1000, 200
COLOURS = ("#332288", "#117733", "#88CCEE", "#DDCC77")
INK = "#333333"


@dataclass
class Problem:
    """Where inputs lie, and the law of targets."""

    inputs: Callable[[int], Tensor]
    targets: Callable[[Tensor], Tensor]
    components: int

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Pairs ``[n, 1]``, ``[n, 1]``."""
        x = self.inputs(n)
        return x, self.targets(x)


def _beside_the_gap(n: int) -> Tensor:
    x = 2 * torch.rand(n, 1) - 2
    return torch.where(torch.rand(n, 1) < 0.5, x, x + 3)  # in [-2, 0] or [1, 3]


def _wave(x: Tensor) -> Tensor:
    return torch.sin(2 * x) + (0.05 + 0.3 * torch.sigmoid(2 * x)) * torch.randn_like(x)


def _branches(x: Tensor) -> Tensor:
    sign = torch.where(torch.rand_like(x) < 0.5, -1.0, 1.0)
    return sign * (0.2 + x.sin()) + 0.1 * torch.randn_like(x)


PROBLEMS = {
    "gap": Problem(_beside_the_gap, _wave, components=1),
    "bimodal": Problem(lambda n: 4 * torch.rand(n, 1) - 2, _branches, components=2),
}


@dataclass
class Fitted:
    """What a trained program predicts.

    Attributes:
        predict: ``x [n, 1]`` to the laws of its targets, of batch shape ``[draws, n]``, one for
            each draw of weights.
        parameters: how many numbers were trained.
        pair: model and guide, of the SDE-BNN.
    """

    predict: Callable[[Tensor], Any]
    parameters: int
    pair: tuple[SDEBNN, PathDrift] | None = None

    @torch.no_grad()
    def draw(self, x: Tensor) -> Tensor:
        """Targets ``[2000 or so, n]``, some for each draw of weights."""
        law = self.predict(x)
        return law.sample((2000 // law.batch_shape[0],))[..., 0].flatten(0, 1)

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """``[n]``, under the mean of the laws."""
        each: Tensor = self.predict(x).log_prob(y)
        return each.logsumexp(0) - math.log(len(each))


def train(loss: Callable[..., Tensor], parameters: list[Tensor], data: Any, steps: int) -> None:
    """Full batches, one cycle of the learning rate."""
    optimizer = Adam(parameters, lr=1e-2)
    schedule = OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps + 9, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss(*data) / TRAIN).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()


def count(*parts: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for part in parts for p in part.parameters())


def of_depth(problem: Problem) -> tuple[SDEBNN, PathDrift]:
    """A small network of infinite depth."""
    model = SDEBNN(
        1,
        out_features=1,
        state_dim=8,
        hidden=(16,),
        num_steps=10,
        prior=OrnsteinUhlenbeck(rate=1.0, scale=0.1),
        likelihood=NormalMixture(problem.components, min_scale=0.01),
    )
    drift = TimeMLP(model.initial.numel(), hidden=(32,))
    nn.init.zeros_(drift.layers[-1].weight)  # no divergence from the prior at first
    return model, PathDrift(model, drift)


def sde_bnn(problem: Problem, data: Any, steps: int) -> Fitted:
    """The bound on the evidence, with the weight 1 on the divergence."""
    model, guide = of_depth(problem)
    loss = PathELBO()(model, guide)
    train(loss, list(loss.parameters()), data, steps)
    paths = guide.law().sample((DRAWS, 1))
    return Fitted(lambda x: model.predict(x, paths), count(model, guide), (model, guide))


def neural_ode(problem: Problem, data: Any, steps: int) -> Fitted:
    """The same drift and network with the noise left out, and the likelihood alone."""
    model, guide = of_depth(problem)
    still = torch.zeros(1, 1, len(model.times) - 1, model.initial.numel())

    def predict(x: Tensor) -> Any:
        start = model.initial.expand(1, 1, -1)
        return model.predict(x, simulate(guide.law().process, start, model.times, still))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        nats: Tensor = -predict(x).log_prob(y).sum()
        return nats

    train(loss, [*model.parameters(), *guide.parameters()], data, steps)
    return Fitted(predict, count(model, guide))


def shallow(problem: Problem) -> BayesianNetwork:
    """One hidden layer."""
    likelihood = NormalMixture(problem.components, min_scale=0.01)
    return BayesianNetwork(
        1, out_features=1, hidden=(30,), activation=nn.Tanh, likelihood=likelihood
    )


def of_weights(model: BayesianNetwork, guide: Any, x: Tensor, trained: int) -> Fitted:
    """Predictions of a network by weights that a guide draws, for any inputs like ``x``."""
    found = Predictive(model, guide=guide, num_samples=DRAWS)(x[:1])
    weights = [found[name].reshape(-1, 1, *shape) for name, shape in model.weight_shapes.items()]
    return Fitted(lambda x: model.predict(x, weights), trained)


def backprop(problem: Problem, data: Any, steps: int) -> Fitted:
    """A normal law for each weight."""
    model = shallow(problem)
    guide = NormalWeights(model, local=True)
    loss = TraceMeanField_ELBO()(model, guide)
    train(loss, list(loss.parameters()), data, 2 * steps)
    return of_weights(model, guide.eval(), data[0], count(guide))


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


def laplace(problem: Problem, data: Any, steps: int) -> Fitted | None:
    """A normal law about the mode, of the curvature there; none where that is no minimum."""
    model = shallow(problem).double()
    data = [each.double() for each in data]
    guide = AutoLaplaceApproximation(model)
    guide(*data)
    loss = Trace_ELBO()(model, guide)
    train(loss, list(loss.parameters()), data, steps)
    optimizer = torch.optim.LBFGS(  # down to the minimum, so that there is a curvature
        loss.parameters(), max_iter=2 * steps, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        nats: Tensor = loss(*data)
        nats.backward()
        return nats

    optimizer.step(closure)
    try:
        normal = guide.laplace_approximation(*data)
    except torch.linalg.LinAlgError:
        return None
    predict = linearised(model, normal, data)
    return Fitted(lambda x: predict(x.double()), count(guide))


PROGRAMS: dict[str, Callable[..., Fitted | None]] = {
    "SDE-BNN": sde_bnn,
    "neural ODE": neural_ode,
    "Bayes by backprop": backprop,
    "Laplace": laplace,
}


@dataclass
class Score:
    """How a program did on test points: shares inside of intervals, their widths, nats."""

    coverage: list[float]
    width: list[float]
    nats: float


def score(fitted: Fitted, x: Tensor, y: Tensor) -> Score:
    """Central intervals of the predictive law, by the quantiles of its draws."""
    draws = fitted.draw(x)
    coverage, width = [], []
    for level in LEVELS:
        low, high = quantiles(draws, level)
        coverage.append(float(((y[:, 0] >= low) & (y[:, 0] <= high)).double().mean()))
        width.append(float((high - low).mean()))
    return Score(coverage, width, -float(fitted.log_prob(x, y).mean()))


def quantiles(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The ends of the central interval of a level."""
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=draws.dtype)
    low, high = draws.quantile(ends, dim=0)
    return low, high


def draw_predictions(fits: dict[str, dict[str, Fitted]], data: dict[str, Any]) -> Any:
    """A row for each problem, a column for each program."""
    figure, rows = plt.subplots(
        len(fits), len(PROGRAMS), figsize=(12, 5.6), sharex=True, sharey="row", squeeze=False
    )
    x = torch.linspace(-4, 5, 181).unsqueeze(-1)
    for axes_of_row, (problem, programs) in zip(rows, fits.items(), strict=True):
        for axes, (name, fitted), colour in zip(
            axes_of_row, programs.items(), COLOURS, strict=False
        ):
            draws = fitted.draw(x)
            for level in (0.95, 0.8, 0.5):
                low, high = quantiles(draws, level)
                axes.fill_between(x[:, 0], low, high, color=colour, alpha=0.25, linewidth=0)
            seen = data[problem]
            axes.scatter(seen[0], seen[1], s=4, color=INK, linewidths=0)
            axes.set_title(f"{name}, {problem}", fontsize=9, loc="left")
            axes.set_ylim(-4, 4)
        for axes in axes_of_row[len(programs) :]:
            axes.set_axis_off()  # a program that was left out
    figure.suptitle("Intervals of 50, 80 and 95 %, and the data", x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    return figure


def draw_paths(model: SDEBNN, guide: PathDrift, data: Any) -> Any:
    """Three weights before and after the data came, and what they do to a state and a target."""
    figure, (above, below) = plt.subplots(2, 3, figsize=(12, 6.2))
    times = model.times
    with torch.no_grad():
        laws = {"prior": model.prior(), "posterior": guide.law()}
        paths = {name: law.sample((30, 1)) for name, law in laws.items()}
        moved = (paths["posterior"].mean(0) - paths["prior"].mean(0))[0, -1].abs()
        for axes, i in zip(above, moved.topk(3).indices.tolist(), strict=True):
            for (name, w), colour in zip(paths.items(), ("#999999", COLOURS[0]), strict=True):
                axes.plot(times, w[:, 0, :, i].T, color=colour, linewidth=0.7, alpha=0.6)
                axes.plot([], [], color=colour, label=name)
            axes.set_title(f"weight {i}", fontsize=9, loc="left")
            axes.set_xlabel("depth")
        above[0].legend(frameon=False, fontsize=8)
        inputs = torch.tensor([[-1.5], [0.5], [2.0]])
        states = model.states(inputs, paths["posterior"])
        for i, colour in enumerate(COLOURS[:3]):
            below[0].plot(times, states[:, i, :, 0].T, color=colour, linewidth=0.7, alpha=0.6)
            below[0].plot([], [], color=colour, label=f"x = {float(inputs[i]):g}")
        below[0].set_xlim(0, 1.4)  # room for the legend
        below[0].legend(frameon=False, fontsize=8)
        below[0].set_title("first element of the hidden state", fontsize=9, loc="left")
        below[0].set_xlabel("depth")
        x = torch.linspace(-4, 5, 181).unsqueeze(-1)
        for axes, (name, w) in zip(below[1:], paths.items(), strict=True):
            axes.plot(x[:, 0], model.predict(x, w).mean[..., 0].T, color=COLOURS[0], linewidth=0.7)
            axes.scatter(data[0], data[1], s=4, color=INK, linewidths=0)
            axes.set_title(f"mean of the target, for draws of the {name}", fontsize=9, loc="left")
            axes.set_ylim(-4, 4)
            axes.set_xlabel("x")
    figure.tight_layout()
    return figure


def report(scores: dict[str, dict[str, Score]], fits: dict[str, dict[str, Fitted]]) -> str:
    """A table for each problem."""
    lines = ["# Intervals of predictions, and how often test points lie in them", ""]
    for problem, programs in scores.items():
        lines += [f"{problem}:", ""]
        names = [f"{100 * level:g} %" for level in LEVELS]
        heads = ["program", *names, "width of the 90 % interval", "nats per point", "parameters"]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for name, found in programs.items():
            shares = [f"{100 * share:.1f}" for share in found.coverage]
            cells = [name, *shares, f"{found.width[2]:.2f}", f"{found.nats:.3f}"]
            lines.append("| " + " | ".join([*cells, str(fits[problem][name].parameters)]) + " |")
        lines.append("")
    error = 100 * (0.25 / TEST) ** 0.5
    lines.append(f"{TEST} test points; a share has a standard error of at most {error:.1f} %.")
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains all programs on both sets, then judges and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/sde_bnn_regression"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    steps = 3 if arguments.smoke else arguments.steps
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.settings.set(module_local_params=True)

    fits: dict[str, dict[str, Fitted]] = {}
    scores: dict[str, dict[str, Score]] = {}
    data = {}
    for problem, law in PROBLEMS.items():
        pyro.set_rng_seed(0)
        data[problem], test = law.draw(TRAIN), law.draw(TEST)
        fits[problem], scores[problem] = {}, {}
        for name, program in PROGRAMS.items():
            begin = time.perf_counter()
            fitted = program(law, data[problem], steps)
            if fitted is None:
                print(f"{problem}, {name}: left out, the curvature is not positive", flush=True)
                continue
            fits[problem][name] = fitted
            scores[problem][name] = score(fitted, *test)
            seconds = time.perf_counter() - begin
            print(f"{problem}, {name}: {scores[problem][name]} in {seconds:.0f} s", flush=True)

    page = report(scores, fits)
    (output / "report.md").write_text(page, encoding="utf-8")
    draw_predictions(fits, data).savefig(output / "predictions.png", dpi=150)
    pair = fits["gap"]["SDE-BNN"].pair
    draw_paths(*pair, data["gap"]).savefig(output / "paths.png", dpi=150)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
