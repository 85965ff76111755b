"""A path that has to be in two places: how far a learned drift comes, against the exact numbers.

An Ornstein-Uhlenbeck path, z_0 ~ N(0, 9), dz = -0.1 z dt + sqrt(2) dB, is measured once, at time 3,
by two instruments that disagree: one says 5 and the other -5, both with Cauchy(1) errors. So the
posterior of its end has two modes. The guide steers the path by a learned drift and leaves z_0 at
its prior. Everything is known by quadrature:

* the log evidence, -8.0826;
* the best bound with z_0 at its prior, -8.1038: the drift can do all of the rest.

The paths are trained by the bound with Girsanov's log-ratio (sticking the landing), and weighted:
the importance-weighted bound closes what is left. Written to ``--output-dir``:
``multimodal_path.png`` and ``report.md``.

    python examples/multimodal_path.py
"""

from __future__ import annotations

import argparse
import math
import time
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
from pyrogen.processes import OrnsteinUhlenbeck

PROCESS, END, START_STD, MEASURED = OrnsteinUhlenbeck(0.1, 2**0.5), 3.0, 3.0, (5.0, -5.0)
COLOURS = ("#332288", "#cc6677", "#999999")


class Disagreement(PyroModule):
    """The path, and its end as two instruments saw it; each element of the plate is one run."""

    path_site, path_plate = "z", "runs"

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.times = torch.linspace(0, END, steps + 1)

    def prior(self, runs: int = 1) -> Path:
        """The law of the path."""
        initial = dist.Normal(torch.zeros(runs, 1), START_STD).to_event(1)
        return Path(PROCESS, initial, self.times)

    def forward(self, runs: int = 1) -> None:
        """Scores the measurements."""
        with pyro.plate("runs", runs, dim=-1):
            z = pyro.sample("z", self.prior(runs))
            for i, value in enumerate(MEASURED):
                instrument = dist.Cauchy(z[..., -1, 0], 1.0)
                pyro.sample(f"y_{i}", instrument, obs=torch.tensor(value))


class Drift(nn.Module):
    """A network of state and time, both brought to the size of one; zero at first."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = TimeMLP(1, hidden=(hidden, hidden))
        nn.init.zeros_(self.network.layers[-1].weight)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """``u(z, t)``."""
        return self.network(z / 5, t / END)


class Exact:
    """Everything by quadrature on a grid."""

    def __init__(self) -> None:
        self.z = torch.linspace(-30, 30, 3001, dtype=torch.float64)
        self.cell = self.z[1] - self.z[0]
        self.likelihood = sum(dist.Cauchy(self.z, 1.0).log_prob(torch.tensor(y)) for y in MEASURED)
        starts = dist.Normal(0.0, START_STD).log_prob(self.z).exp() * self.cell
        ends = PROCESS.transition(self.z.unsqueeze(-1), torch.tensor(0.0), torch.tensor(END))
        joint = ends.log_prob(self.z) + self.likelihood  # [z_0, z_T]
        of_start = joint.logsumexp(-1) + self.cell.log()
        self.evidence = float((starts * of_start.exp()).sum().log())
        self.best_bound = float((starts * of_start).sum())
        steered = (joint - of_start.unsqueeze(-1)).exp()
        self.guide_end = starts @ steered
        self.posterior_end = (starts * (of_start - self.evidence).exp()) @ steered


@torch.no_grad()
def weighted(model: Disagreement, guide: PathDrift, runs: int) -> tuple[Tensor, Tensor]:
    """Paths, and their log-weights by Girsanov's theorem."""
    model_trace, guide_trace = check_pair(model, guide, (runs,))
    q, p = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
    z: Tensor = guide_trace.nodes["z"]["value"]
    log_weight = -q.log_ratio(z, p)
    for i in range(len(MEASURED)):
        site: Any = model_trace.nodes[f"y_{i}"]
        log_weight = log_weight + site["fn"].log_prob(site["value"])
    return z, log_weight.double()


def train(model: Disagreement, guide: PathDrift, iterations: int) -> None:
    """By the bound."""
    schedule = CosineAnnealingLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 5e-3}, "T_max": iterations}
    )
    svi = SVI(model, guide, schedule, loss=PathELBO(sticking_the_landing=True))
    for _ in range(iterations):
        svi.step(256)
        schedule.step()


def bounds(log_weight: Tensor) -> dict[int, tuple[float, float]]:
    """The importance-weighted bound with K paths, and its standard error."""
    found = {}
    for k in (1, 10, 100, 1000):
        groups = log_weight[: len(log_weight) // k * k].reshape(-1, k).logsumexp(-1) - math.log(k)
        found[k] = float(groups.mean()), float(groups.std()) / math.sqrt(len(groups))
    return found


def report(exact: Exact, found: dict[int, tuple[float, float]], seconds: float) -> str:
    """The numbers as a page of Markdown."""
    bound = found[1][0] - exact.best_bound
    last = max(found)
    rows = [
        f"| {'ELBO' if k == 1 else f'importance-weighted bound, {k} paths'} | {mean:.4f} ± "
        f"{error:.4f} | {(exact.best_bound if k == 1 else exact.evidence):.4f} |"
        for k, (mean, error) in found.items()
    ]
    return "\n".join(
        [
            "# Two measurements that disagree",
            "",
            "| | learned | exact |",
            "|---|---|---|",
            *rows,
            "",
            f"ELBO - best bound = {bound:+.4f} nats; weighted bound ({last} paths) - log evidence "
            f"= {found[last][0] - exact.evidence:+.4f} nats (targets: within 0.02). Trained in "
            f"{seconds:.0f} s.",
            "",
        ]
    )


def picture(exact: Exact, times: Tensor, z: Tensor, log_weight: Tensor) -> Any:
    """Paths of the guide, and the law of their ends before and after weighting."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.6, 3.4), width_ratios=(2, 1), sharey=True, layout="constrained"
    )
    for path in z[:120, :, 0]:
        left.plot(times, path, color=COLOURS[0], linewidth=0.5, alpha=0.4)
    for value in MEASURED:
        left.plot(END, value, "o", color=COLOURS[1], markersize=6, zorder=3, clip_on=False)
    left.set(xlabel="time", ylabel="z", xlim=(0, END), ylim=(-11, 11), title="paths of the guide")
    end = z[:, -1, 0].double()
    bins: Any = torch.linspace(-11, 11, 61).tolist()
    shared = {"bins": bins, "density": True, "orientation": "horizontal"}
    right.hist(end.tolist(), color=COLOURS[0], alpha=0.35, label="guide", **shared)
    right.plot(exact.guide_end, exact.z, color=COLOURS[0], label="best guide, exact")
    weights = log_weight.softmax(0).tolist()
    right.hist(
        end.tolist(), weights=weights, histtype="step", color=COLOURS[1], label="weighted", **shared
    )
    right.plot(exact.posterior_end, exact.z, color=COLOURS[1], ls="--", label="posterior, exact")
    right.set(xlabel="density", title="the end", xlim=(0, 0.2))
    right.legend(fontsize=7, frameon=False, loc="center right")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Trains, weights, compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=FilePath, default=FilePath("outputs/multimodal_path"))
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--steps", type=int, default=60, help="of the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    options = parser.parse_args()
    output: FilePath = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    iterations, runs = (2, 10_000) if options.smoke else (options.iterations, 100_000)
    pyro.set_rng_seed(options.seed)

    exact = Exact()
    print(f"log evidence {exact.evidence:.6f}, best bound {exact.best_bound:.6f}", flush=True)
    model = Disagreement(options.steps)
    guide = PathDrift(model, Drift(8 if options.smoke else 64))
    begin = time.perf_counter()
    train(model, guide, iterations)
    seconds = time.perf_counter() - begin
    parts = [weighted(model, guide, 5_000) for _ in range(runs // 5_000)]
    z, log_weight = (torch.cat(each) for each in zip(*parts, strict=True))
    page = report(exact, bounds(log_weight), seconds)
    (output / "report.md").write_text(page, encoding="utf-8")
    picture(exact, model.times, z, log_weight).savefig(output / "multimodal_path.png", dpi=160)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
