"""Deep generative models as ordinary Pyro programs.

``pyrogen`` extends Pyro with what deep generative models need and Pyro lacks. Its parts are
imported on first use, so that ``import pyrogen`` is quick and leaves the state of torch and Pyro
as it was:

* :mod:`pyrogen.models`, :mod:`pyrogen.guides`: programs, to be trained with ``pyro.infer.SVI``
* :mod:`pyrogen.losses`: what SVI minimises
* :mod:`pyrogen.kernels`: Markov chain Monte Carlo with thousands of chains at once
* :mod:`pyrogen.training`: the loop for long runs
* :mod:`pyrogen.diagnostics`: results for ArviZ, and the numbers behind them
* :mod:`pyrogen.distributions`: what a sample site can be
* :mod:`pyrogen.transforms`: bijections with a log-determinant, for flows
* :mod:`pyrogen.nn`: plain networks
* :mod:`pyrogen.graph`: a program as a pure tensor function
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from types import ModuleType

__version__ = version("pyrogen")
__all__ = [
    "diagnostics",
    "distributions",
    "errors",
    "graph",
    "guides",
    "kernels",
    "losses",
    "models",
    "nn",
    "training",
    "transforms",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
