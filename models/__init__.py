"""Model programs.

A model is a ``PyroModule``. Called with data it scores them; called as ``model(None,
num_samples=n)`` it draws them.
"""

from __future__ import annotations

from pyrogen.models.flow import Flow, bits_per_dimension
from pyrogen.models.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Likelihood,
    Normal,
)
from pyrogen.models.vae import VAE

__all__ = [
    "LIKELIHOODS",
    "VAE",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Flow",
    "Likelihood",
    "Normal",
    "bits_per_dimension",
]
