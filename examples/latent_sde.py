"""A latent SDE learns a stochastic Lorenz system from a few noisy glimpses of each series.

Each series is a path of the Lorenz system with multiplicative noise, seen at 24 random times of its
own, with noise, and of what could be seen one value in ten is missing. Nobody tells the model the
equations. It has a prior of latent paths with a learned drift, a decoder, and a guide whose drift
is told by a backward GRU what lies ahead. On new series, of which half of the glimpses before time
1.5 are shown, it has to fill in the other half, and to forecast what comes until time 2.

Beside it, on the same data:

* the latent ODE: the same encoder, drift and decoder, of the same size and as many steps, without
  noise, so that all that is uncertain is the beginning;
* a Gaussian process for each coordinate (Matern 5/2; length, amplitude and noise by maximum
  marginal likelihood over the training series): exact inference, in a model without dynamics;
* straight lines between the glimpses and the last one held, with the errors that these have on
  training series, by the distance of the nearest glimpse.

Reported: the bound on the log-likelihood of what was shown, and of what was hidden the error, the
log-density and the coverage of 90 % intervals. Written to ``--output-dir``: ``latent_sde.png`` and
``report.md``.

    python examples/latent_sde.py
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_pair
from pyrogen.guides import PathEncoder
from pyrogen.losses import PathELBO
from pyrogen.models import LatentSDE, Normal
from pyrogen.nn import MLP, BackwardGRU, TimeMLP
from pyrogen.processes import Process, simulate

END, CUT, UNIT = 2.0, 1.5, 0.2  # the models count time in units of 0.2
GLIMPSES, NOISE, LATENT = 24, 0.1, 4
COLOURS = {"latent SDE": "#332288", "latent ODE": "#cc6677", "truth": "#222222"}


@dataclass
class Series:
    """``x [n, K, 3]`` at ``times [n, K]`` in units of 0.2; ``there`` and ``shown`` are masks.

    Attributes:
        truth: the paths without noise of observation, on ``fine`` times.
    """

    x: Tensor
    times: Tensor
    there: Tensor
    shown: Tensor
    truth: Tensor
    fine: Tensor

    def seen(self, rows: Any = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """What a model is given."""
        return self.x[rows], self.times[rows], self.shown[rows]


def lorenz(x: Tensor, t: Tensor) -> Tensor:
    """Lorenz's equations."""
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def generate(n: int, test: int, fine: int = 2000) -> tuple[Series, Series]:
    """Series to learn from, all shown, and new ones; in units of standard deviations."""
    system = Process(lorenz, lambda x, t: torch.tensor([0.1, 0.28, 0.3]) * x)
    grid = torch.linspace(0, END, fine + 1)
    path = simulate(system, torch.randn(n + test, 3), grid, torch.randn(n + test, fine, 3))
    path = (path - path[:n].mean((0, 1))) / path[:n].std((0, 1))
    index = torch.rand(n + test, fine + 1).argsort(-1)[:, :GLIMPSES].sort(-1).values
    clean = torch.take_along_dim(path, index.unsqueeze(-1), 1)
    x = clean + NOISE * torch.randn_like(clean)
    there = torch.rand_like(x) < 0.9
    chosen = (torch.rand(x.shape[:2]) < 0.5) & (grid[index] < CUT)
    shown = there & chosen.unsqueeze(-1)
    shown[:n] = there[:n]
    parts = (x, grid[index] / UNIT, there, shown, path)
    return tuple(  # type: ignore[return-value]
        Series(*(each[rows] for each in parts), grid / UNIT)
        for rows in (slice(0, n), slice(n, None))
    )


class Drift(nn.Module):
    """A network of the state alone."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = TimeMLP(LATENT, hidden=(hidden, hidden), frequencies=0, activation=nn.SiLU)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """``f(z)``."""
        return self.network(z, t)


def build(steps: int, hidden: int) -> LatentSDE:
    """The model, whose parts the latent ODE has too."""
    grid = torch.linspace(0, END / UNIT, steps + 1)
    decoder = MLP(LATENT, 3, hidden=(hidden,))
    return LatentSDE(Process(Drift(hidden), 0.3), decoder, LATENT, grid, Normal(0.5))


class LatentODE(PyroModule):
    """A latent SDE's drift, decoder and beginning, without its noise; site ``"z_0"``."""

    def __init__(self, parts: LatentSDE) -> None:
        super().__init__()
        self.parts = parts

    def path(self, z0: Tensor) -> Tensor:
        """Euler's steps from the beginning."""
        steps = len(self.parts.times) - 1
        still = z0.new_zeros((*z0.shape[:-1], steps, z0.shape[-1]))
        return simulate(self.parts.process, z0, self.parts.times, still)

    def forward(self, data: Tensor, times: Tensor, mask: Tensor) -> None:
        """Scores series."""
        with pyro.plate("data", len(data), dim=-1):
            z0 = pyro.sample("z_0", self.parts.prior().initial)
            states = self.parts.states_at(self.path(z0), times)
            law = self.parts.decode(states).mask(mask).to_event(2)
            pyro.sample("x", law, obs=data)


class Beginning(PyroModule):
    """The guide of the latent ODE: a normal beginning from the encoder's summary."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder = BackwardGRU(3, hidden)
        self.head = nn.Linear(hidden, 2 * LATENT)

    def law(self, data: Tensor, times: Tensor, mask: Tensor) -> Any:
        """The law of the beginning."""
        _, summary = self.encoder(data, times, mask, times.new_zeros(1))
        mean, raw = self.head(summary).chunk(2, -1)
        return dist.Normal(mean, raw.exp()).to_event(1)

    def forward(self, data: Tensor, times: Tensor, mask: Tensor) -> None:
        """Samples the beginning."""
        law = self.law(data, times, mask)
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("z_0", law)


def train(
    model: Any, guide: Any, loss: Any, series: Series, iterations: int, batch: int = 64
) -> float:
    """Adam on random batches, with the divergence's weight raised from 0.01 in the first fifth."""
    begin = time.perf_counter()
    loss.loss(model, guide, *series.seen(slice(0, 2)))
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, iterations + 1)
    for i in range(iterations):
        if isinstance(loss, PathELBO):
            loss.kl_weight = min(1.0, 0.01 + 5 * i / iterations)
        optimizer.zero_grad()
        loss.loss_and_grads(model, guide, *series.seen(torch.randint(len(series.x), (batch,))))
        nn.utils.clip_grad_norm_(parameters, 1000.0)
        optimizer.step()
        schedule.step()
        if i % 200 == 0:
            value = loss.loss(model, guide, *series.seen(slice(0, 64)))
            print(f"  {i:5d}: {-value / int(series.shown[:64].sum()):.3f} nats a value", flush=True)
    return time.perf_counter() - begin


@torch.no_grad()
def sde_weights(model: LatentSDE, guide: PathEncoder, series: Series) -> Tensor:
    """One log-weight for each series, ``log p(x, z) / q(z)``."""
    model_trace, guide_trace = check_pair(model, guide, series.seen())
    z, x = guide_trace.nodes["z"], model_trace.nodes["x"]
    ratio = z["fn"].log_ratio(z["value"], model_trace.nodes["z"]["fn"])
    return x["fn"].log_prob(x["value"]) - ratio


@torch.no_grad()
def ode_weights(model: LatentODE, guide: Beginning, series: Series) -> Tensor:
    """The same of the latent ODE."""
    model_trace, guide_trace = check_pair(model, guide, series.seen())
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    of_model = sum(model_trace.nodes[name]["log_prob"] for name in ("z_0", "x"))
    return of_model - guide_trace.nodes["z_0"]["log_prob"]


@dataclass
class Prediction:
    """Draws of means ``[S, n, K, 3]`` at all times, and deviations that broadcast."""

    mean: Tensor
    std: Tensor

    def scores(self, series: Series, where: Tensor) -> tuple[float, float, float]:
        """Root mean square error, log-density a value and coverage of 90 %, of hidden values."""
        error = (self.mean.mean(0) - series.x)[where].square().mean().sqrt()
        normal = dist.Normal(self.mean, self.std)
        count = math.log(len(self.mean))
        density = (normal.log_prob(series.x).logsumexp(0) - count)[where].mean()
        below = normal.cdf(series.x).mean(0)[where]
        inside = ((below > 0.05) & (below < 0.95)).float().mean()
        return float(error), float(density), float(inside)


@torch.no_grad()
def predict(parts: LatentSDE, draw: Callable[[], Tensor], series: Series, draws: int) -> Prediction:
    """Through the decoder, at all times of the series."""
    states = torch.stack([parts.states_at(draw(), series.times) for _ in range(draws)])
    return Prediction(parts.decoder(states), parts.likelihood.scale)


class GaussianProcess(nn.Module):
    """Of each coordinate for itself: Matern 5/2 with noise, exact."""

    def __init__(self) -> None:
        super().__init__()
        self.log_length = nn.Parameter(torch.zeros(3))
        self.log_amplitude = nn.Parameter(torch.zeros(3))
        self.log_noise = nn.Parameter(torch.full((3,), -1.0))

    def kernel(self, one: Tensor, other: Tensor) -> Tensor:
        """``[n, 3, K, K']``."""
        apart = (one.unsqueeze(-1) - other.unsqueeze(-2)).abs().unsqueeze(1)
        r = math.sqrt(5) * apart / self.log_length.exp().reshape(3, 1, 1)
        amplitude = (2 * self.log_amplitude).exp().reshape(3, 1, 1)
        return amplitude * (1 + r + r.square() / 3) * (-r).exp()

    def forward(self, x: Tensor, times: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log evidences ``[n]``, then means and deviations at all times."""
        mask, x = mask.transpose(1, 2), torch.where(mask, x, 0).transpose(1, 2)
        full, noise = self.kernel(times, times), (2 * self.log_noise).exp().reshape(3, 1)
        pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        # What is hidden becomes a standard normal variable, apart from all others, seen at zero.
        gram = torch.where(pairs, full, 0.0) + torch.diag_embed(torch.where(mask, noise, 1.0))
        zero = torch.zeros_like(x)
        evidence = dist.MultivariateNormal(zero, gram).log_prob(x).sum(-1)
        evidence = evidence + 0.5 * math.log(2 * math.pi) * (~mask).sum((1, 2))
        cross = torch.where(mask.unsqueeze(-2), full, 0.0)
        gain = torch.linalg.solve(gram, cross.transpose(-1, -2)).transpose(-1, -2)
        mean = (gain @ x.unsqueeze(-1)).squeeze(-1)
        prior = (2 * self.log_amplitude).exp().reshape(3, 1) + noise
        variance = prior - (gain * cross).sum(-1)
        return evidence, mean.transpose(1, 2), variance.clamp(min=1e-6).sqrt().transpose(1, 2)


def fit_gaussian_process(series: Series, iterations: int) -> GaussianProcess:
    """By maximum marginal likelihood."""
    process = GaussianProcess()
    optimizer = torch.optim.Adam(process.parameters(), lr=0.05)
    for _ in range(iterations):
        optimizer.zero_grad()
        rows = torch.randint(len(series.x), (64,))
        (-process(*series.seen(rows))[0].mean()).backward()
        optimizer.step()
    return process


def straight_lines(x: Tensor, times: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lines between what was shown, held at the ends; distances to it; whether it lies between."""
    import numpy as np

    mean, apart = torch.zeros_like(x), torch.full_like(x, END / UNIT)
    between = torch.zeros_like(mask)
    for i in range(len(x)):
        for d in range(x.shape[-1]):
            seen = mask[i, :, d]
            if not bool(seen.any()):
                continue
            at, values = times[i, seen], x[i, seen, d]
            mean[i, :, d] = torch.from_numpy(np.interp(times[i], at, values))
            apart[i, :, d] = (times[i].unsqueeze(-1) - at).abs().amin(-1)
            between[i, :, d] = (times[i] > at[0]) & (times[i] < at[-1])
    return mean, apart, between


def lines_with_errors(train_series: Series, test: Series) -> Prediction:
    """The deviations are those on training series of which as much is hidden, in eight classes of
    distance, between glimpses and outside."""
    keep = (torch.rand(train_series.x.shape[:2]) < 0.5) & (train_series.times < CUT / UNIT)
    shown = train_series.there & keep.unsqueeze(-1)
    mean, apart, between = straight_lines(train_series.x, train_series.times, shown)
    hidden, error = train_series.there & ~shown, mean - train_series.x
    predicted, far, inside = straight_lines(*test.seen())
    std = torch.ones_like(predicted)
    for kind in (False, True):
        own = hidden & (between == kind)
        edges = apart[own].quantile(torch.linspace(0, 1, 9)[1:-1])
        of_train, of_test = torch.bucketize(apart, edges), torch.bucketize(far, edges)
        for level in range(8):
            chosen = own & (of_train == level)
            if bool(chosen.any()):
                std[(inside == kind) & (of_test == level)] = error[chosen].square().mean().sqrt()
    return Prediction(predicted.unsqueeze(0), std)


def shown_row(name: str, log_weights: Tensor | None, evidence: Tensor | None, count: int) -> str:
    """Bounds in nats a value shown, from log-weights ``[S, n]``, or the evidence itself."""
    if log_weights is not None:
        tight = log_weights.logsumexp(0) - math.log(len(log_weights))
        return f"| {name} | {log_weights.mean(0).sum() / count:.3f} | {tight.sum() / count:.3f} |"
    exact = "" if evidence is None else f"{evidence.sum() / count:.3f} (exact)"
    return f"| {name} | | {exact} |"


def report(rows: list[str], predictions: dict[str, Prediction], test: Series, words: str) -> str:
    """The numbers as a page of Markdown."""
    ahead = (test.times >= CUT / UNIT).unsqueeze(-1)
    hidden = test.there & ~test.shown
    lines = [
        "# Stochastic Lorenz system, glimpsed",
        "",
        "| new series, what was shown | ELBO, nats a value | bound, 50 paths |",
        "|---|---|---|",
        *rows,
        "",
        "| new series, what was hidden | filled in: RMSE | nats | coverage of 90 % | forecast: "
        "RMSE | nats | coverage of 90 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, prediction in predictions.items():
        cells = []
        for where in (hidden & ~ahead, hidden & ahead):
            error, density, inside = prediction.scores(test, where)
            cells += [f"{error:.3f}", f"{density:.3f}", f"{inside:.1%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", words, ""])


@torch.no_grad()
def draw_series(axes: Any, draws: Any, parts: LatentSDE, test: Series, colour: str) -> None:
    """One coordinate of some series, with draws of paths through the decoder."""
    paths = torch.stack([parts.decoder(draws()[: len(axes)]) for _ in range(40)])[..., 0]
    grid = parts.times * UNIT
    low, high = paths.quantile(torch.tensor([0.05, 0.95]), 0)
    for i, axis in enumerate(axes):
        axis.axvspan(CUT, END, color="#f3f3f3")
        axis.fill_between(grid, low[i], high[i], color=colour, alpha=0.2, linewidth=0)
        axis.plot(grid, paths[:8, i].T, color=colour, linewidth=0.5, alpha=0.7)
        axis.plot(test.fine * UNIT, test.truth[i, :, 0], color=COLOURS["truth"], linewidth=0.9)
        for mask, face in ((test.shown, "black"), (test.there & ~test.shown, "white")):
            seen = mask[i, :, 0]
            axis.plot(
                test.times[i, seen] * UNIT, test.x[i, seen, 0], "o", color="black",
                markerfacecolor=face, markersize=3.5, markeredgewidth=0.8, zorder=3,
            )  # fmt: skip
        axis.set(xlim=(0, END), ylim=(-3, 3))


@torch.no_grad()
def picture(sde: LatentSDE, ode: LatentODE, drawn: dict[str, Any], test: Series) -> Any:
    """Posterior paths of both models, and draws of the prior beside true paths."""
    figure = plt.figure(figsize=(12, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    for row, (name, draws) in enumerate(drawn.items()):
        axes = [figure.add_subplot(grid[row, i]) for i in range(4)]
        parts = sde if name == "latent SDE" else ode.parts
        draw_series(axes, draws, parts, test, COLOURS[name])
        axes[0].set_ylabel(f"{name}\nfirst coordinate")
        for axis in axes:
            axis.set_xlabel("time" if row else "")
            axis.spines[["top", "right"]].set_visible(False)
    prior = sde.decoder(sde.prior().expand((60,)).sample())
    for row, (title, paths) in enumerate((("truth", test.truth[:60]), ("prior draws", prior))):
        axis = figure.add_subplot(grid[row, 4])
        for path in paths:
            axis.plot(path[:, 0], path[:, 2], linewidth=0.4, alpha=0.6, color="#117733")
        axis.set(title=title, xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3.2, 3))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Generates, trains, compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=FilePath, default=FilePath("outputs/latent_sde"))
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=50, help="of the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    options = parser.parse_args()
    output: FilePath = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    iterations, steps, hidden, draws, sizes = options.iterations, options.steps, 64, 50, (1000, 200)
    if options.smoke:
        iterations, steps, hidden, draws, sizes = 2, 10, 8, 3, (20, 8)
    pyro.set_rng_seed(options.seed)

    data, test = generate(*sizes)
    sde = build(steps, hidden)
    guide = PathEncoder(sde, hidden=(hidden, hidden))
    seconds = train(sde, guide, PathELBO(), data, iterations)
    ode, beginning = LatentODE(build(steps, hidden)), Beginning(hidden)
    ode_seconds = train(ode, beginning, Trace_ELBO(), data, iterations)
    gaussian = fit_gaussian_process(data, 5 if options.smoke else 400)

    drawn = {
        "latent SDE": lambda: guide.law(*test.seen()).sample(),
        "latent ODE": lambda: ode.path(beginning.law(*test.seen()).sample()),
    }
    with torch.no_grad():
        evidence, mean, std = gaussian(*test.seen())
    predictions = {
        "latent SDE": predict(sde, drawn["latent SDE"], test, draws),
        "latent ODE": predict(ode.parts, drawn["latent ODE"], test, draws),
        "Gaussian process": Prediction(mean.unsqueeze(0), std),
        "straight lines": lines_with_errors(data, test),
    }
    weights = [torch.stack([sde_weights(sde, guide, test) for _ in range(draws)])]
    weights += [torch.stack([ode_weights(ode, beginning, test) for _ in range(draws)])]
    count = int(test.shown.sum())
    rows = [
        shown_row("latent SDE", weights[0], None, count),
        shown_row("latent ODE", weights[1], None, count),
        shown_row("Gaussian process", None, evidence, count),
    ]
    words = (
        f"{len(test.x)} new series; in units of standard deviations, seen with noise {NOISE}. "
        f"Trained in {seconds:.0f} s (latent SDE) and {ode_seconds:.0f} s (latent ODE)."
    )
    page = report(rows, predictions, test, words)
    (output / "report.md").write_text(page, encoding="utf-8")
    picture(sde, ode, drawn, test).savefig(output / "latent_sde.png", dpi=150)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
