"""A network as an energy learns handwritten digits; Langevin chains walk from noise to them.

The 1,797 scans of 8 x 8 pixels that come with scikit-learn, scaled to 0..1, are blurred by normal
noise and modelled by p(x) = p0(x) exp(-E(x)) / Z: a normal p0 with the mean and a wider spread than
the data, and a multilayer perceptron E. Training is denoising score matching. The score also says
where a blurred image came from: the mean of the clean image is x + sigma² grad log p(x).
Written to ``--output-dir``:

* ``trajectories.png``: chains that start at noise, one a row, as they go on, with the blur taken
  off at the end
* ``draws.png``: the ends of more chains, the blur taken off
* ``energies.png``: the energies of training images, test images, draws and foreign images
* ``report.md``: how well a classifier can tell draws from test images, and the scores of foreign
  images

    python examples/energy_digits.py
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen import diagnostics, kernels, losses, training
from pyrogen.guides import Empty
from pyrogen.models import EnergyModel
from pyrogen.nn import MLP

PIXELS, BLUR, STEP, BATCH = 64, 0.2, 0.01, 100


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Training and test images, ``[1497, 64]`` and ``[300, 64]`` between 0 and 1."""
    images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:1497]], images[order[1497:]]


def blurred(x: Tensor) -> Tensor:
    """Images with noise, so that they have a density."""
    return x + BLUR * torch.randn_like(x)


def build(train: Tensor) -> EnergyModel:
    """An energy that tilts a normal distribution around the mean image."""
    base = dist.Normal(train.mean(0), 0.6).to_event(1)
    return EnergyModel(MLP(PIXELS, 1, hidden=(256, 256), activation=nn.SiLU), base)


def fit(model: EnergyModel, train: Tensor, epochs: int, smoke: bool) -> None:
    """Trains the energy."""
    loss = losses.ScoreMatching("denoising", sigma=BLUR)
    steps = epochs * math.ceil(len(train) / BATCH)
    training.fit(
        model,
        Empty(),
        train,
        loss=loss if smoke else losses.Compiled(loss),
        optimizer=partial(Adam, lr=2e-3, fused=True),
        batch_size=BATCH,
        max_epochs=epochs,
        clip_norm=100.0,
        scheduler=partial(OneCycleLR, max_lr=2e-3, total_steps=steps + 1, pct_start=0.05),
        scheduler_interval="step",
        progress=False,
    )


def cleared(model: EnergyModel, x: Tensor) -> Tensor:
    """The mean of the clean image, given a blurred one (Tweedie's formula)."""
    x = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(model.distribution().unnormalized_log_prob(x).sum(), x)
    return (x + BLUR**2 * score).detach()


def walk(model: EnergyModel, num_chains: int, num_steps: int, smoke: bool) -> Tensor:
    """Chains from the base, ``[chains, steps, 64]``."""
    start = model.distribution().initial_point((num_chains,))
    chains = kernels.MCMC(
        kernels.Langevin(model, step_size=STEP, compile=not smoke),
        num_samples=num_steps,
        warmup_steps=0,
        num_chains=num_chains,
        initial_params={"x": start.unsqueeze(1)},
        disable_progbar=True,
    )
    chains.run(None)
    walked = chains.get_samples(group_by_chain=True)["x"].squeeze(-2)
    return torch.cat([start.unsqueeze(1), walked], dim=1)


def told_apart(real: Tensor, drawn: Tensor) -> float:
    """Share of images that a nearest-neighbour classifier recognises as real or drawn."""
    size = min(len(real), len(drawn))
    images = torch.cat([real[:size], drawn[:size]]).numpy()
    kinds = [1] * size + [0] * size
    found = cross_val_predict(KNeighborsClassifier(5), images, kinds, cv=5)
    return float((found == kinds).mean())


def foreign(test: Tensor) -> dict[str, Tensor]:
    """Images that are no digits."""
    shuffled = test[:, torch.randperm(PIXELS)]
    turned = test.reshape(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, PIXELS)
    return {
        "negatives": 1 - test,
        "pixels shuffled": shuffled,
        "turned by 90 degrees": turned,
        "means of two": (test + test.roll(1, 0)) / 2,
    }


def histogram(energies: dict[str, Tensor]) -> Any:
    """How the energies of each kind of images are spread."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    everything = torch.cat(list(energies.values()))
    low, high = (float(everything.quantile(q)) for q in (0.001, 0.97))
    edges = torch.linspace(low, high, 60).tolist()
    for name, values in energies.items():
        axes.hist(values.tolist(), edges, density=True, histtype="step", linewidth=1.5, label=name)
    axes.set(xlabel="energy, with that of the base (lower is more likely)", ylabel="density")
    axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Trains, walks, draws and judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/energy_digits"))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(arguments.seed)
    train, test = load(arguments.seed)
    if arguments.smoke:
        train, test, arguments.epochs = train[:200], test[:50], 1
    model = build(train)
    fit(model, train, arguments.epochs, arguments.smoke)
    moments = [0, 1, 5, 20, 100, 1000] if not arguments.smoke else [0, 1, 2]
    paths = walk(model, len(test), moments[-1], arguments.smoke)
    ends = paths[:, -1]
    clear = cleared(model, ends)
    shown = torch.cat([paths[:12, moments], clear[:12].unsqueeze(1)], dim=1).flatten(0, 1)

    with torch.no_grad():
        density = model.distribution().unnormalized_log_prob
        energies = {
            "training": -density(blurred(train)),
            "test": -density(blurred(test)),
            "draws": -density(ends),
        }
        others = {name: -density(blurred(x)) for name, x in foreign(test).items()}
    rows = [
        "# An energy of handwritten digits",
        "",
        "| measure | value |",
        "|---|---|",
        f"| draws told from blurred test images by nearest neighbours (0.5: not at all) "
        f"| {told_apart(blurred(test), ends):.3f} |",
        f"| the same of training images | {told_apart(blurred(test), blurred(train)):.3f} |",
    ]
    for name, values in others.items():
        result = diagnostics.out_of_distribution(-energies["test"], -values)
        rows.append(
            f"| AUROC of log p(x), test images against {name} "
            f"| {result.auroc:.3f} ± {result.standard_error:.3f} |"
        )
    page = "\n".join([*rows, ""])
    (output / "report.md").write_text(page, encoding="utf-8")
    title = "Chains after " + ", ".join(map(str, moments)) + " steps, and cleared"
    pictures = {
        "draws": diagnostics.plot_images(clear[:100].clamp(0, 1), columns=10, title="Draws"),
        "trajectories": diagnostics.plot_images(
            shown.clamp(0, 1), columns=1 + len(moments), title=title
        ),
        "energies": histogram({**energies, **others}),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=150)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
