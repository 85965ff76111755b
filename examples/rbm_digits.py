"""A restricted Boltzmann machine of handwritten digits: filters, fantasies, and how likely it is.

The 1,797 scans of 8 x 8 pixels that come with scikit-learn are made black and white. A machine of
500 hidden units is trained on them by persistent contrastive divergence; annealed importance
sampling from both sides says what the test images' likelihood is, its uncertainty included. A
second machine learns features of grey scans, in scikit-learn's own protocol (scans moved by a pixel
each way, logistic regression on top). The script writes to ``--output-dir``

* ``filters.png``: the weights of hidden units
* ``fantasies.png``: states of long Gibbs chains
* ``report.md``: likelihood and accuracy

    python examples/rbm_digits.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import BernoulliRBM
from sklearn.preprocessing import minmax_scale
from torch import Tensor

from pyrogen import diagnostics, kernels, training
from pyrogen.guides import Empty
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import RestrictedBoltzmannMachine


def binary_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Black and white scans to train on and to test on."""
    scans = torch.as_tensor(load_digits(return_X_y=True)[0], dtype=torch.float32)
    train, test = train_test_split((scans > 7).float(), test_size=297, random_state=seed)
    return train, test


def train(
    rbm: RestrictedBoltzmannMachine, data: Tensor, epochs: int, rate: float, decay: float = 0.0
) -> None:
    """Persistent contrastive divergence with a rate that falls to zero."""
    loss = Compiled(ContrastiveDivergence(kernels.BlockGibbs(), persistent=True, num_chains=100))
    training.fit(
        rbm,
        Empty(),
        data,
        loss=loss,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.5, weight_decay=decay),
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


def fantasies(rbm: RestrictedBoltzmannMachine, steps: int) -> Tensor:
    """Probabilities of pixels at the ends of long chains."""
    mcmc = kernels.MCMC(kernels.BlockGibbs(rbm), 1, steps, num_chains=100, disable_progbar=True)
    mcmc.run()
    ends = mcmc.get_samples()["x"].squeeze(1)
    with torch.no_grad():
        machine = rbm.distribution()
        return machine.given(machine.other(ends).sample()).mean


def moved_scans() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grey scans between 0 and 1, each also moved by one pixel in four directions."""
    scans, digits = load_digits(return_X_y=True)
    images = scans.reshape(-1, 8, 8).astype("float32")
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[:, i : i + 8, j : j + 8].reshape(-1, 64) for i, j in places]
    grey = minmax_scale(np.concatenate(moved))
    split = train_test_split(grey, np.tile(digits, 5), test_size=0.2, random_state=0)
    return tuple(split)  # type: ignore[return-value]


def accuracies(epochs: int) -> dict[str, float]:
    """Of logistic regression on raw pixels, and on features of 100 hidden units: of scikit-learn's
    machine, which its own example trains for 10 epochs, and of ours."""
    train_x, test_x, train_y, test_y = moved_scans()

    def accuracy(features: np.ndarray, test_features: np.ndarray, strength: float) -> float:
        regression = LogisticRegression(solver="newton-cg", tol=1e-4, C=strength)
        return float(regression.fit(features, train_y).score(test_features, test_y))

    peer = BernoulliRBM(100, learning_rate=0.06, n_iter=min(10, epochs), random_state=0)
    peer.fit(train_x)
    rbm = RestrictedBoltzmannMachine(64, 100)
    train(rbm, torch.as_tensor(train_x), epochs, rate=0.1)
    with torch.no_grad():
        ours = [rbm.features(torch.as_tensor(x)).numpy() for x in (train_x, test_x)]
    return {
        "raw pixels": accuracy(train_x, test_x, 100.0),
        "features of 100 units, scikit-learn's": accuracy(
            peer.transform(train_x), peer.transform(test_x), 6000.0
        ),
        "features of 100 units, ours": accuracy(ours[0], ours[1], 6000.0),
    }


def main() -> None:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/rbm_digits"))
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--feature-epochs", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.hidden, arguments.epochs, arguments.feature_epochs = 20, 2, 1
        arguments.temperatures = 200
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(arguments.seed)

    data, test = binary_digits(arguments.seed)
    rbm = RestrictedBoltzmannMachine(64, arguments.hidden)
    rbm.initialize(data)
    train(rbm, data, arguments.epochs, rate=0.05, decay=1e-3)
    estimate = diagnostics.ais(
        rbm,
        num_chains=200,
        num_temperatures=arguments.temperatures,
        base_mean=data.mean(0).clamp(0.01, 0.99),
    )
    results = {
        name: diagnostics.log_likelihood(rbm, x, log_z=estimate)
        for name, x in (("training", data), ("test", test))
    }
    order = rbm.weights.detach().norm(dim=0).argsort(descending=True)[:100]
    pictures = {
        "filters": diagnostics.plot_images(
            rbm.weights.detach().T[order].sigmoid(), columns=10, title="Weights of hidden units"
        ),
        "fantasies": diagnostics.plot_images(
            fantasies(rbm, 20 if arguments.smoke else 2000),
            columns=10,
            title="What long Gibbs chains see",
        ),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=150)

    features = accuracies(arguments.feature_epochs)
    lines = [
        "# A restricted Boltzmann machine of handwritten digits",
        "",
        f"{arguments.hidden} hidden units, {len(data)} black and white images, {len(test)} test "
        "images.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| log Z, forward / reverse | {estimate.forward:.2f} / {estimate.reverse:.2f} nats, "
        f"effective chains {estimate.ess:.0f} / {estimate.reverse_ess:.0f} of 200 |",
        *(
            f"| log-likelihood, {name} images | {result.value:.2f} "
            f"[{result.interval[0]:.2f}, {result.interval[1]:.2f}] nats per image |"
            for name, result in results.items()
        ),
        *(
            f"| accuracy of logistic regression, {name} | {value:.3f} |"
            for name, value in features.items()
        ),
        "",
    ]
    page = "\n".join(lines)
    (output / "report.md").write_text(page, encoding="utf-8")
    print(f"{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
