"""Objectives that show a network noised data, and how their times are drawn."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.infer import ELBO
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.losses._scoring import ScoringELBO, expanded
from pyrogen.processes import LinearProcess, known
from pyrogen.processes.process import beside

__all__ = [
    "NoisingELBO", "Shown", "log_snr_rate", "over_event", "time_of",
    "uniform_numbers",
]  # fmt: skip


class Shown(NamedTuple):
    """What the network was shown, and what it should have said.

    Attributes:
        prediction: of the network, ``[*batch, *event]``.
        target: what it should be.
    """

    prediction: Tensor
    target: Tensor


class NoisingELBO(ScoringELBO):
    """An objective of score-based sites whose data are noised.

    Args:
        num_times: how many times are drawn for each datum.
        low_discrepancy: draw the times of a batch evenly, each uniform by itself.
        context_dropout: with which probability a datum is shown without its context, for
            classifier-free guidance.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: for numbers out of range.
    """

    kind: ClassVar[type[ScoreBased]] = ScoreBased

    def __init__(
        self,
        num_times: int = 1,
        low_discrepancy: bool = True,
        context_dropout: float = 0.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        if not isinstance(num_times, int) or num_times < 1:
            raise ValueError(f"num_times: expected a positive integer, got {num_times!r}")
        if not 0 <= context_dropout < 1:
            raise ValueError(
                f"context_dropout: expected a probability below 1, got {context_dropout!r}"
            )
        self.num_times = num_times
        self.low_discrepancy = low_discrepancy
        self.context_dropout = float(context_dropout)

    def latent(self, name: str, fn: Any, score: Any) -> Any:
        """Refuses: unless a subclass knows better, the weighted error of a score is no bound."""
        raise ValueError(
            f"site {name!r}: expected an observed site, got a latent one; the weighted error of a "
            "score is no bound of its log-density, by which a guide could be trained: use "
            "losses.DiffusionELBO"
        )

    def repeated(self, fn: ScoreBased, value: Tensor) -> Tensor:
        """Data for each time that is drawn of them, ``[num_times, *batch, *event]``."""
        if not value.is_floating_point():
            raise ValueError(
                f"expected floating-point data, which noise can be added to, got {value.dtype}; "
                "dequantise levels (x + torch.rand_like(x))"
            )
        value = expanded(fn, value)
        return value.expand((self.num_times, *value.shape))

    def uniform(self, fn: ScoreBased, data: Tensor) -> Tensor:
        """A number between 0 and 1 for each of ``data [*batch, *event]``, ``[*batch]``."""
        shape = data.shape[: data.dim() - len(fn.event_shape)]
        if self.low_discrepancy:
            return uniform_numbers(data, math.prod(shape)).reshape(shape)
        return torch.rand(shape, dtype=data.dtype, device=data.device)

    def log_snr_ends(self, name: str, fn: ScoreBased, data: Tensor) -> Tensor:
        """The log-SNR at ``min_time`` and at ``max_time``, ``[2]``.

        Raises:
            ValueError: if one of them is infinite.
        """
        times = torch.tensor([fn.min_time, fn.max_time], dtype=data.dtype, device=data.device)
        ends = fn.process.log_snr(times)
        if is_validation_enabled() and not bool(ends.isfinite().all()):
            first, last = ends.tolist()
            raise ValueError(
                f"site {name!r}: expected noise at min_time = {fn.min_time:g} and a rest of the "
                f"data at max_time = {fn.max_time:g}, got log-SNRs {first:g} and {last:g}, over "
                "which no integral is finite; give the distribution min_time=1e-5 or "
                "max_time=0.999"
            )
        return ends

    def show(self, fn: ScoreBased, data: Tensor, noise: Tensor, t: Tensor, target: str) -> Shown:
        """Shows the network data under noise, all ``[*batch, *event]``."""
        law = fn.with_context(self.kept_context(fn, t))
        alpha, sigma = beside(fn.process.mean_scale(t), data), beside(fn.process.std(t), data)
        prediction = law.predict(alpha * data + sigma * noise, t, target)
        return Shown(prediction, known(fn.process, data, noise, t, target))

    def kept_context(self, fn: ScoreBased, t: Tensor) -> Any:
        """The context, without that of the data from which it is withheld."""
        context = fn.context
        if context is None or not self.context_dropout:
            return context
        kept = torch.rand_like(t) >= self.context_dropout
        return torch.where(kept.unsqueeze(-1), context, torch.zeros_like(context))


def over_event(fn: ScoreBased, x: Tensor) -> Tensor:
    """The sum over each event, ``[*batch]`` of ``x [*batch, *event]``."""
    dims = len(fn.event_shape)
    return x.flatten(-dims).sum(-1) if dims else x


def uniform_numbers(like: Tensor, count: int) -> Tensor:
    """Numbers spread evenly over the unit interval, each uniform by itself, ``[count]``."""
    first = torch.rand((), dtype=like.dtype, device=like.device)
    steps = torch.arange(count, dtype=like.dtype, device=like.device) / count
    return (first + steps).remainder(1.0)


def log_snr_rate(process: LinearProcess, t: Tensor) -> Tensor:
    """How fast the log-SNR falls, ``g^2 / sigma^2``."""
    return process.diffusion(t).square() / process.variance(t)


def time_of(fn: ScoreBased, log_snr: Tensor) -> Tensor:
    """When the log-SNR has the given value: rounding leads nowhere before ``min_time`` or after
    ``max_time``."""
    return fn.process.time_of(log_snr).clamp(fn.min_time, fn.max_time)
