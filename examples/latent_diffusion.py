"""A diffusion as the prior of a decoder: latent diffusion, and images of a digit that is named.

First a VAE with the prior N(0, I) and one with a diffusion as prior are trained on binary digits by
one bound each (of the second the diffusion's own bound is a part, so that encoder, decoder and
prior are trained together). Where the aggregate of the posteriors is not normal, the diffusion
fills the gap, and draws of the prior look like draws of the posteriors.

Then the prior is asked for one digit: a second diffusion of the latents, with the digit as context
and classifier-free guidance, and the decoder that is there. That is the structure of systems that
make images from text, with a class in place of a sentence: class, latent by a diffusion, image.

Written to ``--output-dir``: ``draws.png``, ``digits.png``, ``report.md``.

    python examples/latent_diffusion.py
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import one_hot
from torch.optim import Adam

from pyrogen import diagnostics, training
from pyrogen.guides import AmortizedNormal, Empty
from pyrogen.kernels import ReverseDiffusion
from pyrogen.losses import Compiled, DenoisingScoreMatching, DiffusionELBO
from pyrogen.models import VAE, ScoreModel
from pyrogen.nn import MLP, Preconditioned, TimeMLP
from pyrogen.processes import VariancePreserving

PIXELS, LATENT, DIGITS, GUIDANCE = 64, 8, 10, 2.0


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images of black and white pixels, and the digits they show."""
    scans, digits = load_digits(return_X_y=True)
    parts = train_test_split(
        (scans > 7.5).astype("float32"), digits, test_size=297, random_state=seed
    )
    train, test, labels, test_labels = (torch.as_tensor(part) for part in parts)
    return train, test, labels, test_labels


def diffusion(context: int = 0) -> ScoreModel:
    """A diffusion of latents."""
    process = VariancePreserving()
    network = TimeMLP(
        LATENT, hidden=(128, 128), context_dim=context, frequencies=5, activation=torch.nn.SiLU
    )
    options = {"min_time": 1e-3, "atol": 1e-4, "rtol": 1e-4}
    return ScoreModel(process, Preconditioned(network, process), LATENT, "data", **options)


def pair(prior: Any) -> tuple[VAE, AmortizedNormal]:
    """A decoder with a prior, and its encoder."""
    decoder, encoder = MLP(LATENT, PIXELS, hidden=(128,)), MLP(PIXELS, 2 * LATENT, hidden=(128,))
    return VAE(decoder, LATENT, prior=prior), AmortizedNormal(encoder, LATENT)


def fit(model: Any, guide: Any, data: Any, loss: ELBO, epochs: int, compiled: bool) -> None:
    """Trains by SVI, and leaves the averaged parameters."""
    result = training.fit(
        model,
        guide,
        data,
        loss=Compiled(loss) if compiled else loss,
        optimizer=partial(Adam, lr=1e-3, fused=True),
        batch_size=100,
        max_epochs=epochs,
        ema_decay=0.995 if compiled else 0.5,
        progress=False,
    )
    result.load_ema()


@torch.no_grad()
def encoded(guide: AmortizedNormal, images: Tensor) -> Tensor:
    """Draws of the posteriors."""
    latents: Tensor = guide(images)
    return latents


@dataclass
class Data:
    """Images, the digits that they show, and how much to compute."""

    train: Tensor
    test: Tensor
    labels: Tensor
    test_labels: Tensor
    epochs: int
    compiled: bool


@dataclass
class Fitted:
    """A trained pair, and what was measured of it."""

    model: VAE
    guide: AmortizedNormal
    draws: Tensor
    bound: float
    told: diagnostics.TwoSampleTest


def compare(prior: ScoreModel | None, sampler: ReverseDiffusion, data: Data) -> Fitted:
    """Trains a pair with a prior, and asks whether its draws are like those of posteriors."""
    begin = time.perf_counter()
    model, guide = pair(prior)
    loss = TraceMeanField_ELBO() if prior is None else DiffusionELBO()
    fit(model, guide, data.train, loss, data.epochs, data.compiled)
    exact = TraceMeanField_ELBO() if prior is None else DiffusionELBO(num_times=64)
    bound = -exact.loss(model, guide, data.test) / len(data.test)
    if prior is not None:
        prior.sampler = sampler
    with torch.no_grad():
        z = model.prior().sample((len(data.test),))
        draws = model.mean(z)
    told = diagnostics.two_sample_test(encoded(guide, data.test), z)
    print(f"bound {bound:.2f} nats, {time.perf_counter() - begin:.0f} s", flush=True)
    return Fitted(model, guide, draws, bound, told)


def name_digits(
    fitted: Fitted, sampler: ReverseDiffusion, data: Data
) -> tuple[dict[float, Tensor], list[str]]:
    """Ten images of each digit, drawn from its name, at each guidance; and who recognises them."""
    named = diffusion(context=DIGITS)
    classes = one_hot(data.labels.long(), DIGITS).float()
    latents = encoded(fitted.guide, data.train)
    objective = DenoisingScoreMatching(context_dropout=0.1)
    fit(named, Empty(), (latents, classes), objective, data.epochs, data.compiled)
    named.sampler = sampler
    judge = LogisticRegression(max_iter=2000).fit(data.train.numpy(), data.labels.numpy())
    asked = torch.arange(DIGITS).repeat_interleave(10)
    rows, images = [], {}
    for scale in (0.0, 1.0, GUIDANCE):
        law = named.distribution(one_hot(asked, DIGITS).float(), guidance_scale=scale)
        with torch.no_grad():
            images[scale] = fitted.model.mean(law.sample())
        right = judge.predict((images[scale] > 0.5).float().numpy()) == asked.numpy()
        rows.append(f"| {scale:g} | {right.mean():.2f} |")
    score = judge.score(data.test.numpy(), data.test_labels.numpy())
    return images, [*rows, f"| test images | {score:.2f} |"]


def report(fits: list[Fitted], recognised: list[str]) -> str:
    """What was measured, as a page of Markdown."""
    bounds = " | ".join(f"{each.bound:.2f}" for each in fits)
    told = " | ".join(
        "{:.3f} [{:.3f}, {:.3f}]".format(each.told.accuracy, *each.told.interval) for each in fits
    )
    return "\n".join(
        [
            "# A diffusion as prior",
            "",
            "| measure | N(0, I) | diffusion |",
            "|---|---|---|",
            f"| bound of log p(x), test images, nats | {bounds} |",
            f"| latents of the prior told from those of test images | {told} |",
            "",
            "| guidance | images that show the digit asked for |",
            "|---|---|",
            *recognised,
            "",
        ]
    )


def main() -> None:
    """Trains, draws and judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/latent_diffusion"))
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    output: Path = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    train, test, labels, test_labels = load(options.seed)
    data, steps = Data(train, test, labels, test_labels, options.epochs, compiled=True), 100
    if options.smoke:
        data = Data(train[:200], test[:50], labels[:200], test_labels[:50], 1, compiled=False)
        steps = 5
    sampler = ReverseDiffusion(
        num_steps=steps, method="multistep", grid="log-snr", compile=data.compiled
    )
    fits = [compare(prior, sampler, data) for prior in (None, diffusion())]
    images, recognised = name_digits(fits[0], sampler, data)
    page = report(fits, recognised)
    (output / "report.md").write_text(page, encoding="utf-8")
    both = torch.cat([each.draws[:50] for each in fits]).reshape(-1, 8, 8)
    pictures = {
        "draws": diagnostics.plot_images(
            both, columns=10, title="Draws with the prior N(0, I) (upper half) and a diffusion"
        ),
        "digits": diagnostics.plot_images(
            images[GUIDANCE].reshape(-1, 8, 8), columns=10, title="Each row one digit, asked for"
        ),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=150)
    print(f"\n{page}\nwritten to {output}/")


if __name__ == "__main__":
    main()
