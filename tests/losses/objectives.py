"""Every objective of an energy-based or score-based site, with a model that it trains and data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from pyrogen.distributions import EnergyBased, ScoreBased
from pyrogen.losses import (
    DenoisingScoreMatching,
    DiffusionELBO,
    FlowMatching,
    NoiseContrastive,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
    SimpleDiffusion,
)
from pyrogen.models import real_nvp
from pyrogen.nn import MLP, TimeMLP
from pyrogen.processes import (
    CosineVariancePreserving,
    LearnedVariancePreserving,
    Rectified,
    VarianceExploding,
    VariancePreserving,
)


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

    def site(self):
        return EnergyBased(self.network, self.base())

    def forward(self, data):
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", self.site(), obs=data)


class Score(Energy):
    """A network as denoiser of three dimensions."""

    def __init__(self, process, prediction):
        super().__init__()
        self.network = TimeMLP(3, hidden=(8,))
        self.process, self.prediction = process, prediction

    def site(self):
        return ScoreBased(self.process, self.network, 3, self.prediction, min_time=1e-3)


def noised(process=VariancePreserving, prediction="noise"):
    return lambda: (Score(process(), prediction), torch.randn(6, 3))


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
    "noise": (DenoisingScoreMatching, noised()),
    "likelihood": (lambda: DenoisingScoreMatching("likelihood", num_times=2), noised()),
    "min-snr": (lambda: DenoisingScoreMatching("min-snr"), noised(prediction="v")),
    "edm": (lambda: DenoisingScoreMatching("edm"), noised(VarianceExploding, "data")),
    "levels": (lambda: SimpleDiffusion(num_levels=10), noised(CosineVariancePreserving)),
    "flow matching": (FlowMatching, noised(Rectified, "velocity")),
    "transport": (lambda: FlowMatching("optimal-transport"), noised(Rectified, "velocity")),
    "bound": (DiffusionELBO, noised()),
    "bound, learned": (
        lambda: DiffusionELBO(low_discrepancy=False),
        noised(LearnedVariancePreserving),
    ),
}
