"""A variational autoencoder of handwritten digits, from raw scans to an ArviZ report.

The 1,797 scans of 8 x 8 pixels that come with scikit-learn have 17 grey levels, so the likelihood
is categorical: the model gives each image a probability, and -log2 of it is the length of a code in
bits. The script trains a model/guide pair by compiled SVI, and writes to ``--output-dir``

* ``samples.png``, ``reconstructions.png``, ``latent_space.png``, ``history.png``
* ``idata.nc``: posterior, predictions and pointwise log-likelihood of test images, for ArviZ
* ``report.md``: the test ELBO and how good the posterior is

Interrupted and started again, it continues where it was.

    python examples/vae_digits.py
"""

from __future__ import annotations

import argparse
import math
import shutil
import warnings
from pathlib import Path

import arviz as az
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pyrogen import diagnostics, training
from pyrogen.guides import AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE
from pyrogen.nn import MLP, OneHot

IMAGE = (8, 8)
LEVELS = 17
LATENT_DIM = 16
NOTES = """\
The ELBO is a lower bound of the log-likelihood; the IWAE bound lies between the two. k-hat above
0.7 says that the guide is too far from the posterior for its importance weights to be trusted. LOO
sees one latent for each image, so it is a harmonic mean over the posterior of that latent: where
its own k is above 0.7, do not trust it either. Compare models by the bounds."""


def load(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The scans as grey levels 0..16, split at random, and the digits that the test images show."""
    scans, digits = load_digits(return_X_y=True)
    rest, test, _, labels = train_test_split(scans, digits, test_size=297, random_state=seed)
    train, validation = train_test_split(rest, test_size=200, random_state=seed)
    parts = {"train": train, "validation": validation, "test": test}
    images = {name: torch.as_tensor(part).long() for name, part in parts.items()}
    return {name: x.reshape(-1, *IMAGE) for name, x in images.items()}, torch.as_tensor(labels)


def build() -> tuple[VAE, AmortizedNormal]:
    """A model of the images, and a guide to what they stand for; dropout, for they are few."""
    decoder = nn.Sequential(
        MLP(LATENT_DIM, 256, hidden=()), nn.ReLU(), nn.Dropout(0.3), MLP(256, (*IMAGE, LEVELS), ())
    )
    encoder = nn.Sequential(
        OneHot(LEVELS), nn.Dropout(0.3), MLP((*IMAGE, LEVELS), 2 * LATENT_DIM, hidden=(256,))
    )
    model = VAE(decoder, LATENT_DIM, likelihood="categorical")
    return model, AmortizedNormal(encoder, LATENT_DIM, event_shape=IMAGE)


def draw_pictures(
    model: VAE, guide: AmortizedNormal, test: Tensor, labels: Tensor, history: training.History
) -> dict[str, object]:
    """One figure a file name."""
    with torch.no_grad():
        prior = model.mean(torch.randn(100, LATENT_DIM))
        locations = guide.posterior(test).mean
        reconstructions = model.mean(locations)
    return {
        "samples": diagnostics.plot_images(prior, columns=10, title="Draws from the model"),
        "reconstructions": diagnostics.plot_reconstructions(
            test[:20], reconstructions[:20], title="Test images, and what the model makes of them"
        ),
        "latent_space": diagnostics.plot_latent_space(
            locations, labels, title="Posterior means of the test images"
        ),
        "history": diagnostics.plot_history(
            {"training": history.train_loss, "validation": history.validation_loss},
            title="Negative ELBO per image",
        ),
    }


def report(model: VAE, guide: AmortizedNormal, test: Tensor, idata: object, draws: int) -> str:
    """What the test images say of model and guide, as a page of Markdown."""
    latent = diagnostics.latent_report(model, guide, test)
    khat = diagnostics.psis_khat(model, guide, test, num_samples=draws)
    bound = diagnostics.iwae_bound(model, guide, test, num_particles=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of high Pareto k: they are in the report
        loo = az.loo(idata, pointwise=True)
    elpd = loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo  # ArviZ 1.x, 0.x
    rows = {
        "Test ELBO": f"{latent.elbo:.2f} nats per image",
        "Rate, KL(q(z) to p(z))": f"{latent.rate:.2f} nats per image",
        "Distortion, -E log p(x given z)": f"{latent.distortion:.2f} nats per image",
        "Code length at the ELBO": f"{latent.bits_per_dim:.3f} bits per pixel "
        f"(a uniform code: {math.log2(LEVELS):.3f})",
        "IWAE bound, 50 particles": f"{bound:.2f} nats per image",
        "Active units": f"{latent.active_units} of {latent.num_units}",
        "PSIS k-hat, median / share above 0.7": f"{khat.median:.2f} / {khat.share_unreliable:.0%}",
        "LOO (conditional)": f"{float(elpd) / len(test):.2f} ± "
        f"{float(loo.se) / len(test):.2f} nats per image; "
        f"{float((loo.pareto_k > 0.7).mean()):.0%} of k above 0.7",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(
        [
            "# A variational autoencoder of handwritten digits",
            "",
            f"{len(test)} test images of {IMAGE[0]} x {IMAGE[1]} pixels and {LEVELS} grey levels, "
            f"{LATENT_DIM} latent units, {draws} draws of the posterior of each image.",
            "",
            "| measure | value |",
            "|---|---|",
            *lines,
            "",
            NOTES,
            "",
            "## Latent units",
            "",
            latent.to_markdown(),
            "",
        ]
    )


def main() -> None:
    """Trains, or continues; then measures, draws and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/vae_digits"))
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200, help="posterior draws of each test image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", action="store_true", help="forget an earlier run")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.max_epochs, arguments.draws = 2, 25
    output: Path = arguments.output_dir
    if arguments.restart:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)

    pyro.set_rng_seed(arguments.seed)
    images, labels = load(arguments.seed)
    model, guide = build()
    result = training.fit(
        model,
        guide,
        images["train"],
        loss=Compiled(TraceMeanField_ELBO()),
        max_epochs=arguments.max_epochs,
        validation_data=images["validation"],
        patience=20,
        checkpoint_dir=output / "checkpoints",
        checkpoint_interval=1.0,
    )
    print(f"best of {result.num_epochs} epochs: {result.best_epoch}")

    test = images["test"]
    idata = diagnostics.from_svi(model, guide, test, num_samples=arguments.draws)
    idata.to_netcdf(str(output / "idata.nc"))
    for name, figure in draw_pictures(model, guide, test, labels, result.history).items():
        figure.savefig(output / f"{name}.png", dpi=150)
    page = report(model, guide, test, idata, arguments.draws)
    (output / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
