"""A function that runs as a graph, captured once for each signature of its arguments."""

from __future__ import annotations

import functools
import pickle
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyrogen.errors import GraphError
from pyrogen.graph._broadcast import compute_before_broadcast
from pyrogen.graph._nests import filled, places_of, taken_apart
from pyrogen.graph._rewrite import rewritten
from pyrogen.graph._sources import Attribute, Source, Surroundings, is_constant, lift
from pyrogen.graph._watch import Watch, explain, refuse_dynamic_shapes

__all__ = ["Captured", "Graph"]

_MANY_CAPTURES = 16
_KEPT = 8  # graphs of one signature, for different surroundings: train and eval, frozen or not


@dataclass(frozen=True)
class Graph:
    """One captured program: a pure function of tensors, for one signature.

    Attributes:
        module: the ATen operations, ``(*captured, *inputs) -> outputs``; print it with
            ``module.print_readable()``.
        run: the same function, compiled where a C++ compiler is at hand.
        captured: the tensors that the program reads from outside its arguments.
        attributes: what else it may read there, as it stood when the graph was captured.
        targets: for each gradient among the outputs, the index into ``(*captured, *inputs)`` of the
            tensor it belongs to.
        outputs: how the outputs before the gradients are nested: the number of each in its place.
        num_outputs: how many these are.
    """

    module: torch.fx.GraphModule
    run: Callable[..., Sequence[Tensor]]
    captured: tuple[Source, ...]
    attributes: tuple[Attribute, ...]
    targets: tuple[int, ...]
    outputs: Any
    num_outputs: int

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs the graph on ``(*captured, *inputs)``."""
        with torch.no_grad():
            return self.run(*[x if x.is_leaf else x.detach() for x in tensors])

    def read(self) -> list[Tensor] | None:
        """The captured tensors as they are now, or ``None`` if the graph no longer fits them."""
        for attribute in self.attributes:
            unchanged = attribute.read() is attribute.value and not attribute.mutable
            if not (unchanged or attribute.holds()):
                return None
        tensors = []
        for source in self.captured:
            tensor = source.current()
            if tensor is None:
                return None
            tensors.append(tensor)
        return tensors


class Captured:
    """A function that runs as a graph, captured once for each signature of its arguments.

    Args:
        function: takes and returns (nested) tensors; it may run Pyro programs. What it calls
            ``backward`` on is what :meth:`value_and_grad` differentiates, else its one output is.
        prepare: called with the arguments before each capture, uncompiled, with validation as it is
            set: creates lazy parameters, raises the user's errors. Its randomness is put back.
        compile: run the graph by TorchInductor (else operation by operation).

    Raises:
        GraphError: at the first call, if the structure of the function depends on values.
        TypeError: if an argument is neither a tensor nor hashable.

    Example:
        >>> weight = torch.nn.Linear(2, 1, bias=False)
        >>> square = Captured(lambda x: weight(x).square().sum(), compile=False)
        >>> x = torch.ones(3, 2)
        >>> bool(square(x) == weight(x).square().sum())
        True
        >>> value, (parameter,), (gradient,) = square.value_and_grad(x)
        >>> parameter is weight.weight
        True
        >>> with torch.no_grad():
        ...     _ = weight.weight.zero_()  # parameters are read at every call
        >>> float(square(x))
        0.0
    """

    def __init__(
        self,
        function: Callable[..., Any],
        prepare: Callable[..., Any] | None = None,
        compile: bool = True,
    ) -> None:
        self.function = function
        self.prepare = prepare
        self.compile = compile
        self._graphs: dict[Any, list[Graph]] = {}
        self.captures = 0  # how many graphs were made so far

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the function, nested as it nests them, without gradients."""
        graph, tensors = self._lookup(False, args, kwargs)
        return filled(graph.outputs, graph(tensors))

    def value_and_grad(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, list[Tensor], tuple[Tensor, ...]]:
        """The outputs, the leaf tensors that the objective depends on, and its gradients in them.

        Returns:
            ``(outputs, leaves, gradients)``: the outputs nested as the function nests them; the
            parameters reached (and the arguments that require a gradient); one gradient for each.
        """
        graph, tensors = self._lookup(True, args, kwargs)
        outputs = graph(tensors)
        gradients = _distinct(outputs[graph.num_outputs :])
        return filled(graph.outputs, outputs), [tensors[i] for i in graph.targets], gradients

    def _lookup(
        self, differentiate: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph, list[Tensor]]:
        """The graph for these arguments, and the tensors to run it on."""
        leaves: list[Any] = []
        structure = taken_apart((args, kwargs), leaves)
        inputs = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
        key = (differentiate, structure, *_torch_modes(), *map(_signature, leaves))
        known = self._graphs.get(key, ())
        for graph in known:
            if (captured := graph.read()) is not None:
                return graph, captured + inputs
        graph = self._capture(differentiate, args, kwargs)
        self._graphs[key] = [graph, *known][:_KEPT]
        return graph, [source.reads[0]() for source in graph.captured] + inputs

    @property
    def graphs(self) -> list[Graph]:
        """The graphs made so far and still kept, latest first."""
        return [graph for graphs in reversed(self._graphs.values()) for graph in graphs]

    def _capture(self, differentiate: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        self.captures += 1
        if self.captures == _MANY_CAPTURES:
            warnings.warn(
                f"a program was captured {_MANY_CAPTURES} times, which is slow: shapes, Python "
                "arguments or attributes change from call to call; pass what changes as tensors",
                RuntimeWarning,
                stacklevel=4,
            )
        roots = [self.function, *pytree.tree_leaves((args, kwargs))]
        with _forked_rng(), Surroundings(roots) as surroundings, poutine.block():
            if self.prepare is not None:
                self.prepare(*args, **kwargs)
            recording = _Recording(self.function, args, kwargs, differentiate)
            return _graph(recording, surroundings, self.compile)


class _Recording:
    """One run of a function under ``make_fx``, and what is to be remembered of it."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        differentiate: bool,
    ) -> None:
        self._function = function
        self._differentiate = differentiate
        self._leaves, self._arguments = pytree.tree_flatten((args, kwargs))
        # New objects: an argument given twice, or closed over too, stays two inputs of the graph.
        self.inputs = [
            leaf.detach().contiguous().requires_grad_(leaf.requires_grad)
            for leaf in self._leaves
            if isinstance(leaf, Tensor)
        ]
        self.targets: list[Tensor] = []  # what the gradients belong to

    def record(self) -> torch.fx.GraphModule:
        with (
            _refused_side_effects(),
            pyro.validation_enabled(False),
            torch.set_grad_enabled(self._differentiate),
            torch.autograd.set_multithreading_enabled(False),
        ):
            try:
                return make_fx(self._run, tracing_mode="real")(*self.inputs)
            except RuntimeError as error:
                if "value out of a tracing tensor" not in str(error):
                    raise
                raise GraphError(explain("a Python value", "a hook or an extension")) from error

    def _run(self, *inputs: Tensor) -> list[Tensor]:
        self.locals = [_local(x, self._differentiate and x.requires_grad) for x in inputs]
        self.watch = Watch(self.locals)
        remaining = iter(self.locals)
        filled = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(filled, self._arguments)
        with self.watch, self.watch.sites:
            outputs, self.structure = pytree.tree_flatten(self._function(*args, **kwargs))
            results = [torch.as_tensor(detach_provenance(output)) for output in outputs]
            if self._differentiate:
                objective = torch.stack(self.watch.objectives or results[:1]).sum()
                self.targets = _leaves(objective)
                if self.targets:
                    gradients = torch.autograd.grad(objective, self.targets)
                    results += [gradient.contiguous() for gradient in gradients]
        return [result.detach() for result in results]


def _graph(recording: _Recording, surroundings: Surroundings, compile: bool) -> Graph:
    """Records a function as a :class:`Graph`."""
    module = recording.record()
    refuse_dynamic_shapes(module)
    captured = lift(module)
    recording.watch.check_captured(captured)
    places = {id(tensor): i for i, tensor in enumerate([*captured, *recording.locals])}
    if any(id(target) not in places for target in recording.targets):
        raise GraphError(
            "the program depends on a tensor that was computed, with gradient, outside of it; "
            "compute it inside the program or pass it as an argument"
        )
    example = [*captured, *(x.detach() for x in recording.inputs)]
    attributes = surroundings.attributes()  # before the compiler runs modules of its own
    return Graph(
        module=module,
        run=_compiled(module, example) if compile else module,
        captured=surroundings.sources(captured),
        attributes=attributes,
        targets=tuple(places[id(target)] for target in recording.targets),
        outputs=places_of(recording.structure),
        num_outputs=recording.structure.num_leaves,
    )


def _local(tensor: Tensor, requires_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_() if requires_grad else tensor


def _signature(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad
    if not is_constant(leaf) and not callable(leaf):
        raise TypeError(
            "arguments of a compiled program: expected tensors, numbers, strings, functions, or "
            f"lists, tuples and dictionaries of these, got {type(leaf).__name__}, which may change "
            "unseen"
        )
    return type(leaf), leaf


def _distinct(gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Equal gradients may share memory; their owners will change them in place."""
    places = [gradient.data_ptr() for gradient in gradients]
    if len(set(places)) == len(places):
        return tuple(gradients)
    first = {place: i for i, place in reversed(list(enumerate(places)))}
    return tuple(x if first[places[i]] == i else x.clone() for i, x in enumerate(gradients))


def _torch_modes() -> tuple[Any, ...]:
    """What else decides which operations a program does."""
    autocast = [
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in ("cpu", "cuda")
    ]
    return torch.get_default_dtype(), *autocast


def _leaves(objective: Tensor) -> list[Tensor]:
    """The leaf tensors that ``objective`` depends on, in the order autograd meets them."""
    found, seen, stack = [], set(), [objective.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(following for following, _ in node.next_functions)
    return found


@contextmanager
def _forked_rng() -> Iterator[None]:
    """Random numbers drawn inside leave torch's generators as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def _refused_side_effects() -> Iterator[None]:
    """What a graph would not repeat: draws of other generators, writing to the parameter store."""
    store = pyro.get_param_store()
    stored, others = store.get_state(), _other_generators()
    before = dict(store.named_parameters())
    yield
    after = dict(store.named_parameters())
    if _other_generators() != others:
        raise GraphError(
            "the program draws random numbers from Python's or NumPy's generator, which a graph "
            "cannot repeat; expected torch's. Draw them with torch, or run it uncompiled"
        )
    written = [n for n in before.keys() | after.keys() if before.get(n) is not after.get(n)]
    if written:
        store.set_state(stored)
        raise GraphError(
            f"the program writes the parameters {sorted(written)} while it runs (as a decaying "
            "average baseline does), which a graph cannot repeat; expected parameters that only "
            "the optimiser changes. Run it uncompiled"
        )


def _other_generators() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002 others draw there


def _compiled(
    module: torch.fx.GraphModule, example: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """``module`` by TorchInductor, drawing the random numbers that torch itself would draw."""
    if not _has_compiler():
        return module
    import torch._inductor

    compute_before_broadcast(module)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the compiler uses deprecated code of torch
        warnings.simplefilter("ignore", DeprecationWarning)
        # A graph whose operations change places would draw its numbers in another order.
        options = {"fallback_random": True, "reorder_for_peak_memory": False}
        # Of shapes and strides the signature has made sure.
        options |= {"size_asserts": False, "alignment_asserts": False}
        run: Callable[..., Sequence[Tensor]] = torch._inductor.compile(
            rewritten(module, example), list(example), options=options
        )
    return run


@functools.cache
def _has_compiler() -> bool:
    """Whether TorchInductor finds a C++ compiler; says so once if it does not."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        warnings.warn(
            "no C++ compiler was found, so captured programs run uncompiled, which is slower; "
            "install g++ or clang++, or set CXX",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
