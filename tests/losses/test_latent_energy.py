"""An energy as prior of a latent variable, with chains for prior and posterior, in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam

from pyrogen.distributions import EnergyBased
from pyrogen.kernels import MALA, ShortRun
from pyrogen.losses import ContrastiveDivergence
from tests.statistics import assert_mean_close

NOISE = 0.5


class Tilted(PyroModule):
    """z ~ N(0, 1) exp(-a z² / 2) / Z, so of variance 1 / (1 + a); x = b z + noise."""

    def __init__(self, a, b):
        super().__init__()
        self.a = PyroParam(torch.tensor(a, dtype=torch.float64))
        self.b = PyroParam(torch.tensor(b, dtype=torch.float64))

    def tilt(self, z):
        return self.a * z.square().sum(-1) / 2

    def base(self):
        return dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1)

    def image(self, z):
        return dist.Normal(self.b * z, NOISE).to_event(1)

    def forward(self, data):
        with pyro.plate("data", len(data), dim=-1):
            z = pyro.sample("z", EnergyBased(self.tilt, self.base()))
            pyro.sample("x", self.image(z), obs=data)


def chains(model, data):
    """A guide: ends of chains on p(z | x), an energy with the datum as context."""

    def energy(z, x):
        return model.tilt(z) - model.image(z).log_prob(x)

    sampler = ShortRun(MALA(step_size=0.4), num_steps=40)
    posterior = EnergyBased(energy, model.base(), context=data, sampler=sampler)
    with pyro.plate("data", len(data), dim=-1):
        pyro.sample("z", dist.Delta(posterior.sample(), event_dim=1))


def exact_gradient(a, b, x):
    """Of the mean of log N(x; 0, b² / (1 + a) + noise²) in (a, b)."""
    parameters = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
    variance = parameters[1] ** 2 / (1 + parameters[0]) + NOISE**2
    density = dist.Normal(torch.zeros((), dtype=torch.float64), variance.sqrt()).log_prob(x)
    return torch.autograd.grad(density.mean(), parameters)[0]


def test_the_gradient_is_that_of_the_evidence():
    """With exact draws of the prior as negatives; chains of the posterior are long enough."""
    a, b = 0.7, 1.3
    model, x = Tilted(a, b), 1.5 * torch.randn(200, 1).double()
    negatives = (1 + a) ** -0.5 * torch.randn(50, 500, 1).double()
    gradients = []
    for z in negatives:
        loss = ContrastiveDivergence(
            MALA(step_size=0.4), num_steps=0, sampler=lambda _, z=z: z, num_chains=500
        )
        model.zero_grad()
        loss.loss_and_grads(model, lambda data: chains(model, data), x)
        gradients.append(torch.stack([p.grad.clone() for p in model.parameters()]) / len(x))
    assert_mean_close(-torch.stack(gradients), exact_gradient(a, b, x))


def test_a_wrong_prior_is_noticed():
    """Negatives of N(0, 1), without the tilt, give another gradient of a."""
    a, b = 0.7, 1.3
    model, x = Tilted(a, b), 1.5 * torch.randn(2000, 1).double()
    z = torch.randn(20_000, 1).double()
    loss = ContrastiveDivergence(
        MALA(step_size=0.4), num_steps=0, sampler=lambda _: z, num_chains=20_000
    )
    loss.loss_and_grads(model, lambda data: chains(model, data), x)
    wrong = -next(iter(model.parameters())).grad / len(x)
    # E z² / 2 is off by (1 - 1 / (1 + a)) / 2 = 0.206.
    torch.testing.assert_close(
        wrong - exact_gradient(a, b, x)[0], torch.tensor(0.206).double(), rtol=0, atol=0.05
    )
