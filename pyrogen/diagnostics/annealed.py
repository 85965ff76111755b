r"""The normaliser of an energy-based model, by annealed importance sampling.

A chain of laws :math:`f_k \propto p_k`, from one whose normaliser :math:`Z_0` is known to the
model's, :math:`Z`, is followed by transitions :math:`T_k` that leave :math:`p_k` unchanged:

.. math:: x_0 \sim p_0, \quad x_k \sim T_k(\cdot \mid x_{k-1}), \qquad
   w = \prod_{k=1}^{K} \frac{f_k(x_{k-1})}{f_{k-1}(x_{k-1})}, \qquad \mathbb{E}\, w = Z / Z_0 .

The logarithm of a mean of weights is low on average. Followed the other way, from draws of the
model, the same gives :math:`\mathbb{E}\, w' = Z_0 / Z` and a logarithm that is high: the truth lies
between the two. Bennett's acceptance ratio makes one estimate of both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from pyrogen.diagnostics._annealing import FieldPath, HarmoniumPath, KernelPath, Path
from pyrogen.diagnostics._draws import check_num_samples
from pyrogen.distributions import EnergyBased, Harmonium, MarkovField
from pyrogen.graph import Captured
from pyrogen.kernels import Kernel
from pyrogen.kernels._conditional import energy_based_site

__all__ = ["AnnealedEstimate", "ais"]

_FEW = 10.0


@dataclass(frozen=True)
class AnnealedEstimate:
    """What annealed importance sampling found, in nats.

    Attributes:
        log_z: the estimate of the log-normaliser, of both directions together.
        interval: from the forward estimate less its error to the reverse one and its error, at the
            probability asked for; without a reverse run, forward on both sides.
        forward: the forward estimate, low on average.
        reverse: the reverse estimate, high on average if its start is exact; ``None`` without.
        ess: effective sample size of the forward weights: of so many chains.
        reverse_ess: that of the reverse weights.
        exact_start: whether the reverse chains started at independent draws of the model. Otherwise
            they started where long chains ended, and are a bound as far as those mixed.
    """

    log_z: float
    interval: tuple[float, float]
    forward: float
    reverse: float | None
    ess: float
    reverse_ess: float | None
    exact_start: bool


def ais(
    model: Callable[..., Any] | EnergyBased,
    *args: Any,
    num_chains: int = 100,
    num_temperatures: int = 1000,
    reverse: bool = True,
    base_mean: Tensor | None = None,
    kernel: Kernel | None = None,
    burn_in: int = 1000,
    prob: float = 0.95,
    compile: bool = True,
    **kwargs: Any,
) -> AnnealedEstimate:
    r"""Estimates the log-normaliser of an energy-based distribution, from both sides.

    A :class:`~pyrogen.distributions.Harmonium` (a restricted or deep Boltzmann machine) and a
    :class:`~pyrogen.distributions.MarkovField` (an Ising or Potts model) are followed from
    independent units to the model by Gibbs sampling; any other energy from its base by ``kernel``.

    Args:
        model: the distribution, or a program whose first site has it. Parameters are held fixed.
        *args: of the program.
        num_chains: how many chains in each direction.
        num_temperatures: how many laws on the way, ends included.
        reverse: run backward too. Chains start at exact draws where one side has at most 2^20
            states, else at the ends of the forward chains, moved on by ``burn_in`` steps.
        base_mean: means of the features of the independent units at the start, ``[features]``, such
            as those of the data (within 0 and 1, for bits), which shortens the way; by default
            those of the units without connections.
        kernel: how points of any other energy move: ``kernels.HMC(step_size=0.2, num_steps=5)``.
        burn_in: steps at the model before a reverse run that has no exact start.
        prob: the probability with which the interval covers the log-normaliser, if weights are
            nearly log-normal and many.
        compile: run each step as a compiled graph.
        **kwargs: of the program.

    Returns:
        The estimate.

    Raises:
        ValueError: if the model's first site has no energy, a kernel is missing, or the base is not
            normalised.

    Warns:
        UserWarning: if few chains carry the weight, so that nothing said of the error can be
            trusted.

    References:
        R. M. Neal, *Annealed importance sampling*, 2001, arXiv:physics/9803008. R. Salakhutdinov,
        I. Murray, *On the quantitative analysis of deep belief networks*, 2008,
        doi:10.1145/1390156.1390266. Y. Burda, R. Grosse, R. Salakhutdinov, *Accurate and
        conservative estimates of MRF log-likelihood using reverse annealing*, 2015,
        arXiv:1412.8566. C. H. Bennett, *Efficient estimation of free energy differences from Monte
        Carlo data*, 1976, doi:10.1016/0021-9991(76)90078-4.

    Example:
        >>> from pyrogen.distributions import Harmonium
        >>> rbm = Harmonium(torch.randn(10, 6), torch.randn(10), torch.randn(6))
        >>> estimate = ais(rbm, num_chains=500, num_temperatures=200, compile=False)
        >>> abs(estimate.log_z - float(rbm.exact_log_z())) < 0.05
        True
    """
    check_num_samples(num_chains, name="num_chains")
    check_num_samples(num_temperatures - 1, name="num_temperatures - 1")
    if not 0 < prob < 1:
        raise ValueError(f"prob: expected a number between 0 and 1, got {prob}")
    fn = model
    if not isinstance(model, EnergyBased):
        _, fn = energy_based_site(model, args, kwargs, EnergyBased, "ais")
    with torch.no_grad():
        path = _path(fn, base_mean, kernel)
        return _estimate(path, num_chains, num_temperatures, reverse, burn_in, prob, compile)


def _path(fn: Any, base_mean: Tensor | None, kernel: Kernel | None) -> Path:
    fn = fn.unexpanded()
    if fn.is_conditional:
        raise ValueError(
            f"expected one density, got a batch {list(fn.batch_shape)} of them, each with its own "
            "normaliser"
        )
    if kernel is not None:
        _refuse_improper(fn)
        return KernelPath(fn, kernel)
    if isinstance(fn, Harmonium | MarkovField):
        bias = None if base_mean is None else fn.units.natural(base_mean.to(fn.bias))
        if bias is not None and (bias.shape != fn.bias.shape or not bias.isfinite().all()):
            raise ValueError(
                f"base_mean: expected {list(fn.bias.shape)} means inside the range of the units, "
                f"got shape {list(bias.shape)}, {int((~bias.isfinite()).sum())} at its ends"
            )
        return HarmoniumPath(fn, bias) if isinstance(fn, Harmonium) else FieldPath(fn, bias)
    raise ValueError(
        f"kernel: expected one to move the points of {type(fn).__name__}, such as "
        "kernels.HMC(step_size=0.2, num_steps=5), got none"
    )


def _refuse_improper(fn: EnergyBased) -> None:
    try:
        fn.base.sample()
    except NotImplementedError as error:
        raise ValueError(
            f"base: expected a normalised one, to start from, got {type(fn.base).__name__}"
        ) from error


def _estimate(
    path: Path,
    num_chains: int,
    num_temperatures: int,
    reverse: bool,
    burn_in: int,
    prob: float,
    compile: bool,
) -> AnnealedEstimate:
    origin = path.log_z_of_start()
    betas = torch.linspace(0, 1, num_temperatures, dtype=torch.float64).to(origin)
    ends, weights = _followed(path.step, path.start(num_chains), betas, compile)
    forward, error, ess = _log_mean(weights)
    quantile = NormalDist().inv_cdf(0.5 + prob / 2)
    low, high = forward - quantile * error, forward + quantile * error
    shift = float(origin)
    if not reverse:
        _warn_of_few(ess)
        return AnnealedEstimate(
            shift + forward, (shift + low, shift + high), shift + forward, None, ess, None, False
        )
    start, exact = _model_draws(path, ends, weights, burn_in, compile)
    _, back = _followed(path.step_back, start, betas.flip(0), compile)
    lost, back_error, back_ess = _log_mean(back)
    _warn_of_few(min(ess, back_ess))
    return AnnealedEstimate(
        log_z=shift + _bennett(weights, back),
        interval=(shift + low, shift - lost + quantile * back_error),
        forward=shift + forward,
        reverse=shift - lost,
        ess=ess,
        reverse_ess=back_ess,
        exact_start=exact,
    )


def _followed(step: Any, x: Tensor, betas: Tensor, compile: bool) -> tuple[Tensor, Tensor]:
    """Where the chains end, and their log-weights in double precision."""
    run = Captured(step, compile=compile) if compile else step
    log_weight = torch.zeros(len(x), dtype=betas.dtype, device=betas.device)
    total = log_weight.double()
    for before, after in pairwise(betas):
        x, gained = run(x, log_weight, before, after)
        total = total + gained
    return x, total


def _model_draws(
    path: Path, ends: Tensor, log_weight: Tensor, burn_in: int, compile: bool
) -> tuple[Tensor, bool]:
    """Draws of the model, and whether they are exact."""
    try:
        return path.exact(len(ends)), True
    except ValueError:
        resampled = torch.multinomial(log_weight.softmax(0), len(ends), replacement=True)
        at_model = torch.ones(burn_in + 1, dtype=path.log_z_of_start().dtype, device=ends.device)
        x, _ = _followed(path.step, ends[resampled], at_model, compile)
        return x, False


def _log_mean(log_weight: Tensor) -> tuple[float, float, float]:
    """The log of the mean weight, its standard error, and the effective sample size."""
    count = len(log_weight)
    share = log_weight.softmax(0)
    ess = float(1 / share.square().sum())
    error = math.sqrt(max(count / ess - 1, 0.0) / max(count - 1, 1))
    return float(log_weight.logsumexp(0)) - math.log(count), error, ess


def _bennett(forward: Tensor, backward: Tensor) -> float:
    """The log-ratio of normalisers at which both directions are accepted equally often."""
    reverse = -backward
    low = float(torch.minimum(forward.min(), reverse.min()))
    high = float(torch.maximum(forward.max(), reverse.max()))
    for _ in range(100):
        middle = 0.5 * (low + high)
        there = torch.sigmoid(forward - middle).mean()
        back = torch.sigmoid(middle - reverse).mean()
        low, high = (middle, high) if there > back else (low, middle)
    return 0.5 * (low + high)


def _warn_of_few(ess: float) -> None:
    if ess < _FEW:
        warnings.warn(
            f"the weight of an annealed run is that of {ess:.1f} chains: expected more "
            "temperatures, more chains, or a base_mean nearer to the model; its error cannot be "
            "trusted",
            stacklevel=4,
        )
