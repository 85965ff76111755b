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
but no draws. The continuous flow is judged by finer steps than those it is trained with.

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
NUM_TEST, FINE = 100_000, 1e-5


@dataclass(frozen=True)
class Recipe:
    """How to make and train a flow. ``judge`` makes the one that is tested, if it is another."""

    make: Callable[[], Flow]
    lr: float = 3e-3
    steps: int = 4000
    batch: int = 512
    judge: Callable[[], Flow] | None = None
    compiled: bool = True


def towards_base(make: Callable[[], Any], num_layers: int) -> Flow:
    """A flow of layers that have no inverse, from data to base."""
    return Flow(2, [Inverse(make()) for _ in range(num_layers)])


def bnaf() -> Any:
    """A block neural autoregressive flow. Pyro's cannot be captured as a graph."""
    return transforms.block_autoregressive(2, hidden_factors=[24, 24])


def gaussianization(num_layers: int, num_bins: int) -> Flow:
    """Rotations and splines that are fitted to data one by one, and may be trained besides."""
    return Flow(2, [Gaussianization(2, num_layers, num_bins)])


def continuous(tolerance: float) -> Flow:
    """A continuous flow. Its steps are adaptive, since in fixed ones it would learn to exploit
    their error: what it then takes for its density is no density, and beats the entropy."""
    compiled = tolerance > FINE  # one field for all batches of training
    return ffjord(2, solver={"atol": tolerance, "rtol": tolerance, "compile": compiled})


RECIPES = {
    "nsf": Recipe(partial(nsf, 2, num_layers=6, num_bins=16, bound=6.0), batch=1024),
    "ffjord": Recipe(
        partial(continuous, 1e-3), 5e-3, 2000, 256, judge=partial(continuous, FINE), compiled=False
    ),
    "gaussianization": Recipe(partial(gaussianization, 32, 32), steps=0),
    "gaussianization+svi": Recipe(partial(gaussianization, 12, 16)),
    "maf": Recipe(partial(maf, 2, num_layers=10)),
    "iaf": Recipe(partial(iaf, 2, num_layers=10)),
    "real_nvp": Recipe(partial(real_nvp, 2, num_layers=16)),
    "nice": Recipe(partial(nice, 2, num_layers=8, hidden=(128, 128))),
    "bnaf": Recipe(partial(towards_base, bnaf, 1), lr=0.05, compiled=False),
    "sylvester": Recipe(partial(towards_base, partial(Sylvester, 2), 24)),
    "planar": Recipe(partial(towards_base, partial(transforms.Planar, 2), 24)),
    "radial": Recipe(partial(towards_base, partial(transforms.Radial, 2), 24)),
}


def train(model: Flow, recipe: Recipe, toy: dist.TorchDistribution, loss: ELBO, steps: int) -> Flow:
    """Returns the flow, trained on draws that are each seen once, as it is to be judged."""
    model.initialize(toy.sample((NUM_TEST,)))
    if steps:
        fit(
            model,
            Empty(),
            toy.sample((steps * recipe.batch,)),
            loss=loss,
            optimizer=partial(Adam, lr=recipe.lr, fused=True),
            batch_size=recipe.batch,
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
    draws = toy.sample((NUM_TEST,)).split(NUM_TEST // 10)
    excess = torch.cat([toy.log_prob(x) - flow.log_prob(x) for x in draws]).double()
    return excess.mean().item(), (excess.std() / NUM_TEST**0.5).item()


def run(flow_name: str, toy_names: Sequence[str], steps: int | None, seed: int) -> None:
    """Trains a flow on several toys, with one compilation, and prints a line for each."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(seed)
    recipe = RECIPES[flow_name]
    loss = Compiled(Trace_ELBO()) if recipe.compiled else Trace_ELBO()
    number = recipe.steps if steps is None else min(steps, recipe.steps)
    model = recipe.make()
    start = copy.deepcopy(model.state_dict())
    for name in toy_names:
        toy = TOYS[name]()
        model.load_state_dict(start)
        begin = time.perf_counter()
        judged = train(model, recipe, toy, loss, number)
        seconds = time.perf_counter() - begin
        kl, error = divergence(judged, toy)
        entropy = toy.entropy().item()
        verdict = "IMPOSSIBLE" if kl < -5 * error else "ok" if kl <= TARGETS[name] else ""
        print(
            f"{flow_name:20} {name:12} {entropy:8.4f} {entropy + kl:9.4f} {error:7.4f} {kl:8.4f} "
            f"{seconds:8.1f}  {verdict}",
            flush=True,
        )


def main() -> None:
    """Prints one line for each flow and toy, as they are done."""
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
    one = partial(run, toy_names=arguments.toys, steps=arguments.steps, seed=arguments.seed)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(one, arguments.flows))


if __name__ == "__main__":
    main()
