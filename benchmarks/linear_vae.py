"""A linear VAE on handwritten digits against probabilistic PCA, whose optimum is known exactly.

With an affine decoder and one noise scale s the VAE has the marginal likelihood N(b, W Wᵀ + s² I),
and the best one follows from the eigenvalues λ of the data's covariance (Tipping and Bishop, 1999):

    log p = -1/2 (d log 2π + Σ_{i≤k} log λ_i + (d - k) log s² + d),   s² = mean of λ_i, i > k.

The VAE is trained by stochastic variational inference alone; the table shows its exact marginal
log-likelihood and its exact ELBO, in nats per datum. Target: a gap to the optimum of at most 0.05,
and ELBO <= log p(x).

    python benchmarks/linear_vae.py [--epochs 2000] [--latent-dims 2 10 20]

References:
    M. E. Tipping, C. M. Bishop, *Probabilistic principal component analysis*, 1999.
    J. Lucas, G. Tucker, R. Grosse, M. Norouzi, *Don't blame the ELBO!*, 2019, arXiv:1911.02469.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from pyrogen.guides import AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE
from pyrogen.nn import MLP
from pyrogen.training import fit

TARGET = 0.05


def optimum(x: Tensor, k: int) -> float:
    """Returns the largest mean log-likelihood that a k-dimensional linear VAE can have."""
    d = x.shape[1]
    eigenvalues = torch.linalg.eigvalsh(x.T.double().cov(correction=0)).flip(0)
    noise = eigenvalues[k:].mean()
    log_det = eigenvalues[:k].log().sum() + (d - k) * noise.log()
    return -0.5 * (d * math.log(2 * math.pi) + log_det.item() + d)


def marginal(model: VAE, x: Tensor) -> float:
    """Returns the exact mean log-likelihood of a trained linear VAE."""
    weight, bias, scale = decoder(model)
    covariance = weight @ weight.T + scale**2 * torch.eye(len(bias), dtype=torch.float64)
    gaussian = torch.distributions.MultivariateNormal(bias, covariance)
    return gaussian.log_prob(x.double()).mean().item()


def elbo(model: VAE, guide: AmortizedNormal, x: Tensor) -> float:
    """Returns the exact mean ELBO: all its expectations are Gaussian moments."""
    weight, bias, scale = decoder(model)
    with torch.no_grad():
        posterior = guide.posterior(x)
    mean, variance = posterior.mean.double(), posterior.variance.double()
    error = (x.double() - mean @ weight.T - bias).square().sum(1) + variance @ weight.square().sum(
        0
    )
    distortion = error / (2 * scale**2) + x.shape[1] * (scale.log() + math.log(2 * math.pi) / 2)
    rate = (variance + mean.square() - 1 - variance.log()).sum(1) / 2
    return -(distortion + rate).mean().item()


def decoder(model: VAE) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the weight, the bias and the noise scale in double precision."""
    (affine,) = model.decoder.layers
    parts = affine.weight, affine.bias, model.likelihood.scale
    weight, bias, scale = (part.detach().double() for part in parts)
    return weight, bias, scale


def train(x: Tensor, k: int, epochs: int) -> tuple[VAE, AmortizedNormal, float]:
    """Returns a trained pair, and how many seconds that took."""
    with pyro.settings.context(module_local_params=True):
        model = VAE(MLP(k, x.shape[1], hidden=()), k, likelihood="normal")
        guide = AmortizedNormal(MLP(x.shape[1], 2 * k, hidden=()), k)
    start = time.perf_counter()
    fit(
        model,
        guide,
        x,
        loss=Compiled(TraceMeanField_ELBO()),
        optimizer=partial(Adam, lr=0.01, fused=True),
        batch_size=len(x),
        max_epochs=epochs,
        scheduler=partial(OneCycleLR, max_lr=0.03, total_steps=epochs, pct_start=0.1),
        progress=False,
    )
    return model, guide, time.perf_counter() - start


def main() -> None:
    """Prints one line for each number of latent dimensions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--latent-dims", type=int, nargs="+", default=[2, 10, 20])
    arguments = parser.parse_args()
    x = torch.as_tensor(load_digits().data / 16, dtype=torch.float32)
    print(f"linear VAE on {len(x)} digits of {x.shape[1]} pixels, nats per datum")
    print(f"{'k':>3} {'optimum':>10} {'log p(x)':>10} {'gap':>8} {'ELBO':>10} {'seconds':>8}")
    for k in arguments.latent_dims:
        pyro.set_rng_seed(0)
        model, guide, seconds = train(x, k, arguments.epochs)
        best, reached, bound = optimum(x, k), marginal(model, x), elbo(model, guide, x)
        verdict = "ok" if best - reached <= TARGET and bound <= reached else "MISSED"
        print(
            f"{k:3d} {best:10.5f} {reached:10.5f} {best - reached:8.5f} {bound:10.5f} "
            f"{seconds:8.1f}  {verdict}"
        )


if __name__ == "__main__":
    main()
