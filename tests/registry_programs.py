"""Every pair of model and guide, with data and a log-likelihood written out by hand.

A new program is one entry of ``PROGRAMS``; the conformance tests run over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrogen.guides import AmortizedFlow, AmortizedNormal
from pyrogen.models import VAE, Normal
from pyrogen.nn import MLP, ConvDecoder, ConvEncoder, OneHot

LATENT = 3
NUM_DATA = 6


@dataclass
class Program:
    """A pair, data for it, and log p(x | parameters) ``[*]`` by hand, in double precision."""

    model: VAE
    guide: AmortizedNormal | AmortizedFlow
    data: Tensor
    log_likelihood: Callable[[VAE, Tensor, Tensor], Tensor]

    def double(self) -> Program:
        data = self.data.double() if self.data.is_floating_point() else self.data
        return Program(self.model.double(), self.guide.double(), data, self.log_likelihood)


def bernoulli_log_prob(model, logits, x):
    return (x * logits - softplus(logits)).flatten(-len(model.event_shape)).sum(-1)


def continuous_bernoulli_log_prob(model, logits, x):
    log_normaliser = torch.log(torch.expm1(logits) / logits)
    return (x * logits - log_normaliser).flatten(-len(model.event_shape)).sum(-1)


def normal_log_prob(model, loc, x):
    scale = model.likelihood.scale.detach()
    density = -(((x - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2
    return density.flatten(-len(model.event_shape)).sum(-1)


def categorical_log_prob(model, logits, x):
    chosen = (logits * nn.functional.one_hot(x, logits.shape[-1])).sum(-1)
    return (chosen - logits.logsumexp(-1)).flatten(-len(model.event_shape)).sum(-1)


def _binary(*event_shape):
    return (torch.rand(NUM_DATA, *event_shape) > 0.5).float()


def bernoulli_mlp(beta=1.0):
    model = VAE(MLP(LATENT, (4, 5), hidden=(16,)), LATENT, "bernoulli", beta=beta)
    guide = AmortizedNormal(MLP((4, 5), 2 * LATENT, hidden=(16,)), LATENT, beta=beta)
    return Program(model, guide, _binary(4, 5), bernoulli_log_prob)


def bernoulli_conv(beta=1.0):
    model = VAE(ConvDecoder(LATENT, (1, 8, 8), channels=(8, 4)), LATENT, "bernoulli", beta=beta)
    guide = AmortizedNormal(ConvEncoder((1, 8, 8), 2 * LATENT, channels=(4, 8)), LATENT, beta=beta)
    return Program(model, guide, _binary(1, 8, 8), bernoulli_log_prob)


def normal_learned(beta=1.0):
    model = VAE(MLP(LATENT, 7, hidden=(16,)), LATENT, "normal", beta=beta)
    guide = AmortizedNormal(MLP(7, 2 * LATENT, hidden=(16,)), LATENT, beta=beta)
    return Program(model, guide, torch.randn(NUM_DATA, 7), normal_log_prob)


def normal_fixed(beta=1.0):
    likelihood = Normal(scale=0.3, learned=False)
    model = VAE(nn.Linear(LATENT, 7), LATENT, likelihood, beta=beta)
    guide = AmortizedNormal(nn.Linear(7, 2 * LATENT), LATENT, beta=beta)
    return Program(model, guide, torch.randn(NUM_DATA, 7), normal_log_prob)


def normal_per_dimension(beta=1.0):
    model = VAE(nn.Linear(LATENT, 7), LATENT, Normal(torch.linspace(0.5, 2, 7)), beta=beta)
    guide = AmortizedNormal(nn.Linear(7, 2 * LATENT), LATENT, beta=beta)
    return Program(model, guide, torch.randn(NUM_DATA, 7), normal_log_prob)


def continuous_bernoulli(beta=1.0):
    model = VAE(MLP(LATENT, (2, 5), hidden=(16,)), LATENT, "continuous_bernoulli", beta=beta)
    guide = AmortizedNormal(MLP((2, 5), 2 * LATENT, hidden=(16,)), LATENT, beta=beta)
    return Program(model, guide, torch.rand(NUM_DATA, 2, 5), continuous_bernoulli_log_prob)


def categorical_mlp(beta=1.0):
    model = VAE(MLP(LATENT, (9, 5), hidden=(16,)), LATENT, "categorical", beta=beta)
    encoder = nn.Sequential(nn.Embedding(5, 4), MLP((9, 4), 2 * LATENT, hidden=(16,)))
    guide = AmortizedNormal(encoder, LATENT, beta=beta, event_shape=(9,))
    return Program(model, guide, torch.randint(5, (NUM_DATA, 9)), categorical_log_prob)


def categorical_conv(beta=1.0):
    decoder = ConvDecoder(LATENT, (6, 6), channels=(8,), num_classes=4)
    model = VAE(decoder, LATENT, "categorical", beta=beta)
    encoder = nn.Sequential(OneHot(4), MLP((6, 6, 4), 2 * LATENT, hidden=(16,)))
    guide = AmortizedNormal(encoder, LATENT, beta=beta, event_shape=(6, 6))
    return Program(model, guide, torch.randint(4, (NUM_DATA, 6, 6)), categorical_log_prob)


def bernoulli_flow(beta=1.0):
    model = VAE(MLP(LATENT, (4, 5), hidden=(16,)), LATENT, "bernoulli", beta=beta)
    encoder = MLP((4, 5), 2 * LATENT + 4, hidden=(16,))
    guide = AmortizedFlow(encoder, LATENT, flow="iaf", num_flows=1, beta=beta)
    return Program(model, guide, _binary(4, 5), bernoulli_log_prob)


PROGRAMS: dict[str, Callable[..., Program]] = {
    "bernoulli_mlp": bernoulli_mlp,
    "bernoulli_conv": bernoulli_conv,
    "normal_learned": normal_learned,
    "normal_fixed": normal_fixed,
    "normal_per_dimension": normal_per_dimension,
    "continuous_bernoulli": continuous_bernoulli,
    "categorical_mlp": categorical_mlp,
    "categorical_conv": categorical_conv,
    "bernoulli_flow": bernoulli_flow,
}
