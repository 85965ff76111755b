"""Early stopping: which epoch was best, and whether to go on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Remembers the lowest validation loss.

    Attributes:
        patience: stop after this many validations in a row without a new best, or never.
        min_delta: a new best must be lower by more than this many nats per datum.
    """

    patience: int | None = None
    min_delta: float = 0.0
    best_loss: float = float("inf")
    best_epoch: int | None = None
    num_worse: int = 0

    def update(self, epoch: int, loss: float) -> bool:
        """Takes the validation loss of an epoch in; says whether it is a new best."""
        better = loss < self.best_loss - self.min_delta
        if better:
            self.best_loss, self.best_epoch, self.num_worse = loss, epoch, 0
        else:
            self.num_worse += 1
        return better

    @property
    def stopped(self) -> bool:
        return self.patience is not None and self.num_worse >= self.patience

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]
        self.best_epoch = state["best_epoch"]
        self.num_worse = state["num_worse"]
