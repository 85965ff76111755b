"""One latent chain, three guides: what is learned, and in which direction, on two moons.

The model is a chain of eight normal steps from noise to a point of the plane. Its guide is a chain
as well:

* fixed, against the model: it only adds noise, and the model is a diffusion in eight steps;
* learned, against the model: the noising is learned too;
* learned, along the model: every step looks ahead at the datum.

All are trained by the same bound, in as many steps, and compared with the entropy of the data,
which no model can be below. The guides that are learned could do whatever the fixed one does, so
their best bounds are no worse; but two chains that learn from each other are harder to train, and
in the time given here the fixed one comes furthest. Written to ``--output-dir``:
``markov_chains.png`` and ``report.md``.

    python examples/markov_chains.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrogen.diagnostics import iwae_bound
from pyrogen.distributions import TwoMoons
from pyrogen.guides import ChainPosterior
from pyrogen.models import MarkovChain, Normal
from pyrogen.nn import MLP, GaussianStep, TimeMLP

STEPS, BATCH, CLOSE = 8, 512, 0.02
SHOWN = (8, 6, 4, 2, 0)


class Near(nn.Module):
    """An encoder with nothing to learn: the first state is the datum, up to a little noise."""

    def forward(self, x: Tensor) -> Tensor:
        """Means, then raw scales."""
        return torch.cat([x, torch.full_like(x, math.log(math.expm1(CLOSE)))], -1)


def noising(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of the datum's variance, the state ``k`` keeps a share whose log-odds fall evenly."""
    left = [1.0, *torch.linspace(5, -4, STEPS).sigmoid().tolist()]
    kept = torch.tensor(left[k] / left[k - 1])
    return kept.sqrt() * z, (1 - kept).sqrt()


def step(hidden: int, context: int = 0) -> GaussianStep:
    """A learned step."""
    field = TimeMLP(2, hidden=(hidden, hidden), context_dim=context, activation=nn.SiLU)
    return GaussianStep(field, STEPS, std=1.0, learned=True)


def build(kind: str, hidden: int) -> tuple[MarkovChain, ChainPosterior]:
    """Model and guide."""
    likelihood = Normal(CLOSE if kind == "fixed, against" else 0.3)
    model = MarkovChain(step(hidden), nn.Identity(), 2, STEPS, likelihood)
    if kind == "fixed, against":
        return model, ChainPosterior(noising, Near(), 2, STEPS, "against")
    if kind == "learned, against":
        encoder = MLP(2, 4, hidden=(hidden,))
        return model, ChainPosterior(step(hidden), encoder, 2, STEPS, "against")
    encoder = MLP(2, 4 + 16, hidden=(hidden,))
    return model, ChainPosterior(step(hidden, 16), encoder, 2, STEPS, "along", context_dim=16)


def train(model: MarkovChain, guide: ChainPosterior, toy: TwoMoons, iterations: int) -> float:
    """By the bound, on fresh points."""
    begin, loss = time.perf_counter(), Trace_ELBO()
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, iterations + 1)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss.loss_and_grads(model, guide, toy.sample((BATCH,)))
        nn.utils.clip_grad_norm_(parameters, 1000.0 * BATCH)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - begin


@torch.no_grad()
def chain_of(model: MarkovChain, n: int) -> dict[int, Tensor]:
    """States of draws on their way."""
    trace = poutine.trace(model).get_trace(None, num_samples=n)
    return {k: trace.nodes[f"z_{k}"]["value"] for k in SHOWN}


def picture(rows: dict[str, dict[int, Tensor]], data: Tensor) -> Any:
    """States of the chain, and data."""
    figure, axes = plt.subplots(
        len(rows), len(SHOWN) + 1, figsize=(9.5, 1.7 * len(rows)), layout="constrained"
    )
    for line, (name, states) in zip(axes, rows.items(), strict=True):
        for axis, k in zip(line, SHOWN, strict=False):
            axis.scatter(*states[k].T, s=1.2, color="#332288", alpha=0.5, linewidths=0)
        line[-1].scatter(*data.T, s=1.2, color="#117733", alpha=0.5, linewidths=0)
        line[0].set_ylabel(name, size=8)
    for axis, title in zip(axes[0], [*(f"$z_{k}$" for k in SHOWN), "data"], strict=True):
        axis.set_title(title, size=9)
    for axis in axes.flat:
        axis.set(xlim=(-4, 4), ylim=(-4, 4), xticks=[], yticks=[], aspect="equal")
        for spine in axis.spines.values():
            spine.set(color="#cccccc", linewidth=0.6)
    return figure


def main() -> None:
    """Trains all three, compares, draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/markov_chains"))
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    options = parser.parse_args()
    output: Path = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    iterations, hidden, test, particles = options.iterations, 64, 2000, 50
    if options.smoke:
        iterations, hidden, test, particles = 2, 8, 50, 2
    pyro.set_rng_seed(options.seed)

    toy = TwoMoons()
    x, rows = toy.sample((test,)), {}
    lines = [
        "# Two moons by a chain of eight steps",
        "",
        "| the guide's chain | ELBO | bound, 50 draws | seconds |",
        "|---|---|---|---|",
        f"| any: minus the entropy of the data | {-float(toy.entropy()):.3f} | "
        f"{-float(toy.entropy()):.3f} | |",
    ]
    for kind in ("fixed, against", "learned, against", "learned, along"):
        model, guide = build(kind, hidden)
        seconds = train(model, guide, toy, iterations)
        elbo = -sum(Trace_ELBO().loss(model, guide, x) for _ in range(10)) / 10 / test
        tight = iwae_bound(model, guide, x, num_particles=particles)
        lines.append(f"| {kind} | {elbo:.3f} | {tight:.3f} | {seconds:.0f} |")
        print(lines[-1], flush=True)
        rows[kind] = chain_of(model, min(test, 1500))
        pyro.clear_param_store()
    page = "\n".join([*lines, "", f"In nats per point, of {test} fresh points.", ""])
    (output / "report.md").write_text(page, encoding="utf-8")
    picture(rows, x[:1500]).savefig(output / "markov_chains.png", dpi=160)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
