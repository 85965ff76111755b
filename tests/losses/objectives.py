"""Every objective of an energy-based site, with a model that it trains and data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from pyrogen.distributions import EnergyBased
from pyrogen.losses import NoiseContrastive, PseudoLikelihood, RatioMatching, ScoreMatching
from pyrogen.models import real_nvp
from pyrogen.nn import MLP


class Energy(PyroModule):
    """A network as energy; ``binary`` or real data of three dimensions."""

    def __init__(self, binary=False, base=None):
        super().__init__()
        self.network = MLP(3, 1, hidden=(8,), activation=nn.Tanh)
        self.binary = binary
        self.register_buffer("one", torch.ones(()))
        self._base = base

    def base(self):
        if self._base is not None:
            return self._base
        if self.binary:
            return dist.Bernoulli(0.5 * self.one).expand([3]).to_event(1)
        return dist.Normal(0 * self.one, 2 * self.one).expand([3]).to_event(1)

    def forward(self, data):
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", EnergyBased(self.network, self.base()), obs=data)


def real():
    return Energy(), torch.randn(6, 3)


def binary():
    return Energy(binary=True), torch.bernoulli(torch.rand(6, 3))


def flow_noise():
    return NoiseContrastive(real_nvp(3, num_layers=2, hidden=(8,)).distribution, ratio=2)


OBJECTIVES = {
    "exact": (lambda: ScoreMatching("exact"), real),
    "sliced": (lambda: ScoreMatching("sliced", num_projections=2), real),
    "sliced-vr": (ScoreMatching, real),
    "denoising": (lambda: ScoreMatching("denoising", sigma=0.3, num_projections=2), real),
    "finite-difference": (lambda: ScoreMatching("finite-difference", sigma=0.1), real),
    "pseudo-likelihood": (PseudoLikelihood, binary),
    "pseudo-likelihood, some": (lambda: PseudoLikelihood(num_variables=2), binary),
    "ratio matching": (RatioMatching, binary),
    "noise-contrastive": (
        lambda: NoiseContrastive(dist.Normal(torch.zeros(3).double(), 1.5).to_event(1), ratio=3),
        real,
    ),
    "noise-contrastive, flow": (flow_noise, real),
}
