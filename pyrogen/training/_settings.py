"""The options of a run, checked where they are given."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrogen.training._result import EpochEnd


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    """The optimizer unless told otherwise: Adam at 1e-3, its update as one kernel."""
    return Adam(list(parameters), lr=1e-3, fused=True)


@dataclass(frozen=True)
class Settings:
    """Options of :func:`pyrogen.training.fit`, under the names they have there."""

    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    batch_size: int
    max_epochs: int
    validate_every: int
    patience: int | None
    min_delta: float
    clip_norm: float | None
    scheduler: Callable[[Optimizer], LRScheduler] | None
    scheduler_interval: Literal["epoch", "step"]
    ema_decay: float | None
    shuffle: bool
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_interval: float
    resume: bool
    progress: bool
    on_epoch_end: Callable[[EpochEnd], Any] | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs", "validate_every", "patience"):
            _check_whole(name, getattr(self, name), optional=name == "patience")
        _check_range("min_delta", self.min_delta, 0.0, math.inf)
        _check_range("checkpoint_interval", self.checkpoint_interval, 0.0, math.inf)
        if self.clip_norm is not None:
            _check_range("clip_norm", self.clip_norm, 0.0, math.inf, above=True)
        if self.ema_decay is not None:
            _check_range("ema_decay", self.ema_decay, 0.0, 1.0)
        if self.scheduler_interval not in ("epoch", "step"):
            raise ValueError(
                f"scheduler_interval: expected 'epoch' or 'step', got {self.scheduler_interval!r}"
            )
        for name in ("optimizer", "scheduler", "on_epoch_end"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name}: expected a function that makes or takes one, got {value}")

    def make_optimizer(self, parameters: Sequence[Tensor]) -> Optimizer:
        """The optimizer of these parameters.

        Raises:
            TypeError: if it is none of torch's.
            ValueError: if its step needs a closure.
        """
        optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "optimizer: expected a function that makes a torch.optim.Optimizer, got one that "
                f"makes {type(optimizer).__name__}"
            )
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                "optimizer: expected one that steps on one gradient, such as torch.optim.Adam, got "
                f"{type(optimizer).__name__}, whose step needs a closure"
            )
        return optimizer

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The schedule of this optimizer, if there is one.

        Raises:
            ValueError: if it waits for a loss, which is known after an epoch, after each step.
        """
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau) and self.scheduler_interval == "step":
            raise ValueError(
                "scheduler_interval: expected 'epoch' for ReduceLROnPlateau, got 'step'"
            )
        return scheduler


def _check_whole(name: str, value: Any, optional: bool) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def _check_range(name: str, value: float, low: float, high: float, above: bool = False) -> None:
    if not (low < value < high if above else low <= value < high):
        sign = "(" if above else "["
        raise ValueError(f"{name}: expected a number in {sign}{low}, {high}), got {value}")
