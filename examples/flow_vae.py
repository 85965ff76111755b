"""What a flow buys in a variational autoencoder: a posterior of any shape.

A variational autoencoder of handwritten digits is trained with three guides: a Gaussian for each
image (mean field), the same with planar flows after it, and with inverse autoregressive flows
(IAF). A guide that misses the posterior makes the ELBO smaller than the log-likelihood, and the
model learns to be one whose posteriors the guide can hit. With two latent units one can look: the
posterior is known on a grid. Written to ``--output-dir``:

* ``posteriors.png``: for some images the exact posterior, and draws of each guide
* ``report.md``: ELBO, IWAE bound of 5000 draws and, for two latent units, the log-likelihood itself

    python examples/flow_vae.py [--latent-dims 2 16] [--epochs 100]
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pyrogen.diagnostics import iwae_bound
from pyrogen.guides import AmortizedFlow, AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE
from pyrogen.nn import MLP, OneHot

IMAGE, LEVELS = (8, 8), 17
CONTEXT_DIM, BATCH, LEARNING_RATE = 32, 100, 2e-3
GUIDES = {"mean field": None, "planar": 8, "IAF": 4}
BOUND, BLUES = 4.5, LinearSegmentedColormap.from_list("blues", ["white", "#88ccee", "#332288"])
NOTES = """\
In nats per test image, higher is better; each model is measured with the guide it was trained with.
The ELBO falls short of the log-likelihood by KL(q to the posterior); the IWAE bound comes close to
the log-likelihood for any guide that covers the posterior, so the distance between the two is what
the guide loses. With two latent units the log-likelihood is also computed on a grid, and with it
KL(q to the posterior) for as many training images. Those the encoder knows; on test images more of
the loss is due to the encoder, which may miss where the posterior is, and no flow mends that."""


def load(seed: int) -> dict[str, Tensor]:
    """The scans as grey levels 0..16, split at random."""
    scans = load_digits(return_X_y=True)[0]
    rest, test = train_test_split(scans, test_size=297, random_state=seed)
    train, validation = train_test_split(rest, test_size=200, random_state=seed)
    parts = {"train": train, "validation": validation, "test": test}
    return {name: torch.as_tensor(x).long().reshape(-1, *IMAGE) for name, x in parts.items()}


def build(name: str, latent_dim: int) -> tuple[VAE, Any]:
    """A model of the images and the guide of that name; dropout, for the images are few."""
    decoder = nn.Sequential(
        MLP(latent_dim, 256, hidden=()), nn.ReLU(), nn.Dropout(0.2), MLP(256, (*IMAGE, LEVELS), ())
    )
    model = VAE(decoder, latent_dim, likelihood="categorical")
    context = 0 if name == "mean field" else CONTEXT_DIM
    encoder = nn.Sequential(
        OneHot(LEVELS),
        nn.Dropout(0.4),
        MLP((*IMAGE, LEVELS), 2 * latent_dim + context, hidden=(256, 256)),
    )
    if name == "mean field":
        return model, AmortizedNormal(encoder, latent_dim, event_shape=IMAGE)
    return model, AmortizedFlow(
        encoder, latent_dim, name.lower(), GUIDES[name], context, event_shape=IMAGE
    )


def train(model: VAE, guide: Any, images: dict[str, Tensor], epochs: int, compile: bool) -> None:
    """Trains by SVI, and keeps the parameters of the best validation."""
    steps, pair = len(images["train"]) // BATCH, nn.ModuleList([model, guide])
    decay = 0.1 ** (1 / (epochs * steps))
    elbo = Trace_ELBO(max_plate_nesting=1)
    pyro.clear_param_store()  # of the pair before, whose parameters have the same names
    svi = SVI(
        model,
        guide,
        ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}),
        loss=Compiled(elbo) if compile else elbo,
    )
    check = Trace_ELBO(20, max_plate_nesting=1, vectorize_particles=True)
    best, state = float("inf"), {}
    for epoch in range(epochs):
        pair.train()
        for rows in torch.randperm(len(images["train"]))[: steps * BATCH].view(steps, BATCH):
            svi.step(images["train"][rows])
        if epoch % 5 == 4 or epoch == epochs - 1:
            pair.eval()
            with torch.no_grad():
                loss = check.loss(model, guide, images["validation"])
            if loss < best:
                best, state = loss, copy.deepcopy(pair.state_dict())
    pair.load_state_dict(state)
    pair.eval()


@dataclass
class Look:
    """What a pair with two latent units makes of images: all that is drawn of it."""

    density: Tensor
    draws: Tensor
    evidence: Tensor
    divergence: Tensor


@torch.no_grad()
def look_at(model: VAE, guide: Any, images: Tensor, pixels: int, draws: int = 300) -> Look:
    """Computes p(z | x) ``[n, pixels, pixels]`` and log p(x) ``[n]`` by the midpoint rule."""
    side = sides(pixels)
    z = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    one_hot = nn.functional.one_hot(images, LEVELS).to(z.dtype).flatten(1)
    rows = [
        model.decoder(line).log_softmax(-1).flatten(1) @ one_hot.T
        + model.prior().log_prob(line).unsqueeze(-1)
        for line in z
    ]
    log_joint = torch.stack(rows).movedim(-1, 0)
    evidence = log_joint.flatten(1).logsumexp(1) + 2 * (side[1] - side[0]).log()
    density = (log_joint - evidence[:, None, None]).exp()

    posterior = guide.posterior(images)
    z = posterior.rsample((draws,))
    weight = model.prior().log_prob(z) + model.decode(z).log_prob(images) - posterior.log_prob(z)
    return Look(density, z, evidence, evidence - weight.mean(0))


def sides(pixels: int) -> Tensor:
    """The centres of pixels between the bounds of the grid."""
    return torch.linspace(-BOUND, BOUND, 2 * pixels + 1)[1::2]


def picture(looks: dict[str, Look], images: Tensor) -> Figure:
    """Images in the first row; below, a row for each guide."""
    figure = Figure(figsize=(1.5 * len(images) + 0.3, 1.6 * len(looks) + 2.2), layout="constrained")
    axes = figure.subplots(len(looks) + 1, len(images), squeeze=False)
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image, cmap="gray_r")
    for line, (name, look) in zip(axes[1:], looks.items(), strict=True):
        for i, axis in enumerate(line):
            show(axis, look.density[i], look.draws[:, i])
            axis.set_title(f"KL {look.divergence[i]:.2f}", size=8, pad=2, color="#333333")
        line[0].set_ylabel(name, size=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color="#cccccc", linewidth=0.6)
    figure.suptitle(
        "Exact posteriors of two latent units (blue) and draws of the guide (red).\n"
        "Each row has its own model. Training images, the easiest for mean field to the hardest.",
        size=10,
    )
    return figure


def show(axis: Any, density: Tensor, draws: Tensor) -> None:
    """Draws one posterior, in a window that holds it and the draws."""
    side = sides(len(density))
    row, column = (density > 1e-3 * density.max()).nonzero().T
    corners = torch.cat([torch.stack([side[column], side[row]], dim=-1), draws])
    low, high = corners.amin(0), corners.amax(0)
    centre, radius = (low + high) / 2, 0.55 * (high - low).max()
    axis.imshow(
        density, extent=(-BOUND, BOUND, -BOUND, BOUND), origin="lower", cmap=BLUES,
        interpolation="bilinear", vmin=0,
    )  # fmt: skip
    axis.scatter(*draws.T, s=2, c="#cc3311", alpha=0.5, linewidths=0)
    (left, bottom), (right, top) = (centre - radius).tolist(), (centre + radius).tolist()
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect=1)


def report(rows: list[dict[str, Any]], images: int, particles: int) -> str:
    """The bounds as a page of Markdown."""
    lines = [
        "| {units} | {guide} | {elbo:.2f} | {iwae:.2f} | {gap:.2f} | {evidence} | {kl} |".format(
            **row, gap=row["iwae"] - row["elbo"]
        )
        for row in rows
    ]
    return "\n".join(
        [
            f"# Guides of a variational autoencoder, on {images} test images",
            "",
            f"| latent units | guide | ELBO | IWAE-{particles} | difference | log p(x) "
            "| KL, training images |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            NOTES,
            "",
        ]
    )


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Look], Tensor]:
    """Trains and measures each pair."""
    images = load(options.seed)
    test, seen = (images[part][: options.num_images] for part in ("test", "train"))
    rows, looks = [], {}
    elbo = Trace_ELBO(100, max_plate_nesting=1, vectorize_particles=True)
    for units in options.latent_dims:
        for name in GUIDES:
            begin = time.perf_counter()
            model, guide = build(name, units)
            train(model, guide, images, options.epochs, compile=not options.smoke)
            trained = time.perf_counter() - begin
            with torch.no_grad():
                row = {
                    "units": units,
                    "guide": name,
                    "elbo": -elbo.loss(model, guide, test) / len(test),
                    "iwae": iwae_bound(model, guide, test, num_particles=options.particles),
                    "evidence": "",
                    "kl": "",
                }
            if units == 2:
                evidence = look_at(model, guide, test, options.pixels).evidence
                looks[name] = look_at(model, guide, seen, options.pixels)
                row["evidence"] = f"{evidence.mean():.2f}"
                row["kl"] = f"{looks[name].divergence.mean():.2f}"
            rows.append(row)
            seconds = time.perf_counter() - begin
            print(
                f"{units:2} units, {name:10}: ELBO {row['elbo']:.2f}, IWAE {row['iwae']:.2f} "
                f"({trained:.0f} s to train, {seconds - trained:.0f} s to measure)",
                flush=True,
            )
    return rows, looks, seen


def main() -> None:
    """Trains each pair, measures and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/flow_vae"))
    parser.add_argument("--latent-dims", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--num-images", type=int, default=50, help="to measure on")
    parser.add_argument("--particles", type=int, default=5000, help="of the IWAE bound")
    parser.add_argument("--pixels", type=int, default=400, help="of the grid of two latent units")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.epochs, options.particles, options.pixels, options.latent_dims = 1, 5, 50, [2]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    rows, looks, images = run(options)
    if looks:
        order = looks["mean field"].divergence.argsort()
        chosen = order[torch.linspace(0, len(order) - 1, 6).long()]
        for look in looks.values():
            look.density, look.draws = look.density[chosen], look.draws[:, chosen]
            look.divergence = look.divergence[chosen]
        picture(looks, images[chosen]).savefig(options.output_dir / "posteriors.png", dpi=200)
    page = report(rows, options.num_images, options.particles)
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
