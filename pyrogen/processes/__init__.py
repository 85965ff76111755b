"""Itô processes: drift, diffusion and, where they are linear, their laws and their way back."""

from __future__ import annotations

from pyrogen.processes.bridge import Bridge
from pyrogen.processes.brownian import Brownian, OrnsteinUhlenbeck
from pyrogen.processes.discrete import DiscreteVariancePreserving
from pyrogen.processes.euler import Euler
from pyrogen.processes.exponential import Exponential, FrozenNoise
from pyrogen.processes.grids import time_grid
from pyrogen.processes.langevin import langevin_step
from pyrogen.processes.learned import LearnedVariancePreserving
from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.parametrization import convert, error_scale, known
from pyrogen.processes.process import Process
from pyrogen.processes.rectified import Rectified
from pyrogen.processes.simulate import simulate
from pyrogen.processes.solver import Prediction, Solver, integrate
from pyrogen.processes.steered import Steered
from pyrogen.processes.variance_exploding import VarianceExploding
from pyrogen.processes.variance_preserving import (
    CosineVariancePreserving,
    SubVariancePreserving,
    VariancePreserving,
)

__all__ = [
    "Bridge",
    "Brownian",
    "CosineVariancePreserving",
    "DiscreteVariancePreserving",
    "Euler",
    "Exponential",
    "FrozenNoise",
    "LearnedVariancePreserving",
    "LinearProcess",
    "OrnsteinUhlenbeck",
    "Prediction",
    "Process",
    "Rectified",
    "Solver",
    "Steered",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "convert",
    "error_scale",
    "integrate",
    "known",
    "langevin_step",
    "simulate",
    "time_grid",
]
