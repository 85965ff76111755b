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
from pyrogen.diagnostics._draws import evaluating, predict, replay_values
from pyrogen.diagnostics._record import Recorder, to_numpy
from pyrogen.diagnostics._sites import kind, total_log_prob

__all__ = ["from_mcmc"]


def from_mcmc(mcmc: Any, *args: Any, **kwargs: Any) -> ArvizData:
    """Gathers the chains of a finished ``pyro.infer.MCMC`` run for ArviZ.

    The groups, dimensions, masks and scales are those of :func:`pyrogen.diagnostics.from_svi`,
    with the chains along ``chain``. ``sample_stats`` holds

    * ``lp``: the log joint in the constrained space, without the log-determinant of the
      transforms;
    * ``diverging``, of shape ``(chain, draw)``, if the kernel reports divergences;
    * ``mean_acceptance_rate``, one number per chain, if the kernel reports it: Pyro keeps none
      per draw.

    Pyro does not keep the model in a kernel made from a ``potential_fn``: the result then has
    ``posterior`` and ``sample_stats`` only.

    Args:
        mcmc: the object, after ``mcmc.run(...)``.
        *args: arguments of the model; by default those that ``mcmc.run`` was given.
        **kwargs: likewise.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.

    Raises:
        ValueError: if there are no draws yet.

    Warns:
        UserWarning: if the model has latent sites that were not drawn (enumerated sites, or
            ``save_params``); ``posterior`` and ``sample_stats`` are then all there is.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import HMC, MCMC
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> mcmc = MCMC(HMC(model), num_samples=5, warmup_steps=5, disable_progbar=True)
        >>> mcmc.run(torch.tensor([0.5, 1.5]))
        >>> result = from_mcmc(mcmc)
        >>> dict(result.posterior_predictive["x"].sizes)
        {'chain': 1, 'draw': 5, 'data': 2}
    """
    samples = _samples(mcmc)
    if not (args or kwargs):
        args, kwargs = tuple(mcmc._args or ()), dict(mcmc._kwargs or {})
    num_chains, num_draws = next(iter(samples.values())).shape[:2]
    model = getattr(mcmc.kernel, "model", None)
    groups = _without_model(samples)
    if model is not None:
        with evaluating(model):
            if _is_complete(model, samples, args, kwargs):
                groups = _with_model(model, samples, args, kwargs)
    stats = groups.setdefault("sample_stats", Group())
    reports = [report or {} for report in mcmc._diagnostics]
    stats.variables.update(_kernel_stats(reports, num_chains, num_draws))
    return to_arviz(groups, {"inference_library": "pyro", "inference": "mcmc"})


def _samples(mcmc: Any) -> dict[str, Tensor]:
    samples = getattr(mcmc, "_samples", None)
    if not samples:
        raise ValueError(
            f"expected a pyro.infer.MCMC object that has run, got {type(mcmc).__name__} without "
            "draws; call run(...) first"
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


def _with_model(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Group]:
    num_chains, num_draws = next(iter(samples.values())).shape[:2]
    recorder = Recorder(num_chains)
    for chain in range(num_chains):
        for draw in range(num_draws):
            latent = replay_values({name: value[chain, draw] for name, value in samples.items()})
            program = poutine.trace(poutine.replay(model, trace=latent))
            trace = program.get_trace(*args, **kwargs)
            recorder.draw(trace)
            recorder.predictive(predict(model, trace, args, kwargs), trace)
            recorder.statistic("lp", total_log_prob(trace))
    return recorder.groups()


def _without_model(samples: Mapping[str, Tensor]) -> dict[str, Group]:
    posterior = Group()
    for name, value in samples.items():
        own = [f"{name}_dim_{i}" for i in range(value.dim() - 2)]
        posterior.variables[name] = (["chain", "draw", *own], to_numpy(value))
    return {"posterior": posterior}


def _kernel_stats(
    reports: Sequence[Mapping[str, Any]], num_chains: int, num_draws: int
) -> dict[str, tuple[list[str], NDArray[Any]]]:
    stats: dict[str, tuple[list[str], NDArray[Any]]] = {}
    if all("divergences" in report for report in reports):
        diverging = np.zeros((num_chains, num_draws), dtype=bool)
        for chain, report in enumerate(reports):
            diverging[chain, np.asarray(report["divergences"], dtype=int)] = True
        stats["diverging"] = (["chain", "draw"], diverging)
    if all("acceptance rate" in report for report in reports):
        rates = np.array([float(report["acceptance rate"]) for report in reports])
        stats["mean_acceptance_rate"] = (["chain"], rates)
    return stats
