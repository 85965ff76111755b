"""How biased a sampler without a Metropolis test is.

Langevin dynamics and its minibatch versions sample a distribution that differs from the target by
an amount that no number of draws shows. A Metropolis-corrected run of the same target shows it: the
means and standard deviations of both, each with its Monte Carlo error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyrogen.diagnostics._record import to_numpy
from pyrogen.kernels import HMC, MCMC
from pyrogen.kernels._target import Target

__all__ = ["LangevinBias", "SiteBias", "langevin_bias"]

_ROWS = 24
_WARMUP_STEPS = 300
_FEWEST_DRAWS = 4

Array = NDArray[Any]


@dataclass(frozen=True)
class SiteBias:
    """Bias at one site, each ``[*event]``, in units of the reference's standard deviation.

    Attributes:
        mean: difference of the means, biased minus reference.
        mean_error: its Monte Carlo standard error.
        sd: difference of the standard deviations; 0.1 is 10 % too wide.
        sd_error: its Monte Carlo standard error.
    """

    mean: Array
    mean_error: Array
    sd: Array
    sd_error: Array


@dataclass(frozen=True)
class LangevinBias:
    """Bias of a run at every site; print it.

    Attributes:
        sites: name -> bias at the site.
    """

    sites: dict[str, SiteBias]

    @property
    def largest_mean(self) -> float:
        """The largest difference of means, in standard deviations."""
        return max(float(np.abs(site.mean).max()) for site in self.sites.values())

    @property
    def largest_sd(self) -> float:
        """The largest relative difference of standard deviations."""
        return max(float(np.abs(site.sd).max()) for site in self.sites.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python, for JSON."""
        return {
            name: {field: value.tolist() for field, value in vars(site).items()}
            for name, site in self.sites.items()
        }

    def __str__(self) -> str:
        lines = [f"{'':<20}{'mean':>10}{'± error':>10}{'sd':>10}{'± error':>10}"]
        rows = [row for name, site in self.sites.items() for row in _rows(name, site)]
        rows.sort(key=lambda row: -max(abs(row[1]), abs(row[3])))
        lines += [
            "{:<20}{:>+10.3f}{:>10.3f}{:>+10.3f}{:>10.3f}".format(*row) for row in rows[:_ROWS]
        ]
        if len(rows) > _ROWS:
            lines.append(f"... and {len(rows) - _ROWS} more numbers")
        lines.append("in standard deviations of the reference; largest first")
        return "\n".join(lines)


def langevin_bias(mcmc: Any, reference: Any = None) -> LangevinBias:
    """Compares the moments of a biased run with those of a Metropolis-corrected one.

    A difference of several errors is bias (or a run that has not converged: look at R-hat first);
    one within its error shows that the bias is no larger than that. Draws count alike, whatever the
    step size they were made with.

    Args:
        mcmc: a finished run of :class:`~pyrogen.kernels.Langevin`, SGLD or SGHMC under
            :class:`pyrogen.kernels.MCMC`.
        reference: a finished run of an exact kernel on the same target, under either driver. By
            default one of HMC, with as many chains and draws. For a model that draws minibatches it
            has to be given: a run of the model on all data.

    Returns:
        A :class:`LangevinBias`.

    Raises:
        ValueError: if a run has no draws or fewer than four of each chain, if the sites differ, or
            if there is no reference for a model that draws minibatches.

    Example:
        >>> from pyrogen.kernels import Langevin, MCMC
        >>> def energy(x):
        ...     return 0.5 * x.square().sum(-1)
        >>> kernel = Langevin(energy=energy, event_shape=(1,), step_size=1.0, compile=False)
        >>> mcmc = MCMC(kernel, 50, warmup_steps=20, num_chains=500, disable_progbar=True)
        >>> mcmc.run()
        >>> bias = langevin_bias(mcmc)
        >>> bool(abs(bias.largest_sd - ((1 - 1.0 / 4) ** -0.5 - 1)) < 0.05)  # the variance is 4/3
        True
    """
    biased = _draws(mcmc, "mcmc")
    exact = _draws(_reference(mcmc) if reference is None else reference, "reference")
    shapes = [{name: tuple(x.shape[2:]) for name, x in draws.items()} for draws in (biased, exact)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"reference: expected the sites {shapes[0]}, got {shapes[1]}; run it on the same target"
        )
    return LangevinBias({name: _site_bias(biased[name], exact[name]) for name in biased})


def _draws(mcmc: Any, name: str) -> Mapping[str, Tensor]:
    draws = getattr(mcmc, "_samples", None)
    if not draws:
        raise ValueError(
            f"{name}: expected an MCMC object that has run, got {type(mcmc).__name__} without "
            "draws; call run(...) first"
        )
    length = next(iter(draws.values())).shape[1]
    if length < _FEWEST_DRAWS:
        raise ValueError(
            f"{name}: expected at least {_FEWEST_DRAWS} draws of each chain, got {length}"
        )
    return dict(draws)


def _reference(mcmc: Any) -> MCMC:
    """A run of HMC on the target of another run."""
    kernel = mcmc.kernel
    if kernel.model is not None:
        subsampled = Target.from_model(kernel.model, mcmc._args, mcmc._kwargs).subsampled
        if subsampled:
            raise ValueError(
                f"reference: expected a run of the model on all data, got none; the plates "
                f"{list(subsampled)} draw minibatches, on which no exact kernel can run"
            )
    hmc = HMC(
        kernel.model,
        potential_fn=kernel.potential_fn,
        energy=kernel.energy,
        event_shape=kernel.event_shape,
        compile=kernel.compile,
    )
    reference = MCMC(
        hmc,
        max(mcmc.num_samples, _FEWEST_DRAWS),
        max(mcmc.warmup_steps, _WARMUP_STEPS),
        num_chains=mcmc.num_chains,
        chain_batch_size=mcmc.chain_batch_size,
        initial_params=mcmc.initial_params,
        disable_progbar=True,
    )
    reference.run(*mcmc._args, **mcmc._kwargs)
    return reference


def _site_bias(biased: Tensor, exact: Tensor) -> SiteBias:
    (mean, mean_error), (sd, sd_error) = _moments(biased)
    (mean_0, mean_error_0), (sd_0, sd_error_0) = _moments(exact)
    ratio = sd / sd_0
    return SiteBias(
        mean=to_numpy((mean - mean_0) / sd_0),
        mean_error=to_numpy(torch.hypot(mean_error, mean_error_0) / sd_0),
        sd=to_numpy(ratio - 1),
        sd_error=to_numpy(torch.hypot(sd_error, ratio * sd_error_0) / sd_0),
    )


def _moments(draws: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mean and standard deviation of ``[chains, draws, *event]``, each with its standard error."""
    x = draws.detach().double().cpu()
    mean = x.mean((0, 1))
    square = (x - mean).square()
    sd = square.mean((0, 1)).sqrt()
    return (mean, _error_of_mean(x)), (sd, _error_of_mean(square) / (2 * sd))


def _error_of_mean(x: Tensor) -> Tensor:
    size = effective_sample_size(x, 0, 1)
    return x.flatten(0, 1).std(0) / size.sqrt()  # type: ignore[no-any-return]


def _rows(name: str, site: SiteBias) -> list[tuple[str, float, float, float, float]]:
    return [
        (
            name + (str(list(index)).replace(" ", "") if index else ""),
            float(site.mean[index]),
            float(site.mean_error[index]),
            float(site.sd[index]),
            float(site.sd_error[index]),
        )
        for index in np.ndindex(site.mean.shape)
    ]
