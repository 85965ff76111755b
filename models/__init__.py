"""Model programs.

A model is a ``PyroModule``. Called with data it scores them; called as ``model(None,
num_samples=n)`` it draws them.
"""

from __future__ import annotations

from pyrogen.models.binomial_diffusion import BinomialDiffusion
from pyrogen.models.builders import ffjord, glow, iaf, maf, nice, nsf, real_nvp
from pyrogen.models.categorical_diffusion import CategoricalDiffusion
from pyrogen.models.conditional_flow import ConditionalFlow
from pyrogen.models.deep_belief_network import DeepBeliefNetwork
from pyrogen.models.deep_boltzmann_machine import DeepBoltzmannMachine
from pyrogen.models.denoising_diffusion import DenoisingDiffusion
from pyrogen.models.energy_model import EnergyModel
from pyrogen.models.flow import Flow, bits_per_dimension
from pyrogen.models.integer_flow import IntegerFlow, LogisticMixtureBase
from pyrogen.models.ising import Ising, Potts
from pyrogen.models.joint_energy_model import JointEnergyModel
from pyrogen.models.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Likelihood,
    Normal,
)
from pyrogen.models.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from pyrogen.models.score_model import ScoreModel
from pyrogen.models.spherical_flow import SphericalFlow
from pyrogen.models.vae import VAE

__all__ = [
    "LIKELIHOODS",
    "VAE",
    "Bernoulli",
    "BinomialDiffusion",
    "Categorical",
    "CategoricalDiffusion",
    "ConditionalFlow",
    "ContinuousBernoulli",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "DenoisingDiffusion",
    "EnergyModel",
    "Flow",
    "IntegerFlow",
    "Ising",
    "JointEnergyModel",
    "Likelihood",
    "LogisticMixtureBase",
    "Normal",
    "Potts",
    "RestrictedBoltzmannMachine",
    "ScoreModel",
    "SphericalFlow",
    "bits_per_dimension",
    "ffjord",
    "glow",
    "iaf",
    "maf",
    "nice",
    "nsf",
    "real_nvp",
]
