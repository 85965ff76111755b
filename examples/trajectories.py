"""Which trajectories led to the measured outcome? A particle in a double well, against the exact.

A particle starts at the bottom of the left well, dz = 2 (z - z^3) dt + 0.6 dB, and at time 3 it is
measured in the right one, which on its own it seldom reaches by then. A second run is measured half
way too, roughly, and was still on the left. A guide learns the drift that leads there
(`PathDrift`).

In one dimension everything about the chain of Euler's steps can be computed on a grid of states:

* the log evidence and the marginals of the posterior, by Chapman's and Kolmogorov's equation, with
  the transition matrix forwards and backwards;
* the best bound of all drifts on these time steps, by dynamic programming. A drift moves the mean
  of a step and not its noise, which leaves a gap that vanishes with the step.

The table holds the learned bound beside that, the importance-weighted bound beside the evidence,
and how far the means and standard deviations of the marginals are off. Written to
``--output-dir``: ``trajectories.png`` and ``report.md``.

    python examples/trajectories.py
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from pyro.optim import CosineAnnealingLR
from torch import Tensor, nn

from pyrogen.checks import check_pair
from pyrogen.distributions import Path
from pyrogen.guides import PathDrift
from pyrogen.losses import PathELBO
from pyrogen.nn import TimeMLP
from pyrogen.processes import Process

END, NOISE, START = 3.0, 0.6, -1.0
COLOURS = {"path": "#332288", "exact": "#88ccee", "measured": "#cc6677"}
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def force(z: Tensor, t: Any = None) -> Tensor:
    """The drift: two wells, at -1 and 1."""
    return 2 * (z - z**3)


@dataclass(frozen=True)
class Measurement:
    """What an instrument said of the state at a time."""

    time: float
    value: float
    error: float


CASES = {
    "the end": (Measurement(END, 1.0, 0.2),),
    "the end and half way": (Measurement(END / 2, -0.9, 0.3), Measurement(END, 1.0, 0.2)),
}


class Particle(PyroModule):
    """The path and its measurements; each element of the plate is one trajectory."""

    path_site, path_plate = "z", "runs"

    def __init__(self, steps: int, measurements: tuple[Measurement, ...]) -> None:
        super().__init__()
        self.process = Process(force, NOISE)
        self.times = torch.linspace(0, END, steps + 1)
        self.measurements = measurements

    def prior(self, runs: int = 1) -> Path:
        """The law of the path."""
        return Path(self.process, torch.full((runs, 1), START), self.times)

    def step_of(self, measurement: Measurement) -> int:
        """The step of the grid at which it was made."""
        return round(measurement.time / END * (len(self.times) - 1))

    def forward(self, runs: int = 1) -> None:
        """Scores the measurements."""
        with pyro.plate("runs", runs, dim=-1):
            z = pyro.sample("z", self.prior(runs))
            for i, each in enumerate(self.measurements):
                state = z[..., self.step_of(each), 0]
                law = dist.Normal(state, each.error)
                pyro.sample(f"y_{i}", law, obs=torch.tensor(each.value))


class Drift(nn.Module):
    """A network of state and time, in units of the span; zero at first."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = TimeMLP(1, hidden=(hidden, hidden), frequencies=6)
        nn.init.zeros_(self.network.layers[-1].weight)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """``u(z, t)``."""
        return self.network(z, t / END)


class Exact:
    """The posterior of the chain of Euler's steps, on a grid of states."""

    def __init__(self, model: Particle, points: int = 601) -> None:
        self.model = model
        self.z = torch.linspace(-2.5, 2.5, points, dtype=torch.float64)
        self.cell = float(self.z[1] - self.z[0])
        self.step = END / (len(model.times) - 1)
        self.mean = self.z + self.step * force(self.z)
        self.std = NOISE * math.sqrt(self.step)
        self.likelihoods = torch.zeros(len(model.times), points, dtype=torch.float64)
        for each in model.measurements:
            seen = dist.Normal(self.z, each.error).log_prob(torch.tensor(each.value))
            self.likelihoods[model.step_of(each)] += seen
        self._smooth()

    def _smooth(self) -> None:
        move = dist.Normal(self.mean.unsqueeze(-1), self.std).log_prob(self.z).exp() * self.cell
        begin = START + self.step * force(torch.tensor(START))
        forward = [dist.Normal(begin.double(), self.std).log_prob(self.z).exp()]
        for likelihood in self.likelihoods[1:-1]:
            forward.append((forward[-1] * likelihood.exp()) @ move)
        backward = [self.likelihoods[-1].exp()]
        for likelihood in self.likelihoods[1:-1].flip(0):
            backward.append(likelihood.exp() * (move @ backward[-1]))
        joint = torch.stack(forward) * torch.stack(backward[::-1])
        evidence = joint.sum(-1) * self.cell
        self.evidence = float(evidence[-1].log())
        self.marginals = joint / evidence.unsqueeze(-1)  # of the states after the first

    def best_bound(self) -> float:
        """By dynamic programming: the least cost to go, over all means of the next state."""
        fine = torch.linspace(-2.5, 2.5, 4 * len(self.z) - 3, dtype=torch.float64)
        spread = dist.Normal(fine.unsqueeze(-1), self.std).log_prob(self.z).exp() * self.cell
        spread = spread / spread.sum(-1, keepdim=True)
        shift = (fine - self.mean.unsqueeze(-1)).square() / (2 * self.std**2)
        cost = -self.likelihoods[-1]
        for likelihood in self.likelihoods[1:-1].flip(0):
            cost = (shift + spread @ cost).amin(-1) - likelihood
        begin = START + self.step * force(torch.tensor(START)).double()
        first = (fine - begin).square() / (2 * self.std**2)
        return -float((first + spread @ cost).amin())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the marginals."""
        mean = (self.marginals * self.z).sum(-1) * self.cell
        square = (self.marginals * self.z.square()).sum(-1) * self.cell
        return mean, (square - mean.square()).sqrt()

    def quantiles(self) -> Tensor:
        """Of the marginals, ``[levels, steps]``."""
        cumulative = self.marginals.cumsum(-1) * self.cell
        levels = torch.tensor(LEVELS, dtype=torch.float64).expand(len(cumulative), -1)
        index = torch.searchsorted(cumulative, levels.contiguous()).clamp(max=len(self.z) - 1)
        return self.z[index].T


@torch.no_grad()
def weighted(model: Particle, guide: PathDrift, runs: int) -> tuple[Tensor, Tensor]:
    """Paths ``[runs, steps + 1]`` and their log-weights by Girsanov's theorem."""
    model_trace, guide_trace = check_pair(model, guide, (runs,))
    z: Tensor = guide_trace.nodes["z"]["value"]
    log_weight = -guide_trace.nodes["z"]["fn"].log_ratio(z, model_trace.nodes["z"]["fn"])
    for i in range(len(model.measurements)):
        site: Any = model_trace.nodes[f"y_{i}"]
        log_weight = log_weight + site["fn"].log_prob(site["value"])
    return z[..., 0], log_weight.double()


def train(model: Particle, guide: PathDrift, iterations: int) -> None:
    """By the bound."""
    schedule = CosineAnnealingLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 5e-3}, "T_max": iterations}
    )
    svi = SVI(model, guide, schedule, loss=PathELBO(sticking_the_landing=True))
    for _ in range(iterations):
        svi.step(256)
        schedule.step()


@dataclass
class Outcome:
    """What was learned of one case."""

    exact: Exact
    z: Tensor
    log_weight: Tensor

    def row(self, name: str) -> str:
        """A row of the table."""
        weights, groups = self.log_weight, self.log_weight.reshape(-1, 100)
        elbo, error = float(weights.mean()), float(weights.std()) / math.sqrt(len(weights))
        tight = groups.logsumexp(-1) - math.log(100)
        tight_error = float(tight.std()) / math.sqrt(len(tight))
        normed = weights.softmax(0)
        effective = 1 / float(normed.square().sum()) / len(weights)
        mean, std = self.exact.moments()
        paths = self.z[:, 1:].double()
        reweighted = (normed.unsqueeze(-1) * paths).sum(0)
        off = [
            (paths.mean(0) - mean).abs().max(),
            (paths.std(0) - std).abs().max(),
            (reweighted - mean).abs().max(),
        ]
        return (
            f"| {name} | {elbo:.4f} ± {error:.4f} | {self.exact.best_bound():.4f} | "
            f"{float(tight.mean()):.4f} ± {tight_error:.4f} | {self.exact.evidence:.4f} | "
            f"{effective:.0%} | {off[0]:.3f} | {off[1]:.3f} | {off[2]:.3f} |"
        )


def report(outcomes: dict[str, Outcome], seconds: float) -> str:
    """The numbers as a page of Markdown."""
    return "\n".join(
        [
            "# Trajectories in a double well",
            "",
            "| measured | ELBO | best of all drifts | weighted bound, 100 paths | log evidence | "
            "effective paths | largest error of means | of standard deviations | of weighted means "
            "|",
            "|" + "---|" * 9,
            *(outcome.row(name) for name, outcome in outcomes.items()),
            "",
            f"In nats; the last three over all times, of states whose wells are 2 apart. Trained "
            f"in {seconds:.0f} s.",
            "",
        ]
    )


def draw_case(axis: Any, times: Tensor, outcome: Outcome) -> None:
    """Paths of the guide, quantiles of both, and the measurements."""
    exact, learned = outcome.exact.quantiles(), outcome.z[:, 1:].quantile(torch.tensor(LEVELS), 0)
    later = times[1:]
    for low, high, alpha in ((0, 4, 0.35), (1, 3, 0.55)):
        axis.fill_between(
            later, exact[low], exact[high], color=COLOURS["exact"], alpha=alpha, linewidth=0
        )
    for path in outcome.z[:25]:
        axis.plot(times, path, color=COLOURS["path"], linewidth=0.45, alpha=0.45)
    for level in learned:
        axis.plot(later, level, color="black", linewidth=0.9, linestyle="--")
    for each in outcome.exact.model.measurements:
        axis.errorbar(
            each.time, each.value, each.error, fmt="o", color=COLOURS["measured"], capsize=3,
            markersize=5, zorder=4, clip_on=False,
        )  # fmt: skip


def picture(model: Particle, outcomes: dict[str, Outcome]) -> Any:
    """The prior, then each case."""
    figure, axes = plt.subplots(
        1, 1 + len(outcomes), figsize=(11, 3.3), sharey=True, layout="constrained"
    )
    prior = model.prior(60).sample()[..., 0]
    for path in prior:
        axes[0].plot(model.times, path, color=COLOURS["path"], linewidth=0.45, alpha=0.45)
    axes[0].set(title="nothing measured", ylabel="z")
    for axis, (name, outcome) in zip(axes[1:], outcomes.items(), strict=True):
        draw_case(axis, model.times, outcome)
        axis.set(title=f"measured: {name}")
    for axis in axes:
        axis.set(xlabel="time", xlim=(0, END), ylim=(-2, 2))
        axis.spines[["top", "right"]].set_visible(False)
    lines = [
        plt.Line2D([], [], color=COLOURS["path"], linewidth=0.8),
        plt.Line2D([], [], color="black", linestyle="--", linewidth=0.9),
        plt.Rectangle((0, 0), 1, 1, color=COLOURS["exact"], alpha=0.6),
    ]
    words = ["paths of the guide", "its 5, 25, 50, 75, 95 %", "exact 5-95 and 25-75 %"]
    axes[1].legend(lines, words, fontsize=6.5, frameon=False, loc="upper left")
    return figure


def main() -> None:
    """Trains each case, weights, compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=FilePath, default=FilePath("outputs/trajectories"))
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--steps", type=int, default=60, help="of the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    options = parser.parse_args()
    output: FilePath = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    iterations, runs, points = (
        (2, 1000, 201) if options.smoke else (options.iterations, 40_000, 601)
    )
    pyro.set_rng_seed(options.seed)

    outcomes, seconds = {}, 0.0
    for name, measurements in CASES.items():
        model = Particle(options.steps, measurements)
        guide = PathDrift(model, Drift(8 if options.smoke else 64))
        begin = time.perf_counter()
        train(model, guide, iterations)
        seconds += time.perf_counter() - begin
        parts = [weighted(model, guide, 1000) for _ in range(runs // 1000)]
        z, log_weight = (torch.cat(each) for each in zip(*parts, strict=True))
        outcomes[name] = Outcome(Exact(model, points), z, log_weight)
        pyro.clear_param_store()
        print(f"{name}: {seconds:.0f} s", flush=True)
    page = report(outcomes, seconds)
    (output / "report.md").write_text(page, encoding="utf-8")
    picture(model, outcomes).savefig(output / "trajectories.png", dpi=160)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
