"""Running a model on the draws of a Markov chain, many at once where that is possible.

Pyro's handlers take about a millisecond for a draw, which adds up over thousands of chains. So the
first draw is run as it is, and shows how the result is laid out; the rest run under ``vmap``. A
model that cannot be vectorised runs draw by draw, with the same result.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrogen.diagnostics._arviz import Group
from pyrogen.diagnostics._draws import merge, predict, replay_values, subsamples
from pyrogen.diagnostics._record import Recorder, Row, to_numpy
from pyrogen.diagnostics._sites import total_log_prob
from pyrogen.kernels._vectorize import vectorized

__all__ = ["replay_groups"]

_NUMBERS_AT_ONCE = 4_000_000

Array = NDArray[Any]


class _Replay:
    """A model, with its arguments, to be run on draws of its latent sites."""

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        first: Mapping[str, Tensor],
        pointwise: bool,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._pointwise = pointwise
        self._subsample = poutine.Trace()
        self._subsample = subsamples(self.trace(first))

    def trace(self, latent: Mapping[str, Tensor]) -> poutine.Trace:
        given = merge(replay_values(latent), self._subsample)
        program = poutine.trace(poutine.replay(self._model, trace=given))
        return program.get_trace(*self._args, **self._kwargs)

    def predictive(self, trace: poutine.Trace) -> poutine.Trace | None:
        return predict(self._model, trace, self._args, self._kwargs) if self._pointwise else None

    def record(self, latent: Mapping[str, Tensor], recorder: Recorder) -> None:
        """Runs one draw as it is."""
        trace = self.trace(latent)
        recorder.draw(trace)
        predicted = self.predictive(trace)
        if predicted is not None:
            recorder.predictive(predicted, trace)
        recorder.statistic("lp", total_log_prob(trace))

    def row(self, latent: Mapping[str, Tensor], recorder: Recorder) -> Row:
        """The same as tensors, for ``vmap``."""
        trace = self.trace(latent)
        return recorder.row(trace, self.predictive(trace))


def replay_groups(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    samples: Mapping[str, Tensor],
    pointwise: bool,
) -> dict[str, Group]:
    """The groups of the result, from draws ``[chains, draws, *event]`` of all latent sites.

    Args:
        model: the program.
        args: of the model.
        kwargs: of the model.
        samples: its latent sites.
        pointwise: whether to compute what has a number per datum: the log-likelihood and the
            predictive draws.
    """
    num_chains = len(next(iter(samples.values())))
    flat = {name: value.flatten(0, 1) for name, value in samples.items()}
    first = {name: value[0] for name, value in flat.items()}
    replay, recorder = _Replay(model, args, kwargs, first, pointwise), Recorder(num_chains)
    replay.record(first, recorder)
    try:
        recorder.rows(_all_rows(replay, recorder, flat))
    except RuntimeError:  # not to be vectorised
        recorder = Recorder(num_chains)
        for latent in _each(flat):
            replay.record(latent, recorder)
    groups = recorder.groups()
    if not pointwise:
        groups.pop("log_likelihood", None)
    return groups


def _all_rows(
    replay: _Replay, recorder: Recorder, flat: Mapping[str, Tensor]
) -> dict[tuple[str, str], Array]:
    total = len(next(iter(flat.values())))
    first = {name: value[0] for name, value in flat.items()}
    numbers = sum(x.numel() for x in replay.row(first, recorder).values())
    size = max(1, min(total, _NUMBERS_AT_ONCE // max(numbers, 1)))

    def row(latent: Any) -> Any:
        return replay.row(latent, recorder)

    parts = []
    with pyro.validation_enabled(False), _quiet(), _FreshDraws():
        for start in range(0, total, size):
            latent = {name: value[start : start + size] for name, value in flat.items()}
            rows: Any = vectorized(row, latent)  # type: ignore[arg-type]
            parts.append({key: to_numpy(value) for key, value in rows.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _each(flat: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for i in range(len(next(iter(flat.values())))):
        yield {name: value[i] for name, value in flat.items()}


class _FreshDraws(TorchFunctionMode):
    """Gives each draw random numbers of its own where torch fills an empty tensor, which ``vmap``
    takes for one tensor of all draws."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        fill = _FILLS.get(func)
        return func(*args, **(kwargs or {})) if fill is None else fill(*args, **(kwargs or {}))


def _normal(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(x.shape, dtype=x.dtype, device=x.device)


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(x.shape, dtype=x.dtype, device=x.device)


def _exponential(x: Tensor, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-_uniform(x)) / lambd


def _cauchy(x: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (_uniform(x) - 0.5))


_FILLS: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: _normal,
    Tensor.uniform_: _uniform,
    Tensor.exponential_: _exponential,
    Tensor.cauchy_: _cauchy,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that it loops over an operation it has no rule for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
