"""Runs the pure functions of a kernel on a target, captured as graphs where that is possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyrogen.errors import GraphError
from pyrogen.graph import Captured, Graph
from pyrogen.graph._nests import filled
from pyrogen.kernels._target import Target
from pyrogen.kernels._vectorize import other_words

__all__ = ["Runner"]

# Numbers per thread below which a loop is not shared among threads: a step is made of many short
# loops, and threads that meet after each of them stand still when the machine has other work.
_MIN_CHUNK = 8192


class Runner:
    """Calls ``function(potential, *tensors)`` for a kernel, each function as one graph.

    With ``compile`` the graphs are compiled. Without, they run operation by operation, and a
    program whose structure depends on values, which has no graph, is run as it is: for all chains
    at once where it can be, such as an adaptive solver, else chain by chain.

    What changes from call to call enters as tensors, nested in (named) tuples; for each value of an
    argument of another type there is a graph. A function is known by identity: give bound methods
    of one object, not a new ``lambda`` each time.

    Args:
        target: what is sampled.
        compile: as a kernel's.
        previous: the runner of an earlier run; its graphs are used again if they fit.
    """

    def __init__(self, target: Target, compile: bool, previous: Runner | None = None) -> None:
        self._target = target
        self._compile = compile
        self._captured: dict[Any, Captured] = {}
        self._calls: dict[Any, _Call] = {}
        self._eager = False
        self.on_move: Callable[[float], None] | None = None  # told the share of a draw that is done
        self._together = True  # what no graph holds may still run for all chains at once
        if previous is not None and previous._target.make_potential == target.make_potential:
            self._captured = previous._captured

    def moved(self, share: float) -> None:
        """Says how much of a long draw is done."""
        if self.on_move is not None:
            self.on_move(share)

    @property
    def target(self) -> Target:
        """What is sampled."""
        return self._target

    def __call__(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """``function(potential, *tensors)``."""
        return self._run(function, True, self._compile, tensors)

    def once(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """``function(potential, *tensors)``, for what is run too seldom to be worth compiling."""
        return self._run(function, True, False, tensors)

    def plain(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """``function(*tensors)``, for what does not need the potential."""
        return self._run(function, False, self._compile, tensors)

    def _run(
        self, function: Callable[..., Any], potential: bool, compile: bool, tensors: tuple[Any, ...]
    ) -> Any:
        if self._eager:
            return self._uncaptured(function, potential, tensors)
        leaves: list[Tensor] = []
        key = function, potential, compile, *_split(tensors, leaves)
        call = self._calls.get(key)
        if call is not None:
            return call(leaves)
        try:
            self._calls[key] = call = self._prepared(function, potential, compile, tensors)
        except GraphError as error:
            if self._compile:
                raise
            warnings.warn(f"runs without a graph, which is slow: {error}", stacklevel=2)
            self._eager = True
            return self._uncaptured(function, potential, tensors)
        return call(leaves)

    def _prepared(
        self, function: Callable[..., Any], potential: bool, compile: bool, tensors: tuple[Any, ...]
    ) -> _Call:
        key = function, potential, compile
        if key not in self._captured:
            captured = _with_potential(function, self._target) if potential else function
            self._captured[key] = Captured(captured, compile=compile)
        before = (self._target.layout, self._target.arguments) if potential else ()
        with _inductor_options(), other_words():
            graph, _ = self._captured[key]._lookup(False, (*before, *tensors), {})
        return _Call(graph, [x for x in pytree.tree_leaves(before) if isinstance(x, Tensor)])

    def _uncaptured(
        self, function: Callable[..., Any], potential: bool, tensors: tuple[Any, ...]
    ) -> Any:
        with torch.no_grad():
            if not potential:
                return function(*tensors)
            if self._together:
                try:
                    return function(self._target.potential(), *tensors)
                except GraphError:
                    self._together = False
            return function(self._target.potential(vectorized=False), *tensors)


class _Call:
    """A graph that is looked up already, with the arguments of the model that stay the same.

    Tensors that the model reads from outside are read at every call; the rest of what it reads
    there (numbers, flags) is taken to stay the same during a run.
    """

    def __init__(self, graph: Graph, arguments: Sequence[Tensor]) -> None:
        self._graph = graph
        self._arguments = [argument.contiguous() for argument in arguments]

    def __call__(self, leaves: Sequence[Tensor]) -> Any:
        """The outputs, nested as the function nests them."""
        captured = [source.reads[0]() for source in self._graph.captured]
        inputs = [leaf.contiguous() for leaf in leaves]
        return filled(self._graph.outputs, self._graph([*captured, *self._arguments, *inputs]))


def _with_potential(function: Callable[..., Any], target: Target) -> Callable[..., Any]:
    make_potential = target.make_potential

    def run(layout: Any, arguments: Any, *tensors: Any) -> Any:
        return function(make_potential(layout, arguments, True), *tensors)

    return run


def _split(nest: Any, tensors: list[Tensor]) -> Iterator[Any]:
    """Appends the tensors of a nest, and yields what a graph of it depends on besides."""
    for item in nest:
        if isinstance(item, Tensor):
            tensors.append(item)
            yield item.shape
        elif isinstance(item, tuple):
            yield from _split(item, tensors)
        else:
            yield item


def _inductor_options() -> Any:
    from torch._inductor import config

    return config.patch({"cpp.min_chunk_size": _MIN_CHUNK})
