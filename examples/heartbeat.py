"""A binomial diffusion learns the heartbeat: a bit that beats every fifth time, at five phases.

A sequence has 20 bits, of which every fifth is 1, and all five phases are equally likely: its
entropy is log2(5) = 2.3219 bits. Noise tosses bits anew, one after another, until nothing is left;
the model learns to go back. Its variational bound, in bits for each sequence, cannot be below the
entropy, and comes near it if the model has understood that the bits belong together.

The weights are averaged over the training, and the averages are what is measured and drawn from.
Written to ``--output-dir``:

* ``heartbeat.png``: the noising of some sequences, and draws of the model on their way back;
* ``report.md``: the bound, with its standard error, the part of each stretch of the chain in it,
  and how many draws are heartbeats. Beside it stands the bound with the best of all networks, which
  here is known: what it is above the entropy is lost by the finite number of steps.

    python examples/heartbeat.py [--epochs 400]
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen.guides import ForwardNoising
from pyrogen.losses import Compiled
from pyrogen.models import BinomialDiffusion
from pyrogen.nn import ModulatedMLP
from pyrogen.training import fit

LENGTH, PERIOD, STEPS, BATCH = 20, 5, 1000, 250
ENTROPY = math.log2(PERIOD)
SHOWN = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


def heartbeats(n: int) -> Tensor:
    """``n`` sequences, all phases equally often, ``[n, LENGTH]``."""
    time, phase = torch.arange(LENGTH), torch.arange(n) % PERIOD
    return ((time - phase.unsqueeze(-1)) % PERIOD == 0).float()


class Best(nn.Module):
    """The best guess of each bit from all others: Bayes' rule over the five phases."""

    in_shape = (LENGTH,)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The log-odds of bits ``x [n, LENGTH]`` of which the share ``t`` was tossed anew."""
        left, known = (1 - t).unsqueeze(-1), heartbeats(PERIOD).to(x.dtype)
        signs = (2 * x - 1).unsqueeze(1) * (2 * known - 1)  # [n, phase, bit]
        told = nn.functional.logsigmoid(signs * (2 * left.atanh()).unsqueeze(1))
        others = (told.sum(-1, keepdim=True) - told).log_softmax(1)
        beat, rest = others + known.log(), others + (1 - known).log()
        return beat.logsumexp(1) - rest.logsumexp(1)


def train(model: BinomialDiffusion, epochs: int, compiled: bool) -> None:
    """Trains by the bound, ten batches an epoch, and leaves the averaged weights in the model."""
    loss = TraceMeanField_ELBO(max_plate_nesting=2)
    schedule = partial(OneCycleLR, max_lr=3e-3, total_steps=10 * epochs + 1)
    result = fit(
        model,
        ForwardNoising(model),
        heartbeats(10 * BATCH),
        loss=Compiled(loss) if compiled else loss,
        optimizer=partial(Adam, lr=3e-3),
        batch_size=BATCH,
        max_epochs=epochs,
        clip_norm=100.0,
        scheduler=schedule,
        scheduler_interval="step",
        ema_decay=0.995,
        progress=False,
    )
    result.load_ema()


@torch.no_grad()
def measure(model: BinomialDiffusion, rounds: int) -> tuple[float, float]:
    """The bound in bits for each sequence, and its standard error."""
    elbo, x = TraceMeanField_ELBO(), heartbeats(BATCH)
    bits = [
        elbo.loss(model, ForwardNoising(model), x) / len(x) / math.log(2) for _ in range(rounds)
    ]
    mean = torch.tensor(bits)
    return mean.mean().item(), (mean.std() / math.sqrt(rounds)).item()


@torch.no_grad()
def stretches(model: BinomialDiffusion, parts: int) -> list[float]:
    """What the steps of each stretch of the chain cost, in bits, from data to noise."""
    x, width, costs = heartbeats(BATCH), model.num_timesteps // parts, []
    for part in range(parts):
        cost = 0.0
        for _ in range(40):
            k = torch.randint(part * width, (part + 1) * width, (len(x),)) + 1
            noisy = model.noised(x, k).sample()
            step, _ = model.reverse(noisy, k)
            true = model.posterior(noisy, x, k)
            divergence = torch.distributions.kl_divergence(true, step)
            datum = -step.log_prob(x)
            cost += width * torch.where(k > 1, divergence, datum).mean().item() / 40
        costs.append(cost / math.log(2))
    return costs


@torch.no_grad()
def trajectories(model: BinomialDiffusion, n: int) -> dict[float, Tensor]:
    """States of ``n`` draws at some times on their way from noise to data."""
    trace = poutine.trace(model).get_trace(None, num_samples=n)
    names = {t: f"x_{round(t * model.num_timesteps)}" if t else "x" for t in SHOWN}
    return {t: trace.nodes[name]["value"] for t, name in names.items()}


@torch.no_grad()
def noising(model: BinomialDiffusion, x: Tensor) -> dict[float, Tensor]:
    """The same sequences at some times on their way to noise."""
    step = model.num_timesteps
    at = {t: torch.full((len(x),), round(t * step)) for t in SHOWN}
    return {t: model.noised(x, k).sample() if t else x for t, k in at.items()}


def share_of_heartbeats(draws: Tensor) -> float:
    """How many of the draws are heartbeats."""
    known = heartbeats(PERIOD)
    return (draws.unsqueeze(1) == known).all(-1).any(-1).float().mean().item()


def picture(there: dict[float, Tensor], back: dict[float, Tensor]) -> Any:
    """Sequences as rows of pixels: above on their way to noise, below on their way back."""
    figure, axes = plt.subplots(2, len(SHOWN), figsize=(11, 3.6))
    for row, states, label in zip(
        axes, (there, back), ("data to noise", "noise to data"), strict=True
    ):
        times = sorted(SHOWN, reverse=states is back)
        for axis, t in zip(row, times, strict=True):
            axis.imshow(states[t], cmap="Greys", vmin=0, vmax=1.15, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=f"t = {t:g}")
            axis.title.set_fontsize(9)
            for spine in axis.spines.values():
                spine.set(color="#bbbbbb", linewidth=0.6)
        row[0].set_ylabel(label)
    figure.tight_layout()
    return figure


def report(
    bound: tuple[float, float],
    best: tuple[float, float],
    costs: list[float],
    share: float,
    count: int,
) -> str:
    """The numbers as a page of Markdown."""
    parts = len(costs)
    return "\n".join(
        [
            "# Heartbeat",
            "",
            "| | bits for each sequence |",
            "|---|---|",
            f"| entropy | {ENTROPY:.4f} |",
            f"| bound with the best of all networks | {best[0]:.4f} ± {best[1]:.4f} |",
            f"| bound of the trained model | {bound[0]:.4f} ± {bound[1]:.4f} |",
            *(
                f"| of it, from t = {i / parts:g} to {(i + 1) / parts:g} | {cost:.3f} |"
                for i, cost in enumerate(costs)
            ),
            "",
            f"Of {count} draws, {share:.1%} are heartbeats.",
            "",
        ]
    )


def main() -> None:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/heartbeat"))
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    epochs, draws, rounds = (1, 50, 2) if options.smoke else (options.epochs, 1000, 60)
    pyro.set_rng_seed(options.seed)

    begin = time.perf_counter()
    steps = 20 if options.smoke else STEPS
    model = BinomialDiffusion(ModulatedMLP(LENGTH, width=128, num_blocks=2), num_timesteps=steps)
    model.subsample_size = 2
    train(model, epochs, compiled=not options.smoke)
    print(f"trained in {time.perf_counter() - begin:.0f} s", flush=True)

    model.eval()
    model.subsample_size = min(50, steps)
    bound = measure(model, rounds)
    there, back = noising(model, heartbeats(15)), trajectories(model, draws)
    share = share_of_heartbeats(back[0.0])
    picture(there, {t: x[:15] for t, x in back.items()}).savefig(
        options.output_dir / "heartbeat.png", dpi=150
    )
    ideal = BinomialDiffusion(Best(), num_timesteps=steps, subsample_size=model.subsample_size)
    best = measure(ideal, rounds)
    page = report(bound, best, stretches(model, 5), share, draws)
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/, after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
