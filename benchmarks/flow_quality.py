"""Flows on densities of known entropy: how near does each come to the best there is?

Every flow is trained by stochastic variational inference on fresh draws of a toy density p, so that
nothing can be overfitted, and judged on other draws. Its expected negative log-likelihood is that
of the toy itself, the entropy H, and the divergence of the two:

    -E log q(x) = H + KL,   KL = E[log p(x) - log q(x)] >= 0.

The table shows the left side, with the mean of log p - log q over the test draws in place of KL,
which has a far smaller Monte Carlo error than the mean of -log q. Targets: no flow is below H by
more than its Monte Carlo error allows; the best is above it by at most 0.03 nats on the eight
Gaussians and the moons, and by 0.1 on the checkerboard, whose edges no smooth density can follow.

Planar, radial and Sylvester flows and BNAF map the data to the base here: they have a density,
but no draws. Continuous flows are trained in fixed steps and judged by an adaptive solver.

    python benchmarks/flow_quality.py [--flows nsf maf] [--toys moons] [--steps 2000] [--jobs 2]

References:
    W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
    continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer import ELBO, Trace_ELBO
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen.distributions import Checkerboard, EightGaussians, TwoMoons
from pyrogen.guides import Empty
from pyrogen.losses import Compiled
from pyrogen.models import Flow, ffjord, iaf, maf, nice, nsf, real_nvp
from pyrogen.training import fit
from pyrogen.transforms import Gaussianization, Inverse, Sylvester

TOYS = {"8gaussians": EightGaussians, "checkerboard": Checkerboard, "moons": TwoMoons}
TARGETS = {"8gaussians": 0.03, "checkerboard": 0.1, "moons": 0.03}
BATCH, NUM_TEST = 1024, 100_000


def towards_base(make: Callable[[], Any], num_layers: int) -> Flow:
    """A flow of layers that have no inverse, from data to base."""
    return Flow(2, [Inverse(make()) for _ in range(num_layers)])


def continuous(adaptive: bool) -> Flow:
    """A continuous flow, to be judged or, in fixed steps, to be trained."""
    solver = {"atol": 1e-6, "rtol": 1e-6} if adaptive else {"method": "rk4", "steps": 8}
    return ffjord(2, hidden=(96, 96), num_flows=1, solver=solver)


@dataclass(frozen=True)
class Recipe:
    """How to make and train a flow. ``judge`` makes the one that is tested, if it is another."""

    make: Callable[[], Flow]
    lr: float = 3e-3
    steps: int = 4000
    judge: Callable[[], Flow] | None = None
    initialize: bool = False


RECIPES = {
    "nice": Recipe(partial(nice, 2, num_layers=8, hidden=(128, 128))),
    "real_nvp": Recipe(partial(real_nvp, 2, num_layers=12, hidden=(64, 64))),
    "maf": Recipe(partial(maf, 2, num_layers=10, hidden=(64, 64))),
    "iaf": Recipe(partial(iaf, 2, num_layers=10, hidden=(64, 64))),
    "nsf": Recipe(partial(nsf, 2, num_layers=6, hidden=(64, 64), num_bins=16, bound=6.0)),
    "ffjord": Recipe(partial(continuous, False), judge=partial(continuous, True)),
    "planar": Recipe(partial(towards_base, partial(transforms.Planar, 2), 32)),
    "radial": Recipe(partial(towards_base, partial(transforms.Radial, 2), 32)),
    "sylvester": Recipe(partial(towards_base, partial(Sylvester, 2), 32)),
    "bnaf": Recipe(
        partial(
            towards_base, partial(transforms.block_autoregressive, 2, hidden_factors=[32, 32]), 1
        )
    ),
    "gaussianization": Recipe(
        lambda: Flow(2, [Gaussianization(2, num_layers=32, num_bins=32)]), steps=0, initialize=True
    ),
    "gaussianization+svi": Recipe(
        lambda: Flow(2, [Gaussianization(2, num_layers=16, num_bins=16)]), initialize=True
    ),
}


def train(model: Flow, recipe: Recipe, toy: dist.TorchDistribution, loss: ELBO, steps: int) -> Flow:
    """Returns the flow, trained on fresh draws, as it is to be judged."""
    if recipe.initialize:
        model.initialize(toy.sample((100_000,)))
    if steps:
        fit(
            model,
            Empty(),
            toy.sample((steps * BATCH,)),  # each is seen once
            loss=loss,
            optimizer=partial(Adam, lr=recipe.lr, fused=True),
            batch_size=BATCH,
            max_epochs=1,
            shuffle=False,
            clip_norm=10.0,
            scheduler=partial(OneCycleLR, max_lr=recipe.lr, total_steps=steps + 1, pct_start=0.1),
            scheduler_interval="step",
            progress=False,
        )
    if recipe.judge is None:
        return model
    judge = recipe.judge()
    judge.load_state_dict(model.state_dict())
    return judge


@torch.no_grad()
def divergence(model: Flow, toy: dist.TorchDistribution) -> tuple[float, float]:
    """Returns KL(p || q) on fresh draws, in nats, and its standard error."""
    flow = model.distribution()
    ratio = [
        toy.log_prob(x) - flow.log_prob(x) for x in toy.sample((NUM_TEST,)).split(NUM_TEST // 10)
    ]
    excess = torch.cat(ratio).double()
    return excess.mean().item(), (excess.std() / NUM_TEST**0.5).item()


Cell = tuple[str, float, float, float]


def run(flow_name: str, toy_names: Sequence[str], steps: int | None, seed: int) -> list[Cell]:
    """Trains a flow on several toys, with one compilation.

    Returns:
        For each its name, the divergence with its standard error, and the seconds of training.
    """
    torch.set_num_threads(1)
    pyro.set_rng_seed(seed)
    recipe, loss, cells = RECIPES[flow_name], Compiled(Trace_ELBO()), []
    number = recipe.steps if steps is None else min(steps, recipe.steps)
    with pyro.settings.context(module_local_params=True):
        model = recipe.make()
        start = copy.deepcopy(model.state_dict())
        for name in toy_names:
            toy = TOYS[name]()
            model.load_state_dict(start)
            begin = time.perf_counter()
            judged = train(model, recipe, toy, loss, number)
            seconds = time.perf_counter() - begin
            cells.append((name, *divergence(judged, toy), seconds))
    return cells


def main() -> None:
    """Prints one line for each flow and toy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flows", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--steps", type=int, help="at most so many steps for each flow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="how many flows to train at a time")
    arguments = parser.parse_args()
    print(
        f"{'flow':20} {'toy':12} {'entropy':>8} {'test NLL':>9} {'±':>7} {'KL':>8} {'seconds':>8}"
    )
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        one = partial(run, toy_names=arguments.toys, steps=arguments.steps, seed=arguments.seed)
        for flow, cells in zip(arguments.flows, pool.map(one, arguments.flows), strict=True):
            for toy, kl, error, seconds in cells:
                entropy = TOYS[toy]().entropy().item()
                print(
                    f"{flow:20} {toy:12} {entropy:8.4f} {entropy + kl:9.4f} {error:7.4f} "
                    f"{kl:8.4f} {seconds:8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
