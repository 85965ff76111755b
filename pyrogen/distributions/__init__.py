"""What a sample site can be, beyond Pyro's own distributions."""

from __future__ import annotations

from pyrogen.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrogen.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyrogen.distributions.energy import EnergyBased, unnormalized
from pyrogen.distributions.flow import FlowDistribution
from pyrogen.distributions.quantized import Quantized
from pyrogen.distributions.sphere import UniformSphere
from pyrogen.distributions.toys import Checkerboard, EightGaussians, TwoMoons

__all__ = [
    "Checkerboard",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "EightGaussians",
    "EnergyBased",
    "FlowDistribution",
    "Quantized",
    "TwoMoons",
    "UniformSphere",
    "unnormalized",
]
