r"""A generator of digits whose prior is an energy, learned with chains for prior and posterior.

A latent vector has the density p(z) = N(z; 0, I) exp(-E(z)) / Z, and a decoder makes an image of
it: x given z is normal. Both networks are trained by maximum likelihood (B. Pang, T. Han,
E. Nijkamp, S.-C. Zhu, Y. N. Wu, *Learning latent space energy-based prior model*, 2020,
arXiv:2006.08205), whose gradient is

    E over p(z | x) of grad [log p(x | z) - E(z)]  +  E over p(z) of grad E(z) .

The second mean is what contrastive divergence estimates, with persistent chains. The first is the
ELBO's part: the guide draws from p(z | x), itself known up to a constant, by a short run of
Langevin chains, one for each image. No inference network is learned. Written to ``--output-dir``:

* ``draws.png``: images of the prior that was learned, and of N(0, I) without its tilt
* ``latents.png``: posterior draws for test images, and draws of the prior
* ``report.md``: how well a classifier tells draws of the prior from posterior draws for test
  images, which those of a prior that fits resemble

    python examples/energy_latent.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.optim import Adam

from pyrogen import diagnostics, kernels, losses, training
from pyrogen.distributions import EnergyBased
from pyrogen.nn import MLP

PIXELS, LATENT, SCALE, BATCH = 64, 8, 0.3, 100


class Generator(PyroModule):
    """The model: a tilted normal ``"z"``, and an image ``"x"`` of it, in plate ``"data"``."""

    def __init__(self) -> None:
        super().__init__()
        self.tilt = MLP(LATENT, 1, hidden=(64, 64), activation=nn.SiLU)
        self.decoder = MLP(LATENT, PIXELS, hidden=(128, 128), activation=nn.SiLU)
        with torch.no_grad():
            self.decoder.layers[-1].weight.mul_(0.1)  # gentle at first, so that chains can move
        self.sampler = kernels.ShortRun(kernels.Langevin(step_size=0.1), num_steps=200)

    def base(self) -> Any:
        """What the energy tilts."""
        return dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)

    def prior(self) -> EnergyBased:
        """The density of a latent vector."""
        return EnergyBased(self.tilt, self.base(), sampler=self.sampler)

    def image(self, z: Tensor) -> Any:
        """The density of an image."""
        return dist.Normal(self.decoder(z), SCALE).to_event(1)

    def forward(self, data: Tensor | None = None, num_samples: int = 1) -> Tensor:
        """Scores images, or draws them."""
        with pyro.plate("data", num_samples if data is None else len(data), dim=-1):
            z = pyro.sample("z", self.prior())
            x: Tensor = pyro.sample("x", self.image(z), obs=data)
        return x


class ShortRunPosterior(PyroModule):
    """The guide: ends of Langevin chains on p(z | x), one for each image, started at N(0, I).

    Given an image, the posterior is an energy that tilts the same base, with the image as context.
    """

    def __init__(self, model: Generator, step_size: float, num_steps: int) -> None:
        super().__init__()
        self.model = [model]  # in a list, so that its parameters stay the model's
        self.sampler = kernels.ShortRun(kernels.MALA(step_size=step_size), num_steps)

    def energy(self, z: Tensor, x: Tensor) -> Tensor:
        """Of z given x, but for a constant."""
        (model,) = self.model
        return model.tilt(z).squeeze(-1) - model.image(z).log_prob(x)

    def posterior(self, x: Tensor) -> EnergyBased:
        """The density of z for each image."""
        return EnergyBased(self.energy, self.model[0].base(), context=x, sampler=self.sampler)

    def forward(self, data: Tensor) -> None:
        """Proposes z where its chain ends."""
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("z", dist.Delta(self.posterior(data).sample(), event_dim=1))


def told_apart(one: Tensor, other: Tensor) -> float:
    """Share of latent vectors of which a support vector machine knows the kind, cross-validated."""
    size = min(len(one), len(other))
    points, kinds = torch.cat([one[:size], other[:size]]).numpy(), [1] * size + [0] * size
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(SVC(), points, kinds, cv=folds).mean())


def latents(posterior: Tensor, prior: Tensor) -> Any:
    """Both clouds, on the two principal axes of the first."""
    _, _, axes = torch.linalg.svd(posterior - posterior.mean(0), full_matrices=False)
    figure, panel = plt.subplots(figsize=(5.2, 4.8), layout="constrained")
    for name, cloud, colour in (("posterior", posterior, "#332288"), ("prior", prior, "#cc6677")):
        panel.scatter(*(cloud @ axes[:2].T).T, s=5, c=colour, alpha=0.5, linewidths=0, label=name)
    panel.legend(frameon=False)
    return figure


def main() -> None:
    """Trains, draws and judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/energy_latent"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    arguments = parser.parse_args()
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(arguments.seed)
    images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    images = images[torch.randperm(len(images))]
    train, test = images[:1400], images[1400:]
    if arguments.smoke:
        train, test, arguments.epochs = train[:200], test[:50], 1
    model = Generator()
    guide = ShortRunPosterior(model, step_size=0.3, num_steps=20)
    loss = losses.ContrastiveDivergence(
        kernels.Langevin(step_size=0.1), num_steps=10, persistent=True, num_chains=BATCH
    )
    training.fit(
        model,
        guide,
        train,
        loss=loss,  # so short a training takes less time than the compilation of all these steps
        optimizer=partial(Adam, lr=1e-3, fused=True),
        batch_size=BATCH,
        max_epochs=arguments.epochs,
        clip_norm=10.0,
        progress=False,
    )

    with torch.no_grad():
        z = model.prior().sample((len(test),))
        untilted = model.base().sample((len(test),))
        posterior, others = (guide.posterior(x).sample() for x in (test, train[: len(test)]))
        means = model.decoder(z), model.decoder(untilted)
    rows = [
        "# A generator with an energy as prior",
        "",
        "| latent vectors | told from posterior draws for test images (0.5: not at all) |",
        "|---|---|",
        f"| posterior draws for training images | {told_apart(posterior, others):.3f} |",
        f"| the prior that was learned | {told_apart(posterior, z):.3f} |",
        f"| N(0, I), without its tilt | {told_apart(posterior, untilted):.3f} |",
        "",
    ]
    page = "\n".join(rows)
    (output / "report.md").write_text(page, encoding="utf-8")
    shown = torch.cat([mean[:50] for mean in means]).clamp(0, 1)
    title = "Means of images of the prior (first five rows), and without its tilt"
    diagnostics.plot_images(shown, columns=10, title=title).savefig(output / "draws.png", dpi=150)
    latents(posterior, z).savefig(output / "latents.png", dpi=150)
    print(f"{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
