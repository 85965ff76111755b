"""The progress bar: epoch, and nats per datum."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm.auto import tqdm

_REFRESH_SECONDS = 0.5


class Progress:
    """A bar over steps, or over epochs where the number of batches is not known."""

    def __init__(self, visible: bool, max_epochs: int, num_batches: int | None) -> None:
        self._visible = visible
        self._max_epochs = max_epochs
        self._counts_steps = num_batches is not None
        self._total = max_epochs * (num_batches or 1)
        self._epoch = 0
        self._next_refresh = 0.0

    def __enter__(self) -> Progress:
        unit = "step" if self._counts_steps else "epoch"
        self._bar = tqdm(total=self._total, unit=unit, disable=not self._visible, leave=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def start(self, epoch: int, step: int) -> None:
        """Where a continued run begins."""
        self._epoch = epoch
        if self._visible:
            self._bar.initial = self._bar.n = step if self._counts_steps else epoch
            self._describe()

    def step(self, loss: float) -> None:
        """One step is done; ``loss`` in nats per datum."""
        if not self._visible:
            return
        if self._counts_steps:
            self._bar.update()
        now = time.monotonic()
        if self._epoch == 0 and now >= self._next_refresh:
            self._next_refresh = now + _REFRESH_SECONDS
            self._bar.set_postfix_str(f"train {loss:.3f} nats/datum", refresh=False)

    def end_epoch(self, train_loss: float, validation_loss: float | None) -> None:
        """One epoch is done; losses in nats per datum."""
        self._epoch += 1
        if not self._visible:
            return
        if not self._counts_steps:
            self._bar.update()
        text = f"train {train_loss:.3f}"
        if validation_loss is not None:
            text = f"{text}, validation {validation_loss:.3f}"
        self._bar.set_postfix_str(f"{text} nats/datum", refresh=False)
        self._describe()

    def _describe(self) -> None:
        number = min(self._epoch + 1, self._max_epochs)
        self._bar.set_description_str(f"epoch {number}/{self._max_epochs}", refresh=False)
