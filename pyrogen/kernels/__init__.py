"""Markov chain Monte Carlo with thousands of chains at once, and the samplers of diffusions."""

from __future__ import annotations

from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._schedule import PolynomialDecay
from pyrogen.kernels._tuning import Info, Tuning
from pyrogen.kernels.annealed_langevin import AnnealedLangevin
from pyrogen.kernels.block_gibbs import BlockGibbs
from pyrogen.kernels.denoising_diffusion import DDIM, DDPM
from pyrogen.kernels.dps import DPS
from pyrogen.kernels.gibbs import Gibbs
from pyrogen.kernels.hmc import HMC
from pyrogen.kernels.langevin import Langevin
from pyrogen.kernels.mala import MALA
from pyrogen.kernels.mcmc import MCMC
from pyrogen.kernels.mmps import MMPS
from pyrogen.kernels.nuts import NUTS
from pyrogen.kernels.pigdm import PiGDM
from pyrogen.kernels.probability_flow import ProbabilityFlow
from pyrogen.kernels.random_walk import RandomWalk
from pyrogen.kernels.reverse_diffusion import ReverseDiffusion
from pyrogen.kernels.sghmc import SGHMC
from pyrogen.kernels.sgld import SGLD
from pyrogen.kernels.short_run import ShortRun
from pyrogen.kernels.tempering import ParallelTempering
from pyrogen.kernels.twisted_smc import TwistedSMC

__all__ = [
    "DDIM",
    "DDPM",
    "DPS",
    "HMC",
    "MALA",
    "MCMC",
    "MMPS",
    "NUTS",
    "SGHMC",
    "SGLD",
    "AnnealedLangevin",
    "BlockGibbs",
    "Gibbs",
    "Info",
    "Kernel",
    "Langevin",
    "ParallelTempering",
    "PiGDM",
    "PolynomialDecay",
    "ProbabilityFlow",
    "RandomWalk",
    "ReverseDiffusion",
    "ShortRun",
    "Tuning",
    "TwistedSMC",
]
