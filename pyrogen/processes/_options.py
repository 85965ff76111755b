"""Checks of the options of processes."""

from __future__ import annotations

import math

__all__ = ["below", "positive"]


def positive(name: str, value: float) -> float:
    """A finite number above zero."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return float(value)


def below(name: str, low: float, other: str, high: float) -> tuple[float, float]:
    """Two finite numbers, the first below the second."""
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"expected finite numbers {name} < {other}, got {low!r} and {high!r}")
    return float(low), float(high)
