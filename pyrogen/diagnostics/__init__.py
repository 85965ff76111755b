"""Results for ArviZ, and the numbers behind them.

:func:`from_svi` and :func:`from_mcmc` gather a fit for ArviZ; :func:`psis_khat`,
:func:`latent_report` and :func:`iwae_bound` say how good it is, :func:`nested_rhat` and
:func:`langevin_bias` whether chains can be trusted, :func:`calibration` and
:func:`out_of_distribution` whether a classifier can, :func:`two_sample_test` whether draws can be
told from data, :func:`ground_state_energy` what a trained drift is worth; the ``plot_`` functions
show it. All of them report the programs without their scales: a ``beta`` or a minibatch changes
what is trained, not what is measured.
"""

from __future__ import annotations

from pyrogen.diagnostics.annealed import AnnealedEstimate, ais
from pyrogen.diagnostics.bias import LangevinBias, SiteBias, langevin_bias
from pyrogen.diagnostics.bounds import iwae_bound
from pyrogen.diagnostics.calibration import Calibration, calibration
from pyrogen.diagnostics.convergence import nested_rhat
from pyrogen.diagnostics.ground_state import Estimate, GroundStateEnergy, ground_state_energy
from pyrogen.diagnostics.latent import latent_report
from pyrogen.diagnostics.likelihood import LogLikelihood, log_likelihood
from pyrogen.diagnostics.mcmc import from_mcmc
from pyrogen.diagnostics.novelty import Novelty, out_of_distribution
from pyrogen.diagnostics.plots import (
    plot_history,
    plot_images,
    plot_latent_space,
    plot_reconstructions,
    plot_reliability,
)
from pyrogen.diagnostics.psis import ParetoDiagnostic, psis_khat
from pyrogen.diagnostics.report import LatentReport, LatentSite, PosteriorCollapseWarning
from pyrogen.diagnostics.svi import from_svi
from pyrogen.diagnostics.two_sample import TwoSampleTest, two_sample_test

__all__ = [
    "AnnealedEstimate",
    "Calibration",
    "Estimate",
    "GroundStateEnergy",
    "LangevinBias",
    "LatentReport",
    "LatentSite",
    "LogLikelihood",
    "Novelty",
    "ParetoDiagnostic",
    "PosteriorCollapseWarning",
    "SiteBias",
    "TwoSampleTest",
    "ais",
    "calibration",
    "from_mcmc",
    "from_svi",
    "ground_state_energy",
    "iwae_bound",
    "langevin_bias",
    "latent_report",
    "log_likelihood",
    "nested_rhat",
    "out_of_distribution",
    "plot_history",
    "plot_images",
    "plot_latent_space",
    "plot_reconstructions",
    "plot_reliability",
    "psis_khat",
    "two_sample_test",
]
