"""How many evaluations of a network does a draw cost? All samplers on one law, known exactly.

The data are a skewed mixture of three normals on the plane, whose score is known in closed form at
every level of noise: what a sampler gets wrong is the sampler's own. Each runs with more and more
steps. Its error is the sliced Wasserstein distance (of order 1) from its draws to the law itself:
over many directions, the mean distance of sorted projections from the quantiles of the projected
law. Draws of the law have a distance too, for they are finitely many; where a sampler comes as low
as most of them (the band), draws cannot tell it from the law.

Written to ``--output-dir``:

* ``samplers.png``: error against evaluations, samplers of the differential equation on the left and
  stochastic ones on the right; above, how some of their draws come about;
* ``report.md``: the errors as a table.

    python examples/diffusion_samplers.py
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor, nn

from pyrogen import kernels
from pyrogen.distributions import ScoreBased
from pyrogen.processes import (
    Exponential,
    Prediction,
    Solver,
    VariancePreserving,
    time_grid,
)

PROCESS, MIN_TIME = VariancePreserving(), 1e-3
GREY = "#888888"


class Mixture(nn.Module):
    """The score of three normals under the noise of a process."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([0.55, 0.3, 0.15]))
        self.register_buffer("means", torch.tensor([[-1.2, -0.3], [1.3, 0.9], [0.4, -1.6]]))
        self.register_buffer("variances", torch.tensor([0.25, 0.09, 0.02]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``[n, 2]`` of states ``[n, 2]`` and times ``[n]``."""
        alpha = PROCESS.mean_scale(t).reshape(-1, 1)
        variance = alpha.square() * self.variances + PROCESS.variance(t).reshape(-1, 1)
        away = x.unsqueeze(1) - alpha.unsqueeze(-1) * self.means
        log_joint = self.weights.log() - variance.log() - 0.5 * away.square().sum(-1) / variance
        pull = log_joint.softmax(-1) / variance
        return -(pull.unsqueeze(-1) * away).sum(1)

    def sample(self, n: int) -> Tensor:
        """Draws, ``[n, 2]``."""
        part = torch.multinomial(self.weights, n, replacement=True)
        return self.means[part] + self.variances[part].sqrt().unsqueeze(-1) * torch.randn(n, 2)

    def quantiles(self, directions: Tensor, n: int) -> Tensor:
        """Of the law projected on ``directions [d, 2]``, at ``n`` even levels: ``[d, n]``."""
        levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        centres = (directions @ self.means.T).double()
        spread = self.variances.double().sqrt()
        high = torch.full((len(directions), n), 10.0, dtype=torch.float64)
        low = -high
        for _ in range(50):  # halves the interval
            middle = 0.5 * (low + high)
            standard = (middle.unsqueeze(-1) - centres.unsqueeze(1)) / spread
            below = (torch.special.ndtr(standard) * self.weights).sum(-1) < levels
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return middle.float()


Make = Callable[[ScoreBased, int], kernels.Kernel]


@dataclass(frozen=True)
class Way:
    """A sampler, made for a law and for so many evaluations."""

    make: Make
    stochastic: bool
    colour: str
    style: str = "-"
    first: int = 0  # the first of the budgets that makes sense


def flow(method: str, cost: int = 1) -> Make:
    """The probability flow, with steps that cost so many evaluations."""
    return lambda fn, n: kernels.ProbabilityFlow(
        fn, max(2, n // cost), method, grid="karras", denoise=True, compile=False
    )


def adaptive(fn: ScoreBased, n: int) -> kernels.Kernel:
    """The adaptive solver of order 5, at a tolerance that asks for about so many evaluations."""
    tolerance = (10.0 / n) ** 4
    return kernels.ProbabilityFlow(
        fn, method="adaptive", atol=tolerance, rtol=tolerance, denoise=True, compile=False
    )


def diffusion(method: str, cost: int = 1, corrector_steps: int = 0) -> Make:
    """The reverse diffusion."""
    return lambda fn, n: kernels.ReverseDiffusion(
        fn, max(2, n // cost), method, "karras", corrector_steps, compile=False
    )


def langevin(fn: ScoreBased, n: int) -> kernels.Kernel:
    """Annealed Langevin dynamics at eight levels of noise."""
    return kernels.AnnealedLangevin(fn, 8, max(1, n // 8), step_size=0.4, compile=False)


WAYS = {
    "Euler": Way(flow("euler"), False, "#ddaa33"),
    "exponential (DDIM)": Way(flow("exponential"), False, "#004488"),
    "Heun": Way(flow("heun", 2), False, "#bb5566"),
    "multistep": Way(flow("multistep"), False, "#228833"),
    "adaptive": Way(adaptive, False, "#000000", ":", first=2),
    "Euler-Maruyama": Way(diffusion("euler-maruyama"), True, "#ddaa33"),
    "ancestral (DDPM)": Way(diffusion("ancestral"), True, "#004488"),
    "exponential": Way(diffusion("exponential"), True, "#66ccee"),
    "Heun, stochastic": Way(diffusion("heun", 2), True, "#bb5566"),
    "multistep, stochastic": Way(diffusion("multistep"), True, "#228833"),
    "predictor-corrector": Way(diffusion("ancestral", 2, 1), True, "#aa3377", "--"),
    "annealed Langevin": Way(langevin, True, GREY, "--"),
}


@dataclass(frozen=True)
class Size:
    """How much to compute."""

    budgets: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    draws: int = 40_000
    directions: int = 16
    pixels: int = 200


@dataclass
class Curve:
    """Evaluations and errors of one sampler."""

    evaluations: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


class Distance:
    """The sliced Wasserstein distance from draws to the law."""

    def __init__(self, data: Mixture, size: Size) -> None:
        angle = torch.arange(size.directions) * math.pi / size.directions
        self._directions = torch.stack([angle.cos(), angle.sin()], 1)
        self._quantiles = data.quantiles(self._directions, size.draws)

    def __call__(self, x: Tensor) -> float:
        """Of draws ``[n, 2]``."""
        projected = (self._directions @ x.T).sort(1).values
        return float((projected - self._quantiles).abs().mean())


def measure(way: Way, law: ScoreBased, size: Size, distance: Distance) -> Curve:
    """The errors of one sampler at all budgets."""
    curve = Curve()
    for budget in size.budgets[way.first :]:
        mcmc = kernels.MCMC(
            way.make(law, budget), num_samples=1, num_chains=size.draws, disable_progbar=True
        )
        mcmc.run()
        curve.evaluations.append(int(mcmc.info["num_steps"][0, 0]))
        curve.errors.append(distance(mcmc.get_samples()["x"]))
    return curve


def paths(law: ScoreBased, solver: Solver, start: Tensor) -> Tensor:
    """How states go from noise to data, ``[times, n, 2]``: what the kernels do, step by step."""

    def predict(x: Tensor, t: Tensor) -> Prediction:
        return Prediction.of(PROCESS, law.score(x, t), x, t, "score")

    times = time_grid(PROCESS, 200, "log-snr", 1.0, MIN_TIME)
    x, carry = start, solver.init(start)
    states = [x]
    for t, s in itertools.pairwise(times):
        x, carry = solver.step(PROCESS, predict, x, t, s, torch.randn_like(x), carry)
        states.append(x)
    return torch.stack(states)


def picture(
    data: Mixture, law: ScoreBased, curves: dict[str, Curve], floor: list[float], size: Size
) -> plt.Figure:
    """Paths above, errors below."""
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 8.4), layout="constrained", height_ratios=[1, 1.15], sharey="row"
    )
    line = torch.linspace(-3, 3, size.pixels)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    away = (points.unsqueeze(-2) - data.means).square().sum(-1)
    density = (data.weights / data.variances * (-0.5 * away / data.variances).exp()).sum(-1)
    kinds = ((0.0, "probability flow"), (1.0, "reverse diffusion"))
    for column, (eta, title) in enumerate(kinds):
        top, bottom = axes[:, column]
        top.imshow(density.sqrt(), origin="lower", extent=(-3, 3, -3, 3), cmap="Blues")
        start = torch.randn(3 if eta else 12, 2)
        ends = paths(law, Exponential(eta, "multistep"), start).unbind(1)
        for path, colour in zip(ends, itertools.cycle(["#222222", "#bb5566", "#997700"])):
            top.plot(*path.T, color=colour, linewidth=0.7)
            top.plot(*path[-1], "o", color=colour, markersize=4)
        top.set(title=title, xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3, 3))
        for name, way in WAYS.items():
            if name in curves and way.stochastic == bool(eta):
                curve = curves[name]
                bottom.loglog(
                    curve.evaluations, curve.errors, way.style, marker="o", markersize=3.5,
                    color=way.colour, label=name,
                )  # fmt: skip
        bottom.axhspan(floor[0], floor[-1], color="#eeeeee")
        bottom.text(size.budgets[0], median(floor), "draws of the law", color=GREY, va="center")
        bottom.set_xlabel("evaluations of the score for a draw")
        bottom.grid(color="#eeeeee")
        bottom.set_ylim(top=2.0)
        bottom.legend(frameon=False, fontsize=8, ncols=2)
    axes[1, 0].set_ylabel("sliced Wasserstein distance to the law")
    for axis in axes.flat:
        axis.spines[:].set_visible(False)
    return figure


def report(curves: dict[str, Curve], floor: list[float]) -> str:
    """The errors as a page of Markdown."""
    lines = ["# Sliced Wasserstein distance to the law, at so many evaluations", ""]
    lines += [f"Draws of the law itself: {floor[0]:.4f} to {floor[-1]:.4f}, 20 times.", ""]
    columns = max(len(curve.errors) for curve in curves.values())
    lines += ["| sampler |" + " |" * columns, "|---" * (columns + 1) + "|"]
    for name, curve in curves.items():
        pairs = zip(curve.errors, curve.evaluations, strict=True)
        cells = [f"{error:.4f} ({n})" for error, n in pairs]
        cells = [""] * (columns - len(cells)) + cells
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures all samplers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/diffusion_samplers"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few draws, to see that it runs")
    arguments = parser.parse_args()
    size = Size((8, 16, 32), 50, 4, 20) if arguments.smoke else Size()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(arguments.seed)
    data = Mixture()
    law = ScoreBased(PROCESS, data, 2, "score", min_time=MIN_TIME)
    distance = Distance(data, size)
    floor = sorted(distance(data.sample(size.draws)) for _ in range(20))
    curves: dict[str, Curve] = {}
    for name, way in WAYS.items():
        begin = time.perf_counter()
        curves[name] = measure(way, law, size, distance)
        errors = " ".join(f"{error:.4f}" for error in curves[name].errors)
        print(f"{name:24}{errors}  {time.perf_counter() - begin:.0f} s", flush=True)
    page = report(curves, floor)
    (arguments.output_dir / "report.md").write_text(page, encoding="utf-8")
    picture(data, law, curves, floor, size).savefig(arguments.output_dir / "samplers.png", dpi=160)
    print(f"\n{page}\nwritten to {arguments.output_dir}/")


if __name__ == "__main__":
    main()
