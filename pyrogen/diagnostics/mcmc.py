"""The result of Markov chain Monte Carlo, for ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyrogen.diagnostics._arviz import ArvizData, Group, to_arviz
from pyrogen.diagnostics._draws import evaluating, replay_values
from pyrogen.diagnostics._record import to_numpy
from pyrogen.diagnostics._replay import replay_groups
from pyrogen.diagnostics._sites import kind
from pyrogen.kernels import MCMC

__all__ = ["from_mcmc"]

_ARVIZ_NAMES = {"accept_prob": "acceptance_rate", "num_steps": "n_steps"}

Stats = dict[str, tuple[list[str], NDArray[Any]]]


def from_mcmc(mcmc: Any, *args: Any, pointwise: bool = True, **kwargs: Any) -> ArvizData:
    """Gathers the chains of a finished run for ArviZ.

    Takes :class:`pyrogen.kernels.MCMC`, and ``pyro.infer.MCMC`` with any kernel. The groups,
    dimensions, masks and scales are those of :func:`pyrogen.diagnostics.from_svi`, with the chains
    along ``chain``. ``sample_stats`` holds

    * ``lp``: the log joint in the constrained space, without the log-determinant of the
      transforms; without a Pyro model, minus the potential energy;
    * of PyroGen's kernels, under either driver, what they report of every draw: ``energy``,
      ``acceptance_rate``, ``diverging``, ``step_size``, ``n_steps`` and ``potential_energy``, and
      further fields under their own names;
    * of Pyro's kernels, what Pyro keeps: ``diverging``, if the kernel reports divergences, and
      ``mean_acceptance_rate``, one number per chain, if it reports that.

    A kernel made from an energy or a ``potential_fn`` has no model: the result then has
    ``posterior`` and ``sample_stats`` only. A model that draws minibatches is evaluated on one of
    them, the same for all draws.

    Args:
        mcmc: the object, after ``mcmc.run(...)``.
        *args: arguments of the model; by default those that ``mcmc.run`` was given.
        pointwise: whether to compute ``log_likelihood`` and ``posterior_predictive``, which hold a
            number for every draw and datum.
        **kwargs: arguments of the model.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.

    Raises:
        ValueError: if there are no draws yet.

    Warns:
        UserWarning: if the model has latent sites that were not drawn (enumerated sites, or
            ``save_params``); ``posterior`` and ``sample_stats`` are then all there is.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyrogen.kernels import HMC, MCMC
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> mcmc = MCMC(HMC(model, compile=False), 5, 5, num_chains=10, disable_progbar=True)
        >>> mcmc.run(torch.tensor([0.5, 1.5]))
        >>> result = from_mcmc(mcmc)
        >>> dict(result.posterior_predictive["x"].sizes)
        {'chain': 10, 'draw': 5, 'data': 2}
        >>> result.sample_stats["acceptance_rate"].dims
        ('chain', 'draw')
    """
    samples = _samples(mcmc)
    if not (args or kwargs):
        args, kwargs = tuple(mcmc._args or ()), dict(mcmc._kwargs or {})
    model = getattr(mcmc.kernel, "model", None)
    groups = _without_model(samples)
    if model is not None:
        with evaluating(model):
            if _is_complete(model, samples, args, kwargs):
                groups = replay_groups(model, args, kwargs, samples, pointwise)
    stats = groups.setdefault("sample_stats", Group())
    for name, value in _kernel_stats(mcmc, samples).items():
        stats.variables.setdefault(name, value)
    library = "pyrogen" if isinstance(mcmc, MCMC) else "pyro"
    return to_arviz(groups, {"inference_library": library, "inference": "mcmc"})


def _samples(mcmc: Any) -> dict[str, Tensor]:
    samples = getattr(mcmc, "_samples", None)
    if not samples:
        raise ValueError(
            "expected a pyrogen.kernels.MCMC or pyro.infer.MCMC object that has run, got "
            f"{type(mcmc).__name__} without draws; call run(...) first"
        )
    return dict(samples)


def _is_complete(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> bool:
    first = replay_values({name: value[0, 0] for name, value in samples.items()})
    trace = poutine.trace(poutine.replay(model, trace=first)).get_trace(*args, **kwargs)
    sites = trace.nodes.items()
    undrawn = [name for name, site in sites if kind(site) == "latent" and name not in samples]
    if undrawn:
        warnings.warn(
            f"the latent sites {undrawn} were not drawn (enumerated, or left out by save_params): "
            "the result holds no log-likelihood, observed data or predictive draws",
            stacklevel=3,
        )
    return not undrawn


def _without_model(samples: Mapping[str, Tensor]) -> dict[str, Group]:
    posterior = Group()
    for name, value in samples.items():
        own = [f"{name}_dim_{i}" for i in range(value.dim() - 2)]
        posterior.variables[name] = (["chain", "draw", *own], to_numpy(value))
    return {"posterior": posterior}


def _kernel_stats(mcmc: Any, samples: Mapping[str, Tensor]) -> Stats:
    reports = [report or {} for report in mcmc._diagnostics]
    info = _info_of(mcmc, reports)
    if info:
        return _draw_stats(info)
    return _chain_stats(reports, *next(iter(samples.values())).shape[:2])


def _info_of(mcmc: Any, reports: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """What PyroGen's kernels report of every draw, ``[chains, draws, *]``."""
    if isinstance(mcmc, MCMC):
        return {name: to_numpy(value) for name, value in mcmc.info.items()}
    infos = [report.get("info") for report in reports]
    if not all(infos):
        return {}
    return {name: np.stack([info[name] for info in infos]) for name in infos[0]}  # type: ignore


def _draw_stats(info: Mapping[str, NDArray[Any]]) -> Stats:
    stats: Stats = {}
    for field, value in info.items():
        name = _ARVIZ_NAMES.get(field, field)
        own = [f"{name}_dim_{i}" for i in range(value.ndim - 2)]
        stats[name] = (["chain", "draw", *own], value.astype(int) if name == "n_steps" else value)
    if "potential_energy" in info:
        stats["lp"] = (["chain", "draw"], -info["potential_energy"])
    return stats


def _chain_stats(reports: Sequence[Mapping[str, Any]], num_chains: int, num_draws: int) -> Stats:
    stats: Stats = {}
    if all("divergences" in report for report in reports):
        diverging = np.zeros((num_chains, num_draws), dtype=bool)
        for chain, report in enumerate(reports):
            diverging[chain, np.asarray(report["divergences"], dtype=int)] = True
        stats["diverging"] = (["chain", "draw"], diverging)
    if all("acceptance rate" in report for report in reports):
        rates = np.array([float(report["acceptance rate"]) for report in reports])
        stats["mean_acceptance_rate"] = (["chain"], rates)
    return stats
