"""What a run leaves: its history, and the programs it trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["EpochEnd", "FitResult", "History"]

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class History:
    """Losses in nats per datum, and what moved the parameters.

    Attributes:
        step_loss: training loss of each step, before its update; ``[steps]``.
        learning_rate: learning rate of each step, of the first parameter group; ``[steps]``.
        grad_norm: norm of the gradient of each step before clipping; ``[steps]``, or ``[0]`` if the
            gradient was not clipped.
        train_loss: mean training loss of each epoch, over its data; ``[epochs]``.
        validation_loss: validation loss after each epoch; ``[epochs]``, NaN where there was none.

    Example:
        >>> import numpy as np
        >>> losses = np.array([3.0, 2.0])
        >>> history = History(losses, np.full(2, 1e-3), np.zeros(0), losses[-1:], losses[-1:])
        >>> history.train_loss / np.log(2)  # in bits per datum
        array([2.88539008])
    """

    step_loss: Array
    learning_rate: Array
    grad_norm: Array
    train_loss: Array
    validation_loss: Array


@dataclass
class HistoryRecord:
    """The history while it is being made."""

    step_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)

    def state(self) -> dict[str, Tensor]:
        return {
            name: torch.tensor(values, dtype=torch.float64) for name, values in vars(self).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, values in state.items():
            setattr(self, name, values.tolist())

    def frozen(self) -> History:
        return History(**{name: np.asarray(v, np.float64) for name, v in vars(self).items()})


@dataclass(frozen=True)
class EpochEnd:
    """What ``on_epoch_end`` is told.

    Attributes:
        epoch: the epoch that has ended, counted from 0.
        step: the steps taken so far.
        train_loss: mean training loss of the epoch, in nats per datum.
        validation_loss: validation loss, in nats per datum, or ``None`` if there was none.
        learning_rate: learning rate of the epoch's last step.

    Example:
        >>> def on_epoch_end(end):
        ...     print(f"{end.epoch}: {end.train_loss:.2f} nats per datum")
        >>> on_epoch_end(EpochEnd(0, 100, 101.5, None, 1e-3))
        0: 101.50 nats per datum
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float | None
    learning_rate: float


@dataclass(frozen=True, eq=False)
class FitResult:
    """The outcome of :func:`pyrogen.training.fit`.

    Attributes:
        model: the model that was passed in, trained in place.
        guide: the guide that was passed in, trained in place.
        history: losses, learning rates and gradient norms as arrays.
        num_epochs: epochs completed.
        num_steps: optimisation steps taken.
        best_epoch: the epoch of lowest validation loss, of those that ``validate_every`` names;
            counted from 0, or ``None`` if there was none.
        stopped_early: whether ``patience`` ended the run. The parameters are then, as always with
            ``patience``, those of ``best_epoch``.
        ema: moving averages of the parameters by name, or ``None`` without ``ema_decay``.

    Example:
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyrogen.training import fit
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> result = fit(
        ...     model, AutoNormal(model), torch.ones(10), loss=pyro.infer.Trace_ELBO(),
        ...     max_epochs=5, ema_decay=0.9, progress=False,
        ... )
        >>> result.num_steps, result.best_epoch, sorted(result.ema)
        (5, None, ['guide.locs.mean_unconstrained', 'guide.scales.mean_unconstrained'])
        >>> result.load_ema()
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    history: History
    num_epochs: int
    num_steps: int
    best_epoch: int | None
    stopped_early: bool
    ema: dict[str, Tensor] | None = field(repr=False)

    @torch.no_grad()
    def load_ema(self) -> None:
        """Writes the averaged parameters into model and guide.

        Raises:
            ValueError: if no averages were kept.
        """
        if self.ema is None:
            raise ValueError("expected moving averages, got none; pass ema_decay= to fit")
        for prefix, program in (("model", self.model), ("guide", self.guide)):
            if isinstance(program, nn.Module):
                for name, parameter in program.named_parameters():
                    average = self.ema.get(f"{prefix}.{name}")
                    if average is not None:
                        parameter.copy_(average)
