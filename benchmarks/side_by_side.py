"""Times several functions in turn, round after round, so that they share the machine's moods.

A single time says little on a busy machine; the ratio within a round does. Every benchmark here
prints medians over rounds, of times and of ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["ratio", "side_by_side"]


def side_by_side(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    calls: int = 20,
    warmup: int = 10,
) -> dict[str, list[float]]:
    """Returns the milliseconds per call of each function, one number a round."""
    for function in functions.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[name].append((time.perf_counter() - start) * 1e3 / calls)
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Returns the median over rounds of the ratio of two functions' times."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))
