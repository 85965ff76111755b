"""A progress bar that reads the chains only as often as it is drawn."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["Progress"]

_SECONDS = 0.2


class Progress:
    """Shows acceptance probability, step size and divergences of the last step seen.

    Args:
        total: how many steps there will be.
        disable: draw nothing.
    """

    def __init__(self, total: int, disable: bool) -> None:
        self._bar: Any = None
        self._drawn = time.monotonic()
        self._done = 0
        if not disable:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, dynamic_ncols=True)

    def step(self, stage: str, info: Any) -> None:
        """After every step."""
        self._done += 1
        if self._bar is None or time.monotonic() - self._drawn < _SECONDS:
            return
        self._draw(stage, info)

    def within(self, share: float) -> None:
        """After each part of a long step, with the share of it that is done."""
        if self._bar is not None and time.monotonic() - self._drawn >= _SECONDS:
            self._drawn = time.monotonic()
            self._bar.update(round(self._done + share, 2) - self._bar.n)

    def close(self) -> None:
        """At the end."""
        if self._bar is not None:
            self._catch_up()
            self._bar.close()

    def _draw(self, stage: str, info: Any) -> None:
        self._drawn = time.monotonic()
        self._catch_up()
        self._bar.set_description(stage, refresh=False)
        shown: dict[str, Any] = {"accept": f"{float(info.accept_prob.mean()):.2f}"}
        if hasattr(info, "step_size"):
            shown["step size"] = f"{float(info.step_size.mean()):.2e}"
        self._bar.set_postfix({**shown, "diverging": int(info.diverging.sum())})

    def _catch_up(self) -> None:
        self._bar.update(self._done - self._bar.n)
        self._bar.n = self._done  # not the sum of parts
