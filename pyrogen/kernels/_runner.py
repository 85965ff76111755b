"""Runs the pure functions of a kernel on a target, captured as graphs where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyrogen.errors import GraphError
from pyrogen.graph import Captured
from pyrogen.kernels._target import Target

__all__ = ["Runner"]


class Runner:
    """Calls ``function(potential, *tensors)`` for a kernel, each function as one graph.

    With ``compile`` the graphs are compiled. Without, they run operation by operation, and a
    program whose structure depends on values, which has no graph, is run as it is, chain by chain.

    Args:
        target: what is sampled.
        compile: as a kernel's.
        previous: the runner of an earlier run; its graphs are used again if they fit.
    """

    def __init__(self, target: Target, compile: bool, previous: Runner | None = None) -> None:
        self._target = target
        self._compile = compile
        self._graphs: dict[Any, Captured] = {}
        self._eager = False
        if previous is not None and previous._target.make_potential == target.make_potential:
            self._graphs = previous._graphs

    def __call__(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """``function(potential, *tensors)``; nothing else that changes may enter it."""
        return self._run(function, True, self._compile, tensors)

    def once(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """As a call, for what is run too seldom to be worth compiling."""
        return self._run(function, True, False, tensors)

    def plain(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """``function(*tensors)``, without the potential and not compiled."""
        return self._run(function, False, False, tensors)

    def _run(
        self, function: Callable[..., Any], potential: bool, compile: bool, tensors: tuple[Any, ...]
    ) -> Any:
        if self._eager:
            return self._uncaptured(function, potential, tensors)
        key = function, compile
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._captured(function, potential, compile)
        try:
            return graph(self._target.layout, self._target.arguments, *tensors)
        except GraphError:
            if self._compile:
                raise
            self._eager = True
            return self._uncaptured(function, potential, tensors)

    def _captured(self, function: Callable[..., Any], potential: bool, compile: bool) -> Captured:
        make_potential = self._target.make_potential

        def run(layout: Any, arguments: Any, *tensors: Any) -> Any:
            if not potential:
                return function(*tensors)
            return function(make_potential(layout, arguments, True), *tensors)

        return Captured(run, compile=compile)

    def _uncaptured(
        self, function: Callable[..., Any], potential: bool, tensors: tuple[Any, ...]
    ) -> Any:
        with torch.no_grad():
            if not potential:
                return function(*tensors)
            return function(self._target.potential(vectorized=False), *tensors)
