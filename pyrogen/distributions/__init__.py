"""What a sample site can be, beyond Pyro's own distributions."""

from __future__ import annotations

from pyrogen.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrogen.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyrogen.distributions.discretized_normal import DiscretizedNormal
from pyrogen.distributions.energy import EnergyBased, unnormalized
from pyrogen.distributions.flow import FlowDistribution
from pyrogen.distributions.harmonium import Harmonium
from pyrogen.distributions.joint_units import JointUnits
from pyrogen.distributions.markov_field import InteractionGraph, MarkovField
from pyrogen.distributions.path import Path
from pyrogen.distributions.quantized import Quantized
from pyrogen.distributions.score_based import ScoreBased
from pyrogen.distributions.sphere import UniformSphere
from pyrogen.distributions.spin import Spin
from pyrogen.distributions.toys import Checkerboard, EightGaussians, TwoMoons
from pyrogen.distributions.units import (
    BernoulliUnits,
    CategoricalUnits,
    GaussianUnits,
    SpinUnits,
    Units,
)

__all__ = [
    "BernoulliUnits",
    "CategoricalUnits",
    "Checkerboard",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "DiscretizedNormal",
    "EightGaussians",
    "EnergyBased",
    "FlowDistribution",
    "GaussianUnits",
    "Harmonium",
    "InteractionGraph",
    "JointUnits",
    "MarkovField",
    "Path",
    "Quantized",
    "ScoreBased",
    "Spin",
    "SpinUnits",
    "TwoMoons",
    "UniformSphere",
    "Units",
    "unnormalized",
]
