"""Markov chain Monte Carlo with thousands of chains at once."""

from __future__ import annotations

from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._tuning import Info, Tuning
from pyrogen.kernels.hmc import HMC
from pyrogen.kernels.mcmc import MCMC

__all__ = ["HMC", "MCMC", "Info", "Kernel", "Tuning"]
