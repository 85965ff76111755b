"""Itô processes: drift, diffusion and, where they are linear, their Gaussian laws."""

from __future__ import annotations

from pyrogen.processes.brownian import Brownian, OrnsteinUhlenbeck
from pyrogen.processes.discrete import DiscreteVariancePreserving
from pyrogen.processes.learned import LearnedVariancePreserving
from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.parametrization import convert, error_scale, known
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
    "LearnedVariancePreserving",
    "LinearProcess",
    "OrnsteinUhlenbeck",
    "Process",
    "Rectified",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "convert",
    "error_scale",
    "known",
]
