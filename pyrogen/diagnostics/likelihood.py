r"""Test log-likelihood of models with an energy-based site, given an estimate of its normaliser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine

from pyrogen.diagnostics._draws import evaluating
from pyrogen.diagnostics._sites import kind
from pyrogen.diagnostics.annealed import AnnealedEstimate
from pyrogen.diagnostics.bounds import iwae_bound
from pyrogen.distributions import EnergyBased, unnormalized
from pyrogen.distributions.energy import innermost

__all__ = ["LogLikelihood", "log_likelihood"]


@dataclass(frozen=True)
class LogLikelihood:
    """A mean log-likelihood, in nats per datum.

    Attributes:
        value: the estimate; a lower bound if there are latent sites.
        interval: as far as the normaliser is uncertain: data and draws of the guide are what they
            are.
    """

    value: float
    interval: tuple[float, float]


def log_likelihood(
    model: Callable[..., Any],
    *args: Any,
    log_z: AnnealedEstimate | float,
    guide: Callable[..., Any] | None = None,
    num_particles: int = 50,
    **kwargs: Any,
) -> LogLikelihood:
    r"""The log-likelihood of data under a model with one energy-based site, in nats per datum.

    .. math:: \log p(x) = -F(x) - \log Z, \qquad \text{or with latent sites} \quad
       \log p(x) \ge \mathbb{E} \log \frac1K \sum_{k=1}^K \frac{\tilde p(x, h_k)}{q(h_k \mid x)}
       - \log Z, \quad h_k \sim q

    Args:
        model: a program with one energy-based site, in the plate ``"data"``: each datum has one
            factor :math:`1/Z`.
        *args: of model and guide: the data.
        log_z: the log-normaliser of that site: what :func:`ais` found, or a number.
        guide: for models with latent sites.
        num_particles: :math:`K`, the number of draws of the guide; as for :func:`iwae_bound`.
        **kwargs: of model and guide.

    Returns:
        The mean over the data, with its interval.

    Raises:
        ValueError: if the model does not have one energy-based site in the plate, or there are
            latent sites but no guide.

    References:
        R. Salakhutdinov, I. Murray, *On the quantitative analysis of deep belief networks*, 2008,
        doi:10.1145/1390156.1390266.

    Example:
        >>> from pyrogen.models import RestrictedBoltzmannMachine
        >>> rbm = RestrictedBoltzmannMachine(3, 2)
        >>> _ = torch.nn.init.zeros_(rbm.weights)  # independent fair bits
        >>> exact = float(rbm.distribution().exact_log_z().detach())
        >>> round(log_likelihood(rbm, torch.ones(5, 3), log_z=exact).value, 4)  # -3 log 2
        -2.0794
    """
    relative = unnormalized(model)
    latent, density = _structure(model, relative, args, kwargs)
    if guide is None and latent:
        raise ValueError(
            f"guide: expected one for the latent sites {latent}, got none; for a deep Boltzmann "
            "machine guides.MeanField(model), for a deep belief network guides.Recognition"
        )
    if guide is not None:
        with evaluating(model, guide), torch.no_grad():
            density = iwae_bound(relative, guide, *args, num_particles=num_particles, **kwargs)
    if isinstance(log_z, AnnealedEstimate):
        low, high = log_z.interval
        return LogLikelihood(density - log_z.log_z, (density - high, density - low))
    return LogLikelihood(density - log_z, (density - log_z, density - log_z))


def _structure(model: Any, relative: Any, args: Any, kwargs: Any) -> tuple[list[str], float]:
    """The latent sites, and the log-density of all sites per datum, but for the constant."""
    with evaluating(model, model), torch.no_grad(), poutine.block():
        trace = poutine.trace(relative).get_trace(*args, **kwargs)
        density = float(trace.log_prob_sum())
    nodes: Any = trace.nodes
    sites = {name: node for name, node in nodes.items() if node["type"] == "sample"}
    energies = [n for n, node in sites.items() if isinstance(innermost(node["fn"]), EnergyBased)]
    if len(energies) != 1:
        raise ValueError(f"expected a model with one energy-based site, got {energies}")
    frames = [frame for frame in sites[energies[0]]["cond_indep_stack"] if frame.name == "data"]
    if len(frames) != 1:
        raise ValueError(
            f"site {energies[0]!r}: expected it in the plate 'data', where each datum has a "
            "normaliser of its own"
        )
    latent = [name for name in sites if kind(nodes[name]) == "latent"]
    return latent, density / frames[0].size
