"""Times several functions in turn, round after round, so that they share the machine's moods.

A single time says little on a busy machine; the ratio within a round does. Every benchmark here
prints medians over rounds, of times and of ratios.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["Remote", "answer", "ratio", "side_by_side"]


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


class Remote:
    """A function of another interpreter, called through a pipe.

    Args:
        command: starts a process that calls :func:`answer`.
    """

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        """Asks for one call and waits for its result."""
        sent, received = self._process.stdin, self._process.stdout
        if sent is None or received is None:
            raise RuntimeError("the other interpreter has no pipes")
        print(file=sent, flush=True)
        return float(received.readline())

    def close(self) -> None:
        """Ends the other interpreter."""
        self._process.communicate()


def answer(function: Callable[[], float]) -> None:
    """Answers each line of the input with the result of a call."""
    for _ in sys.stdin:
        print(function(), flush=True)
