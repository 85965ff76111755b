"""A linear VAE is probabilistic PCA, whose best likelihood is known (Tipping and Bishop, 1999)."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits
from torch.distributions import LowRankMultivariateNormal, Normal, kl_divergence

from pyrogen.guides import AmortizedNormal
from pyrogen.models import VAE
from pyrogen.nn import MLP
from tests.statistics import assert_mean_close

LATENT = 2
STEPS = 400
# log p(x) of the optimum, nats per datum: digits / 16, 1797 x 64, two latent dimensions.
OPTIMUM = 0.00571


@pytest.fixture(scope="module")
def digits():
    return torch.as_tensor(load_digits().data / 16, dtype=torch.float32)


@pytest.fixture(scope="module")
def one_thread():
    """Several threads wait for each other longer than such small matrices take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(digits, one_thread):
    with pyro.settings.context(module_local_params=True):
        pyro.set_rng_seed(0)
        model = VAE(MLP(LATENT, 64, hidden=()), LATENT, likelihood="normal")
        guide = AmortizedNormal(MLP(64, 2 * LATENT, hidden=()), LATENT)
        loss = TraceMeanField_ELBO()(model, guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.03, total_steps=STEPS, pct_start=0.1
        )
        for _ in range(STEPS):
            optimizer.zero_grad()
            (loss(digits) / len(digits)).backward()
            optimizer.step()
            schedule.step()
    return model.double(), guide.double()


def exact_log_likelihood(model, x):
    (affine,) = model.decoder.layers
    scale = model.likelihood.scale.detach()
    noise = scale**2 * torch.ones(64, dtype=torch.float64)
    return LowRankMultivariateNormal(affine.bias.detach(), affine.weight.detach(), noise).log_prob(
        x
    )


def exact_kl_to_the_posterior(model, guide, x):
    """Returns KL(q(z|x) || p(z|x)) ``[n]``; p(z|x) is Gaussian with precision I + WᵀW / s²."""
    (affine,) = model.decoder.layers
    weight, scale = affine.weight.detach(), model.likelihood.scale.detach()
    precision = torch.eye(LATENT, dtype=torch.float64) + weight.T @ weight / scale**2
    mean = torch.linalg.solve(precision, weight.T @ (x - affine.bias.detach()).T / scale**2).T
    posterior = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    with torch.no_grad():
        q = guide.posterior(x)
        full = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.stddev.diag_embed())
        return kl_divergence(full, posterior)


def test_optimum_from_the_eigenvalues(digits):
    eigenvalues = torch.linalg.eigvalsh(digits.double().T.cov(correction=0)).flip(0)
    noise = eigenvalues[LATENT:].mean()
    log_det = eigenvalues[:LATENT].log().sum() + (64 - LATENT) * noise.log()
    assert -0.5 * (64 * math.log(2 * math.pi) + log_det + 64) == pytest.approx(OPTIMUM, abs=5e-6)


def test_training_reaches_the_optimum_and_not_more(trained, digits):
    model, _ = trained
    reached = exact_log_likelihood(model, digits.double()).mean().item()
    assert OPTIMUM - 0.05 <= reached <= OPTIMUM + 5e-6


def test_noise_scale_is_that_of_the_discarded_eigenvalues(trained, digits):
    model, _ = trained
    eigenvalues = torch.linalg.eigvalsh(digits.double().T.cov(correction=0))
    # A gap of 0.05 nats allows (s / s*)^2 to be off by sqrt(4 * 0.05 / 62): the likelihood is
    # -62/2 (log s^2 + s*^2 / s^2) around its maximum.
    best = eigenvalues[:-LATENT].mean().item()
    assert model.likelihood.scale.item() ** 2 == pytest.approx(best, rel=(4 * 0.05 / 62) ** 0.5)


def test_elbo_is_the_likelihood_less_the_posterior_gap(trained, digits):
    model, guide = trained
    x = digits.double()
    gap = exact_kl_to_the_posterior(model, guide, x)
    exact = (exact_log_likelihood(model, x) - gap).sum()
    assert (gap > 0).all()
    elbos = torch.tensor([-TraceMeanField_ELBO().loss(model, guide, x) for _ in range(100)])
    assert_mean_close(elbos, exact)
    # The best diagonal posterior is the exact one, up to a rotation of z that SVI finds.
    assert gap.mean() < 0.05


def test_importance_weights_recover_the_likelihood(trained, digits):
    model, guide = trained
    x = digits[:1].double()
    with torch.no_grad():
        posterior = guide.posterior(x)
        wide = Normal(posterior.mean, 1.5 * posterior.stddev)
        z = wide.sample((200_000,))
        log_joint = model.prior().log_prob(z) + model.decode(z).log_prob(x)
        weights = (log_joint - wide.log_prob(z).sum(-1) - exact_log_likelihood(model, x)).exp()
    assert_mean_close(weights, torch.ones(1))
