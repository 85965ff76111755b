"""The two errors of PyroGen that are not a plain ``ValueError`` or ``TypeError``."""

from __future__ import annotations

__all__ = ["GraphError", "NonFiniteError"]


class GraphError(RuntimeError):
    """A program cannot be captured as a pure tensor function.

    Raised while a program is traced, when Python reads a value that differs from call to call (a
    branch on a sample, a shape that depends on data). The message names the sample sites that the
    value depends on, and the way out.
    """


class NonFiniteError(ArithmeticError):
    """A loss, energy or log-probability became infinite or NaN.

    Attributes:
        site: name of the first sample site that is not finite, or ``None`` where each site is
            finite and only their sum is not.
        step: number of the optimisation or sampling step, counted from 0, or ``None``.
    """

    def __init__(self, message: str, site: str | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.site = site
        self.step = step

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, str | None, int | None]]:
        return type(self), (str(self), self.site, self.step)
