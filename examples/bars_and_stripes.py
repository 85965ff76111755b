"""Bars and stripes: a small world where everything about a Boltzmann machine is known exactly.

An image of n x n pixels is made of bars (whole rows on or off) or of stripes (whole columns). A
restricted Boltzmann machine learns the patterns by persistent contrastive divergence; because its
normaliser can be enumerated, training can be watched in exact nats: the mean surprise at a pattern
can fall to the entropy of the patterns and no further. The script writes to ``--output-dir``

* ``surprise.png``: exact surprise, and its bound, along training, for chains of 1 and of 5 steps
* ``draws.png``: draws of the trained machine
* ``report.md``: the numbers

    python examples/bars_and_stripes.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor

from pyrogen import diagnostics, kernels
from pyrogen.guides import Empty
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import RestrictedBoltzmannMachine

CHAINS = 1000


def patterns_of(size: int) -> Tensor:
    """All patterns, ``[patterns, size * size]``; all on and all off are bars and stripes both."""
    rows = torch.cartesian_prod(*[torch.arange(2.0)] * size)
    both = torch.cat([rows.repeat_interleave(size, 1), rows.repeat(1, size)])
    return both.unique(dim=0)


def surprise(rbm: RestrictedBoltzmannMachine, patterns: Tensor) -> float:
    """Exact mean of -log p over the patterns, in nats."""
    with torch.no_grad():
        return float((rbm.free_energy(patterns) + rbm.distribution().exact_log_z()).mean())


def train(
    patterns: Tensor, hidden: int, chain_steps: int, steps: int
) -> tuple[RestrictedBoltzmannMachine, list[tuple[int, float]]]:
    """A machine, and its surprise every so often."""
    rbm = RestrictedBoltzmannMachine(patterns.shape[1], hidden)
    torch.nn.init.normal_(rbm.weights, std=0.1)
    loss = Compiled(
        ContrastiveDivergence(kernels.BlockGibbs(), chain_steps, persistent=True, num_chains=CHAINS)
    )
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1 / len(patterns), momentum=0.5)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    guide, history = Empty(), []
    for step in range(steps + 1):
        if step % max(steps // 60, 1) == 0:
            history.append((step, surprise(rbm, patterns)))
        optimizer.zero_grad()
        loss.loss_and_grads(rbm, guide, patterns)
        optimizer.step()
        decay.step()
    return rbm, history


def main() -> None:
    """Trains, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/bars_and_stripes"))
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.steps = 50
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(arguments.seed)

    patterns = patterns_of(arguments.size)
    entropy = math.log(len(patterns))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    rows = []
    for chain_steps in (1, 5):
        rbm, history = train(patterns, arguments.hidden, chain_steps, arguments.steps)
        axes.plot(*zip(*history, strict=True), label=f"chains of {chain_steps} steps")
        with torch.no_grad():
            drawn = rbm.distribution().exact_sample((10_000,))
        known = (drawn[:, None] == patterns).all(-1).any(1).float().mean()
        rows.append(f"| {chain_steps} | {history[-1][1]:.4f} | {entropy:.4f} | {known:.1%} |")
    axes.axhline(entropy, color="black", linestyle=":", label="entropy of the patterns")
    axes.set(xlabel="step", ylabel="surprise, nats per pattern", ylim=(entropy - 0.2, None))
    axes.legend()
    figure.savefig(output / "surprise.png", dpi=150)
    diagnostics.plot_images(drawn[:60], columns=12, title="Draws").savefig(
        output / "draws.png", dpi=150
    )
    page = "\n".join(
        [
            f"# Bars and stripes, {arguments.size} x {arguments.size}",
            "",
            f"{len(patterns)} patterns, {arguments.hidden} hidden units, {arguments.steps} steps.",
            "",
            "| steps of a chain | exact surprise | entropy | draws that are patterns |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (output / "report.md").write_text(page, encoding="utf-8")
    print(f"{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
