"""A deep belief network and a deep Boltzmann machine of handwritten digits.

Two restricted Boltzmann machines are trained greedily, the second on the features of the first, on
the black and white scans of scikit-learn. The stack starts two models of the same layers: a deep
belief network, fine-tuned by reweighted wake-sleep with its recognition guide, and a deep Boltzmann
machine, trained as a whole with its mean-field guide. Annealed importance sampling gives the
normaliser of each; importance weighting with the guide turns it into a bound on the test
likelihood. The script writes to ``--output-dir``

* ``network.png``, ``machine.png``: what the two models see
* ``report.md``: test log-likelihoods, with the intervals that the normaliser leaves

    python examples/deep_boltzmann_digits.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ReweightedWakeSleep
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from pyrogen import diagnostics, kernels, training
from pyrogen.distributions import unnormalized
from pyrogen.guides import Empty, MeanField, Recognition
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import (
    DeepBeliefNetwork,
    DeepBoltzmannMachine,
    RestrictedBoltzmannMachine,
)

LAYERS = (100, 50)


def binary_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Black and white scans to train on and to test on."""
    scans = torch.as_tensor(load_digits(return_X_y=True)[0], dtype=torch.float32)
    train, test = train_test_split((scans > 7).float(), test_size=297, random_state=seed)
    return train, test


def fit(model: Any, guide: Any, data: Tensor, epochs: int, rate: float) -> None:
    """Persistent contrastive divergence with a rate that falls to zero."""
    loss = ContrastiveDivergence(kernels.BlockGibbs(), 5, persistent=True, num_chains=100)
    training.fit(
        model,
        guide,
        data,
        loss=Compiled(loss),
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.5, weight_decay=1e-3),
        scheduler=partial(
            torch.optim.lr_scheduler.LinearLR,
            start_factor=1.0,
            end_factor=0.01,
            total_iters=epochs,
        ),
        batch_size=100,
        max_epochs=epochs,
        progress=False,
    )


def greedy_stack(data: Tensor, epochs: int) -> list[RestrictedBoltzmannMachine]:
    """Machines each trained on what the one before makes of the data."""
    stack, below = [], data
    for hidden in LAYERS:
        rbm = RestrictedBoltzmannMachine(below.shape[1], hidden)
        rbm.initialize(below)
        fit(rbm, Empty(), below, epochs, rate=0.05)
        stack.append(rbm)
        with torch.no_grad():
            below = torch.bernoulli(rbm.features(below))
    return stack


def fine_tune(model: Any, guide: Any, data: Tensor, epochs: int, rate: float) -> None:
    """Reweighted wake-sleep, of all layers and the guide; chains serve the energy-based layer."""
    elbo = ReweightedWakeSleep(num_particles=5, insomnia=1.0, max_plate_nesting=1)
    loss = Compiled(
        ContrastiveDivergence(kernels.BlockGibbs(), persistent=True, num_chains=100, elbo=elbo)
    )
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, epochs)
    for _ in range(epochs):
        for batch in data[torch.randperm(len(data))].split(100):
            optimizer.zero_grad()
            loss.loss_and_grads(model, guide, batch)
            optimizer.step()
        decay.step()


def draws(model: Any, steps: int) -> Tensor:
    """Images at the ends of long chains: the energy-based layer, and the rest given it."""
    mcmc = kernels.MCMC(kernels.BlockGibbs(model), 1, steps, num_chains=60, disable_progbar=True)
    mcmc.run()
    ends = {name: value.squeeze(1) for name, value in mcmc.get_samples().items()}
    with torch.no_grad():
        program = pyro.poutine.condition(unnormalized(model), ends)
        trace = pyro.poutine.trace(program).get_trace(None, num_samples=60)
    mean: Tensor = trace.nodes["x"]["fn"].mean
    return mean


def row(name: str, model: Any, guide: Any, test: Tensor, temperatures: int, particles: int) -> str:
    """A line of the report."""
    estimate = diagnostics.ais(model, num_chains=200, num_temperatures=temperatures)
    result = diagnostics.log_likelihood(
        model, test, log_z=estimate, guide=guide, num_particles=particles
    )
    low, high = result.interval
    kind = "" if guide is None else ", a lower bound"
    return (
        f"| {name} | {result.value:.2f} [{low:.2f}, {high:.2f}]{kind} | "
        f"{estimate.forward:.2f} / {estimate.reverse:.2f} | {estimate.ess:.0f} |"
    )


def main() -> None:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/deep_boltzmann_digits"))
    parser.add_argument("--epochs", type=int, default=100, help="of each machine and each model")
    parser.add_argument("--temperatures", type=int, default=3000)
    parser.add_argument("--particles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    arguments = parser.parse_args()
    steps = 2000
    if arguments.smoke:
        arguments.epochs, arguments.temperatures, arguments.particles, steps = 1, 50, 5, 10
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(arguments.seed)

    data, test = binary_digits(arguments.seed)
    stack = greedy_stack(data, arguments.epochs)
    measured = partial(row, temperatures=arguments.temperatures, particles=arguments.particles)
    rows = [measured("RBM, the lowest of the stack", stack[0], None, test)]

    network, recognition = DeepBeliefNetwork.from_stack(stack), Recognition.from_stack(stack)
    rows.append(measured("DBN, the stack", network, recognition, test))
    fine_tune(network, recognition, data, arguments.epochs, rate=1e-3)
    rows.append(measured("DBN, fine-tuned", network, recognition, test))

    machine = DeepBoltzmannMachine.from_stack(stack)
    guide = MeanField(machine)
    rows.append(measured("DBM, from the stack", machine, guide, test))
    fit(machine, guide, data, arguments.epochs, rate=0.05)
    rows.append(measured("DBM, trained as a whole", machine, guide, test))

    for name, model in (("network", network), ("machine", machine)):
        figure = diagnostics.plot_images(
            draws(model, steps), columns=12, title=f"What the deep {name} sees"
        )
        figure.savefig(output / f"{name}.png", dpi=150)
    page = "\n".join(
        [
            "# Deep belief network and deep Boltzmann machine",
            "",
            f"Layers 64 - {' - '.join(map(str, LAYERS))}, {len(data)} black and white images, "
            f"{len(test)} test images, {arguments.particles} draws of the guide for each.",
            "",
            "| model | test log-likelihood, nats per image | log Z, forward / reverse | "
            "effective chains of 200 |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (output / "report.md").write_text(page, encoding="utf-8")
    print(f"{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
