"""What ``training.fit`` adds to a step: fit / a bare loop over the same compiled loss.

Both train a VAE 784-64-20 with fused Adam on batches of 128. The bare loop walks through views of
the data and does nothing but zero the gradient, compute the loss, go backward and step; fit also
shuffles, gathers its batches, divides, checks and records each loss. They take turns in one
process. A step is timed from one update of the optimizer to the next, and the figure is the ratio
of the medians over all steps.

Run: ``python benchmarks/fit_overhead.py``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrogen.guides import AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE
from pyrogen.nn import MLP
from pyrogen.training import fit

ROUNDS, STEPS, BATCH = 20, 100, 128


class TimedAdam(torch.optim.Adam):
    """Fused Adam that notes when each of its steps is done."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(list(parameters), lr=1e-3, fused=True)
        self.times: list[float] = []

    def step(self, closure: Any = None) -> Any:
        """Takes a step."""
        value = super().step(closure)
        self.times.append(time.perf_counter())
        return value


def programs() -> tuple[VAE, AmortizedNormal]:
    """A VAE 784-64-20 and its guide."""
    model = VAE(MLP(20, 784, hidden=(64,)), latent_dim=20)
    return model, AmortizedNormal(MLP(784, 40, hidden=(64,)), latent_dim=20)


def bare_loop(module: nn.Module, data: Tensor) -> list[float]:
    """The least that training can be; returns the seconds of each step."""
    optimizer = TimedAdam(module.parameters())
    for batch in data.split(BATCH):
        optimizer.zero_grad()
        loss = module(batch)
        loss.backward()
        optimizer.step()
    return [after - before for before, after in pairwise(optimizer.times)]


def fit_loop(model: VAE, guide: AmortizedNormal, loss: Compiled, data: Tensor) -> list[float]:
    """One epoch of ``fit``; returns the seconds of each step."""
    made = []

    def optimizer(parameters: Iterable[Tensor]) -> TimedAdam:
        made.append(TimedAdam(parameters))
        return made[-1]

    fit(model, guide, data, loss=loss, optimizer=optimizer, max_epochs=1, progress=False)
    return [after - before for before, after in pairwise(made[0].times)]


def measure(
    bare: Callable[[], list[float]], whole: Callable[[], list[float]]
) -> tuple[float, float]:
    """The medians of the seconds per step, taken in turns."""
    bare(), whole()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        times[0].extend(bare())
        times[1].extend(whole())
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Prints the times and their ratio."""
    pyro.set_rng_seed(0)
    data = (torch.rand(STEPS * BATCH, 784) > 0.5).float()
    loss, fitted = Compiled(TraceMeanField_ELBO()), programs()
    with pyro.settings.context(module_local_params=True):
        module = Compiled(TraceMeanField_ELBO())(*programs())
        bare, whole = measure(
            lambda: bare_loop(module, data), lambda: fit_loop(*fitted, loss, data)
        )
    print(f"bare compiled step {1e3 * bare:.3f} ms, fit {1e3 * whole:.3f} ms per step")
    print(f"fit / bare = {whole / bare:.3f}")


if __name__ == "__main__":
    main()
