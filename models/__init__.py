"""Model programs.

A model is a ``PyroModule``. Called with data it scores them; called as ``model(None,
num_samples=n)`` it draws them.
"""

from __future__ import annotations

from pyrogen.models.bayesian_network import BayesianNetwork, scale_mixture
from pyrogen.models.bayesian_rnn import BayesianRNN
from pyrogen.models.binomial_diffusion import BinomialDiffusion
from pyrogen.models.builders import ffjord, glow, iaf, maf, nice, nsf, real_nvp
from pyrogen.models.categorical_diffusion import CategoricalDiffusion
from pyrogen.models.conditional_flow import ConditionalFlow
from pyrogen.models.deep_belief_network import DeepBeliefNetwork
from pyrogen.models.deep_boltzmann_machine import DeepBoltzmannMachine
from pyrogen.models.denoising_diffusion import DenoisingDiffusion
from pyrogen.models.energy_model import EnergyModel
from pyrogen.models.feynman_kac import FeynmanKac
from pyrogen.models.flow import Flow, bits_per_dimension
from pyrogen.models.integer_flow import IntegerFlow, LogisticMixtureBase
from pyrogen.models.ising import Ising, Potts
from pyrogen.models.joint_energy_model import JointEnergyModel
from pyrogen.models.latent_sde import LatentSDE
from pyrogen.models.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Likelihood,
    Normal,
)
from pyrogen.models.markov_chain import MarkovChain
from pyrogen.models.normal_mixture import NormalMixture
from pyrogen.models.potentials import (
    Anharmonic,
    DoubleWell,
    Harmonic,
    HookesAtom,
    Molecule,
    PoschlTeller,
    Potential,
    TrappedBosons,
)
from pyrogen.models.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from pyrogen.models.score_model import ScoreModel
from pyrogen.models.sde_bnn import SDEBNN
from pyrogen.models.spherical_flow import SphericalFlow
from pyrogen.models.vae import VAE

__all__ = [
    "LIKELIHOODS",
    "SDEBNN",
    "VAE",
    "Anharmonic",
    "BayesianNetwork",
    "BayesianRNN",
    "Bernoulli",
    "BinomialDiffusion",
    "Categorical",
    "CategoricalDiffusion",
    "ConditionalFlow",
    "ContinuousBernoulli",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "DenoisingDiffusion",
    "DoubleWell",
    "EnergyModel",
    "FeynmanKac",
    "Flow",
    "Harmonic",
    "HookesAtom",
    "IntegerFlow",
    "Ising",
    "JointEnergyModel",
    "LatentSDE",
    "Likelihood",
    "LogisticMixtureBase",
    "MarkovChain",
    "Molecule",
    "Normal",
    "NormalMixture",
    "PoschlTeller",
    "Potential",
    "Potts",
    "RestrictedBoltzmannMachine",
    "ScoreModel",
    "SphericalFlow",
    "TrappedBosons",
    "bits_per_dimension",
    "ffjord",
    "glow",
    "iaf",
    "maf",
    "nice",
    "nsf",
    "real_nvp",
    "scale_mixture",
]
