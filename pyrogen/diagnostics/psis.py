r"""How far a guide is from the posterior, by the tail of its importance weights.

With draws :math:`z_s \sim q`, the weights :math:`w_s = p(x, z_s) / q(z_s)` would correct the guide
to the posterior. A generalised Pareto distribution fitted to their upper tail has a shape
:math:`\hat k`: the weights have finite moments up to order :math:`1/\hat k`. Below 0.5 the guide is
close, up to 0.7 weighting still repairs it, above it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pyrogen.diagnostics._arviz import MIN_SAMPLES, pareto_shape
from pyrogen.diagnostics._draws import (
    Pair,
    check_num_samples,
    check_subsampling,
    evaluating,
    prepare,
)
from pyrogen.diagnostics._record import to_numpy
from pyrogen.diagnostics._sites import common_plates, log_weight, scored, total_log_prob

__all__ = ["ParetoDiagnostic", "psis_khat"]

THRESHOLD = 0.7


@dataclass(frozen=True)
class ParetoDiagnostic:
    """Pareto shapes of importance weights.

    Attributes:
        values: one shape per element of the plates in ``plates``, a scalar without plates;
            ``-inf`` where all weights are equal.
        plates: names of the plates over which the programs factorise.
        num_samples: number of weights behind each shape.
    """

    values: NDArray[np.float64]
    plates: tuple[str, ...]
    num_samples: int

    @property
    def max(self) -> float:
        """The worst shape."""
        return float(self.values.max())

    @property
    def median(self) -> float:
        """The median shape."""
        return float(np.median(self.values))

    @property
    def share_unreliable(self) -> float:
        """Share of shapes above 0.7, between 0 and 1."""
        return float((self.values > THRESHOLD).mean())

    def __str__(self) -> str:
        if not self.plates:
            verdict = "unreliable" if self.max > THRESHOLD else "reliable"
            return f"PSIS k-hat {self.max:.2f} ({verdict}; {self.num_samples} draws)"
        return (
            f"PSIS k-hat per element of {', '.join(self.plates)}: median {self.median:.2f}, "
            f"max {self.max:.2f}, {self.share_unreliable:.1%} above {THRESHOLD} "
            f"({self.values.size} elements, {self.num_samples} draws)"
        )


def psis_khat(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    **kwargs: Any,
) -> ParetoDiagnostic:
    r"""Fits the tail of :math:`\log p(x, z) - \log q(z)`, by ArviZ' PSIS.

    Where every sample site of both programs is inside the same plates, as in a variational
    autoencoder, weights and shapes are per element of them; otherwise there is one weight per
    draw of all latent sites. Scales (``beta``) do not enter, masks do. Modules are run in
    evaluation mode.

    Args:
        model: a program with at least one latent and one observed site.
        guide: a program with the model's latent sites.
        *args: passed to both.
        num_samples: number of draws, at least 25.
        **kwargs: passed to both.

    Returns:
        The shapes, as :class:`ParetoDiagnostic`.

    Raises:
        ValueError: if there are too few draws, the sites of model and guide do not match, the
            guide is a point estimate, or a plate is subsampled that not all sites are inside.

    References:
        Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and Gelman,
        2018, arXiv:1802.02538. Pareto smoothed importance sampling, Vehtari, Simpson, Gelman, Yao
        and Gabry, 2024, arXiv:1507.02646.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> psis_khat(model, guide, torch.zeros(3), num_samples=100).values.shape
        (3,)
    """
    check_num_samples(num_samples, least=MIN_SAMPLES)
    with evaluating(model, guide):
        pair = prepare(model, guide, args, kwargs)
        _check_random(pair.first[1])
        plates = common_plates(*pair.first)
        check_subsampling(pair, plates)
        weights, rounding = _log_weights(pair, plates, num_samples)
    return ParetoDiagnostic(_shapes(weights, rounding), tuple(plates), num_samples)


def _check_random(guide_trace: poutine.Trace) -> None:
    if all(isinstance(site["fn"], Delta) for site in scored(guide_trace).values()):
        raise ValueError(
            "the guide: expected random latent sites, got point estimates only (Delta); their "
            "importance weights say nothing about the posterior"
        )


def _log_weights(pair: Pair, plates: list[str], num_samples: int) -> tuple[Tensor, float]:
    """Log-weights ``[*plates, num_samples]`` and the size of their rounding error."""
    weights = torch.stack([log_weight(*pair.draw(), plates) for _ in range(num_samples)], dim=-1)
    size = float(total_log_prob(pair.first[0]).abs()) / weights[..., 0].numel()
    return weights, 64 * torch.finfo(weights.dtype).eps * (1 + size)


def _shapes(log_weights: Tensor, rounding: float) -> NDArray[np.float64]:
    if not bool(log_weights.isfinite().all()):
        raise ValueError(
            "expected finite importance weights, got NaN or infinite ones; the guide may reach "
            "outside the model's support (pyrogen.checks.nonfinite_site names the site)"
        )
    # Equal weights have no tail to fit: what is left of one is rounding.
    constant = (log_weights.amax(-1) - log_weights.amin(-1)) <= rounding
    return np.where(to_numpy(constant), -np.inf, pareto_shape(to_numpy(log_weights)))
