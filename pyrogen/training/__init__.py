"""The loop for long runs: minibatches, validation, early stopping, checkpoints, several devices.

:func:`fit` minimises a Pyro ELBO over the parameters of a model and a guide. All losses it reports
are in nats per datum.
"""

from __future__ import annotations

from pyrogen.training._fit import fit
from pyrogen.training._result import EpochEnd, FitResult, History

__all__ = ["EpochEnd", "FitResult", "History", "fit"]
