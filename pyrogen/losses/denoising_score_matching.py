r"""Denoising score matching at all levels of noise.

The score of noised data is learned by regression, since
:math:`\nabla_x \log p_t(x) = \mathbb{E}[-\epsilon / \sigma \mid x_t = x]`:

.. math:: J = \tfrac12 \int \lambda(t)\,
   \mathbb{E}\left\lVert s(x_t, t) + \epsilon / \sigma \right\rVert^2 dt , \qquad
   x_t = \alpha x_0 + \sigma \epsilon .

Every positive weight :math:`\lambda` has the same minimiser; they differ in what a network that
cannot be right everywhere gets right. By the error of another prediction they are

================ ==================================================== ==========================
weighting        :math:`J` is half the mean of                        times are drawn
================ ==================================================== ==========================
``"sigma2"``     :math:`\lVert \hat\epsilon - \epsilon \rVert^2`      uniformly
``"likelihood"`` :math:`-\lambda'\, \lVert \hat\epsilon - \epsilon    uniformly in log-SNR
                 \rVert^2`, with the log-SNR :math:`\lambda`
``"min-snr"``    :math:`\min(\mathrm{SNR}, 5)\, \lVert \hat x_0 - x_0 uniformly
                 \rVert^2`
``"edm"``        :math:`(1/\tilde\sigma^2 + 1/s^2)\, \lVert \hat x_0  :math:`\log\tilde\sigma \sim
                 - x_0 \rVert^2`, :math:`\tilde\sigma =                N(-1.2, 1.2^2)`
                 \sigma/\alpha`, data of scale :math:`s = \tfrac12`
``"velocity"``   :math:`\lVert \hat v - v \rVert^2`                   uniformly
================ ==================================================== ==========================

The second is, but for a constant, the variational bound of the log-likelihood
(:class:`pyrogen.losses.DiffusionELBO` has the constant). The last is flow matching.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.losses._noising import NoisingELBO, log_snr_rate, over_event, time_of
from pyrogen.processes import LinearProcess, error_scale

__all__ = ["DenoisingScoreMatching", "SimpleDiffusion"]

Weight = Callable[[LinearProcess, Tensor], Tensor]

_SNR_LIMIT = 5.0
_EDM_MEAN, _EDM_STD, _EDM_DATA_STD = -1.2, 1.2, 0.5


def _constant(process: LinearProcess, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _min_snr(process: LinearProcess, t: Tensor) -> Tensor:
    return process.log_snr(t).exp().clamp(max=_SNR_LIMIT)


def _edm(process: LinearProcess, t: Tensor) -> Tensor:
    return process.log_snr(t).exp() + 1 / _EDM_DATA_STD**2


# Of which prediction the squared error is weighted, and by what.
_WEIGHTINGS: dict[str, tuple[str, Weight]] = {
    "sigma2": ("noise", _constant),
    "likelihood": ("noise", log_snr_rate),
    "min-snr": ("data", _min_snr),
    "edm": ("data", _edm),
    "velocity": ("velocity", _constant),
}
_TIMES = ("uniform", "log-snr")


class DenoisingScoreMatching(NoisingELBO):
    r"""Trains score-based sites by the noise that was added to their data.

    The sites are scored by :math:`-\hat J` in place of their log-density, summed over an event.

    Args:
        weighting: ``"sigma2"``, ``"likelihood"``, ``"min-snr"``, ``"edm"``, ``"velocity"``, or a
            function ``(process, t) -> weight`` of the squared error of the noise.
        times: from which law times are drawn, ``"uniform"`` or ``"log-snr"`` (uniform in log-SNR,
            with the weight that this calls for); by default the one of the table.
        num_levels: draw times from this many levels, evenly spaced from ``min_time`` to
            ``max_time``, instead of all of the interval; for a variance-exploding process they are
            the geometric levels of a noise-conditional score network.
        num_times: how many times are drawn for each datum.
        low_discrepancy: draw the times of a batch evenly, each uniform by itself.
        context_dropout: with which probability a datum is shown without its context.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: for an unknown weighting, times that do not go with it, or numbers out of
            range; when run, if a score-based site is latent (its weighted error is no bound), or if
            times are drawn in log-SNR and that is infinite at ``min_time`` or ``max_time``.

    References:
        P. Vincent, *A connection between score matching and denoising autoencoders*, 2011,
        doi:10.1162/NECO_a_00142.
        Y. Song, S. Ermon, *Generative modeling by estimating gradients of the data distribution*,
        2019, arXiv:1907.05600.
        Y. Song, C. Durkan, I. Murray, S. Ermon, *Maximum likelihood training of score-based
        diffusion models*, 2021, arXiv:2101.09258.
        T. Hang et al., *Efficient diffusion training via min-SNR weighting strategy*, 2023,
        arXiv:2303.09556.
        T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space of diffusion-based
        generative models*, 2022, arXiv:2206.00364.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyrogen.guides import Empty
        >>> from pyrogen.models import ScoreModel
        >>> from pyrogen.nn import TimeMLP
        >>> from pyrogen.processes import VariancePreserving
        >>> model = ScoreModel(VariancePreserving(), TimeMLP(2), event_shape=2)
        >>> objective = DenoisingScoreMatching(weighting="likelihood")
        >>> svi = SVI(model, Empty(), pyro.optim.Adam({"lr": 1e-3}), loss=objective)
        >>> loss = svi.step(torch.randn(100, 2))
    """

    def __init__(
        self,
        weighting: str | Weight = "sigma2",
        times: str | None = None,
        num_levels: int | None = None,
        num_times: int = 1,
        low_discrepancy: bool = True,
        context_dropout: float = 0.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(num_times, low_discrepancy, context_dropout, elbo)
        _check(weighting, times, num_levels)
        self.weighting = weighting
        self.num_levels = num_levels
        if times is None:
            times = {"likelihood": "log-snr", "edm": "edm"}.get(str(weighting), "uniform")
        self.times = "uniform" if num_levels else times
        self._of, self._weight = (
            ("noise", weighting) if callable(weighting) else _WEIGHTINGS[weighting]
        )

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """Minus the estimate, ``[*batch]``."""
        data = self.repeated(fn, value)
        t, over_density = self._draw_times(name, fn, self.uniform(fn, data))
        shown = self.show(fn, data, torch.randn_like(data), t, fn.prediction)
        error = over_event(fn, (shown.prediction - shown.target).square())
        scale = error_scale(fn.process, t, fn.prediction, self._of)
        weight = self._weight(fn.process, t) * scale.square() * over_density
        return -0.5 * (weight * error).mean(0)

    def _draw_times(self, name: str, fn: ScoreBased, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times of the law chosen, and one over their density against the weighting's own."""
        process, first, last = fn.process, fn.min_time, fn.max_time
        if self.num_levels:
            step = (last - first) / max(self.num_levels - 1, 1)
            return first + step * (u * self.num_levels).floor(), torch.ones_like(u)
        if self.times == "uniform":
            return first + (last - first) * u, torch.ones_like(u)
        if self.times == "log-snr":
            ends = self.log_snr_ends(name, fn, u)
            t = time_of(fn, ends[1] + (ends[0] - ends[1]) * u)
            return t, (ends[0] - ends[1]) / ((last - first) * log_snr_rate(process, t))
        ends = process.log_snr(torch.stack([u.new_tensor(first), u.new_tensor(last)]))
        # log(sigma / alpha) is normal, between its values at the ends.
        normal = torch.distributions.Normal(u.new_tensor(_EDM_MEAN), u.new_tensor(_EDM_STD))
        low, high = normal.cdf(-0.5 * ends[0]), normal.cdf(-0.5 * ends[1])
        log_snr = (-2 * normal.icdf(low + (high - low) * u)).clamp(ends[1], ends[0])
        return time_of(fn, log_snr), torch.ones_like(u)


class SimpleDiffusion(DenoisingScoreMatching):
    r"""The simple loss of denoising diffusion models,
    :math:`\mathbb{E} \lVert \hat\epsilon - \epsilon \rVert^2` with times drawn uniformly.

    It is :class:`DenoisingScoreMatching` with twice the weighting ``"sigma2"``.

    Args:
        num_levels: of how many levels times are drawn, as in a model of as many steps.
        num_times: how many times are drawn for each datum.
        low_discrepancy: draw the times of a batch evenly, each uniform by itself.
        context_dropout: with which probability a datum is shown without its context.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: as :class:`DenoisingScoreMatching`.

    References:
        J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020,
        arXiv:2006.11239.

    Example:
        >>> SimpleDiffusion(num_levels=1000).num_levels
        1000
    """

    def __init__(
        self,
        num_levels: int | None = None,
        num_times: int = 1,
        low_discrepancy: bool = True,
        context_dropout: float = 0.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(
            _twice, "uniform", num_levels, num_times, low_discrepancy, context_dropout, elbo
        )


def _twice(process: LinearProcess, t: Tensor) -> Tensor:
    return torch.full_like(t, 2.0)


def _check(weighting: Any, times: str | None, num_levels: int | None) -> None:
    if not (callable(weighting) or weighting in _WEIGHTINGS):
        raise ValueError(
            f"weighting: expected one of {', '.join(_WEIGHTINGS)} or a function, got {weighting!r}"
        )
    if times is not None and times not in _TIMES:
        raise ValueError(f"times: expected one of {', '.join(_TIMES)}, got {times!r}")
    if weighting == "edm" and times is not None:
        raise ValueError(f"times: weighting 'edm' draws its own, got {times!r}; leave it out")
    if num_levels is None:
        return
    if not isinstance(num_levels, int) or num_levels < 1:
        raise ValueError(f"num_levels: expected a positive integer, got {num_levels!r}")
    if times == "log-snr" or weighting == "edm":
        raise ValueError(
            f"num_levels: levels are drawn uniformly, expected times 'uniform', got {times!r} and "
            f"weighting {weighting!r}"
        )
