"""Itô processes: drift, diffusion and, where they are linear, their Gaussian laws."""

from __future__ import annotations

from pyrogen.processes.brownian import Brownian, OrnsteinUhlenbeck
from pyrogen.processes.discrete import DiscreteVariancePreserving
from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.parametrization import convert
from pyrogen.processes.process import Process
from pyrogen.processes.rectified import Rectified
from pyrogen.processes.variance_exploding import VarianceExploding
from pyrogen.processes.variance_preserving import (
    CosineVariancePreserving,
    SubVariancePreserving,
    VariancePreserving,
)

__all__ = [
    "Brownian",
    "CosineVariancePreserving",
    "DiscreteVariancePreserving",
    "LinearProcess",
    "OrnsteinUhlenbeck",
    "Process",
    "Rectified",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "convert",
]
