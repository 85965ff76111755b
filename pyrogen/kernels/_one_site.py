"""The one site of a model that a kernel samples, and the model run no further than to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyrogen.modes import up_to_a_constant

__all__ = ["OneSite", "distribution_at"]


class OneSite:
    """The model of one site ``"x"``.

    Args:
        fn: its distribution.
    """

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self) -> None:
        """The statement."""
        pyro.sample("x", self.fn)


def distribution_at(
    model: Any, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
) -> Any:
    """The distribution of the site ``name``; what comes after it is not run."""
    stop = _StopAt(name)
    with suppress(_Reached), poutine.block(), up_to_a_constant(), stop:
        model(*args, **kwargs)
    return stop.fn


class _Reached(Exception):  # noqa: N818 no error
    pass


class _StopAt(Messenger):
    fn: Any = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == self._name:
            self.fn = msg["fn"]
            raise _Reached
