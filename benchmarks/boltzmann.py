"""An epoch of persistent contrastive divergence, side by side with scikit-learn's BernoulliRBM.

Both train the same machine on the same binary images by stochastic gradient ascent, one Gibbs step
an update, one chain for each image of the batch. Targets: at most 1.5 times scikit-learn's time
with 64 hidden units and batches of 64, at most 1 with 1,000 hidden units and batches of 512.

    python benchmarks/boltzmann.py [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import numpy as np
import pyro
import torch
from side_by_side import ratio, side_by_side
from sklearn.datasets import load_digits
from sklearn.neural_network import BernoulliRBM
from torch import Tensor

from pyrogen import kernels
from pyrogen.guides import Empty
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import RestrictedBoltzmannMachine

RATE = 0.01


def digits(copies: int) -> Tensor:
    """The images of scikit-learn, repeated, as bits."""
    scans = load_digits(return_X_y=True)[0] / 16
    grey = torch.as_tensor(np.tile(scans, (copies, 1)), dtype=torch.float32)
    return torch.bernoulli(grey)


def ours(x: Tensor, hidden: int, batch: int) -> Callable[[], object]:
    """An epoch of a plain loop over batches."""
    rbm, guide = RestrictedBoltzmannMachine(x.shape[1], hidden), Empty()
    loss = Compiled(ContrastiveDivergence(kernels.BlockGibbs(), persistent=True))
    # Of three parameters, a plain loop is the fastest of torch's forms.
    optimizer = torch.optim.SGD(rbm.parameters(), lr=RATE / batch, foreach=False)
    batches = x[: len(x) // batch * batch].split(batch)

    def epoch() -> None:
        for each in batches:
            optimizer.zero_grad()
            loss.loss_and_grads(rbm, guide, each)
            optimizer.step()

    return epoch


def theirs(x: Tensor, hidden: int, batch: int) -> Callable[[], object]:
    """An epoch of scikit-learn, in single precision."""
    data = x[: len(x) // batch * batch].numpy()
    rbm = BernoulliRBM(hidden, learning_rate=RATE, batch_size=batch, n_iter=1, random_state=0)
    return lambda: rbm.fit(data)


def main() -> None:
    """Prints the times and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="two rounds, to see that it runs")
    arguments = parser.parse_args()
    pyro.set_rng_seed(0)
    for hidden, batch, copies, target in ((64, 64, 1, 1.5), (1000, 512, 2, 1.0)):
        x = digits(copies)
        contestants = {
            "PyroGen": ours(x, hidden, batch),
            "scikit-learn": theirs(x, hidden, batch),
        }
        rounds = 2 if arguments.smoke else arguments.rounds
        times = side_by_side(contestants, rounds=rounds, calls=3, warmup=2)
        steps = len(x) // batch
        print(f"\n64-{hidden}, batch {batch}, {torch.get_num_threads()} threads, {steps} steps")
        for name, values in times.items():
            each = 1e3 * median(values) / steps
            print(f"  {name:24s} {median(values):8.2f} ms an epoch, {each:8.1f} us a step")
        share = ratio(times["PyroGen"], times["scikit-learn"])
        print(f"  PyroGen / scikit-learn   {share:8.2f}   (target {target})")


if __name__ == "__main__":
    main()
