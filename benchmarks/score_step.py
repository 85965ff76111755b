"""One step of denoising score matching: PyroGen, and torch written by hand.

The process preserves variance, the network predicts the noise, times are uniform; each step is
loss, gradient and Adam. Target: compiled / hand-written <= 1.

    python benchmarks/score_step.py [--rounds 30]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import pyro
import torch
from side_by_side import ratio, side_by_side
from torch import Tensor, nn
from torch.nn.functional import silu

from pyrogen.guides import Empty
from pyrogen.losses import Compiled, DenoisingScoreMatching
from pyrogen.models import ScoreModel
from pyrogen.processes import VariancePreserving

Step = Callable[[], float]
BETA_MIN, BETA_MAX = 0.1, 20.0


class Perceptron(nn.Module):
    """Two hidden layers, time beside the state."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(size + 1, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, size)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns the noise in ``x [n, size]`` at ``t [n]``."""
        h = silu(self.first(torch.cat([x, t.unsqueeze(-1)], -1)))
        noise: Tensor = self.last(silu(self.second(h)))
        return noise


class Convolutions(nn.Module):
    """Three convolutions of an image, with time as a second channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns the noise in ``x [n, 1, height, width]`` at ``t [n]``."""
        beside = t.reshape(-1, 1, 1, 1).expand_as(x)
        h = silu(self.first(torch.cat([x, beside], 1)))
        noise: Tensor = self.last(silu(self.second(h)))
        return noise


class HandWritten(nn.Module):
    """The same loss, as one would write it in torch without a framework."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Returns half the squared error of the noise, summed."""
        t = 1e-5 + (1 - 1e-5) * torch.rand(len(x))
        total = t * (BETA_MIN + 0.5 * t * (BETA_MAX - BETA_MIN))
        shape = (-1, *[1] * (x.dim() - 1))
        alpha, sigma = (-0.5 * total).exp().reshape(shape), (-torch.expm1(-total)).sqrt()
        noise = torch.randn_like(x)
        predicted = self.network(alpha * x + sigma.reshape(shape) * noise, t)
        return 0.5 * (predicted - noise).square().sum()


def step_of(module: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> Step:
    """A step with torch's fused Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = module(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def contestants(make: Callable[[], nn.Module], x: Tensor) -> dict[str, Step]:
    """One step function a contestant, each with parameters of its own."""
    hand, compiled = HandWritten(make()), HandWritten(make())
    objective = DenoisingScoreMatching(low_discrepancy=False)
    model = ScoreModel(VariancePreserving(BETA_MIN, BETA_MAX), make(), x.shape[1:])
    module = Compiled(objective)(model, Empty())
    return {
        "torch by hand": step_of(hand, list(hand.parameters()), x),
        "torch by hand, torch.compile": step_of(
            torch.compile(compiled), list(compiled.parameters()), x
        ),
        "Compiled(DenoisingScoreMatching)": step_of(module, list(model.parameters()), x),
    }


def main() -> None:
    """Prints the times and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="two rounds, to see that it runs")
    arguments = parser.parse_args()
    pyro.set_rng_seed(0)
    cases: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "2-128-128-2, batch 512": (lambda: Perceptron(2, 128), torch.randn(512, 2)),
        "64-512-512-64, batch 128": (lambda: Perceptron(64, 512), torch.randn(128, 64)),
        "8x8 images, 32 channels, batch 64": (lambda: Convolutions(32), torch.randn(64, 1, 8, 8)),
    }
    for title, (make, x) in cases.items():
        times = side_by_side(
            contestants(make, x), rounds=2 if arguments.smoke else arguments.rounds
        )
        print(f"\n{title}, {torch.get_num_threads()} threads")
        for name, values in times.items():
            print(f"  {name:34s} {median(values):7.3f} ms (min {min(values):.3f})")
        ours = times["Compiled(DenoisingScoreMatching)"]
        for name in ("torch by hand", "torch by hand, torch.compile"):
            print(f"  compiled / {name:30s} {ratio(ours, times[name]):.2f}  (target 1.0)")


if __name__ == "__main__":
    main()
