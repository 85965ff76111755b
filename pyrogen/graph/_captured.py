"""A function that runs as a graph, captured once for each signature of its arguments."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyrogen.errors import GraphError
from pyrogen.graph._sources import Attribute, Source, attributes_of, lift, sources_of
from pyrogen.graph._watch import Watch, explain, refuse_dynamic_shapes

__all__ = ["Captured", "Graph"]

_MANY_CAPTURES = 16


@dataclass(frozen=True)
class Graph:
    """One captured program: a pure function of tensors, for one signature.

    Attributes:
        module: the ATen operations, ``(*captured, *inputs) -> outputs``; print it with
            ``module.print_readable()``.
        run: the same function, compiled where a C++ compiler is at hand.
        captured: the tensors that the program reads from outside its arguments.
        attributes: the plain attributes of the modules, as they stood when the graph was captured.
        targets: for each gradient among the outputs, the index into ``(*captured, *inputs)`` of the
            tensor it belongs to.
        structure: how the outputs before the gradients are nested.
    """

    module: torch.fx.GraphModule
    run: Callable[..., Sequence[Tensor]]
    captured: tuple[Source, ...]
    attributes: tuple[Attribute, ...]
    targets: tuple[int, ...]
    structure: pytree.TreeSpec

    def read(self) -> list[Tensor] | None:
        """The captured tensors as they are now, or ``None`` if the graph no longer fits them."""
        if not all(attribute.holds() for attribute in self.attributes):
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
        modules: modules whose parameters, buffers and plain attributes the function reads. Tensors
            of none of them, nor of Pyro's parameter store, are kept as the objects they are.
        prepare: called with the arguments before each capture, uncompiled, with validation as it is
            set: creates lazy parameters, raises the user's errors. Its randomness is put back.
        compile: run the graph by TorchInductor (else operation by operation).

    Raises:
        GraphError: at the first call, if the structure of the function depends on values.
        TypeError: if an argument is neither a tensor nor hashable.

    Example:
        >>> weight = torch.nn.Linear(2, 1, bias=False)
        >>> square = Captured(lambda x: weight(x).square().sum(), modules=[weight], compile=False)
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
        modules: Sequence[nn.Module] = (),
        prepare: Callable[..., Any] | None = None,
        compile: bool = True,
    ) -> None:
        self.function = function
        self.modules = tuple(modules)
        self.prepare = prepare
        self.compile = compile
        self.graphs: dict[Any, Graph] = {}
        self._captures = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the function, nested as it nests them, without gradients."""
        graph, tensors = self._lookup(False, args, kwargs)
        with torch.no_grad():
            outputs = graph.run(*tensors)
        return pytree.tree_unflatten(list(outputs), graph.structure)

    def value_and_grad(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, list[Tensor], tuple[Tensor, ...]]:
        """The outputs, the leaf tensors that the objective depends on, and its gradients in them.

        Returns:
            ``(outputs, leaves, gradients)``: the outputs nested as the function nests them; the
            parameters reached (and the arguments that require a gradient); one gradient for each.
        """
        graph, tensors = self._lookup(True, args, kwargs)
        with torch.no_grad():
            outputs = graph.run(*tensors)
        count = graph.structure.num_leaves
        value = pytree.tree_unflatten(list(outputs[:count]), graph.structure)
        return value, [tensors[i] for i in graph.targets], tuple(outputs[count:])

    def _lookup(
        self, differentiate: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph, list[Tensor]]:
        """The graph for these arguments, and the tensors to run it on."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        inputs = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
        key = (differentiate, structure, *_torch_modes(), *map(_signature, leaves))
        try:
            graph = self.graphs.get(key)
        except TypeError as error:
            raise TypeError(
                "arguments of a compiled program: expected tensors or hashable values, got "
                f"{[type(x).__name__ for x in leaves if not isinstance(x, Tensor)]}"
            ) from error
        if graph is not None and (captured := graph.read()) is not None:
            return graph, captured + inputs
        graph = self.graphs[key] = self._capture(differentiate, args, kwargs)
        return graph, [source.read() for source in graph.captured] + inputs

    def _capture(self, differentiate: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        self._captures += 1
        if self._captures == _MANY_CAPTURES:
            warnings.warn(
                f"a program was captured {_MANY_CAPTURES} times, which is slow: shapes, Python "
                "arguments or attributes change from call to call; pass what changes as tensors",
                RuntimeWarning,
                stacklevel=4,
            )
        with _forked_rng(), _restored_buffers(self.modules):
            if self.prepare is not None:
                self.prepare(*args, **kwargs)
            return _capture(self.function, self.modules, args, kwargs, differentiate, self.compile)


def _capture(
    function: Callable[..., Any],
    modules: Sequence[nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    differentiate: bool,
    compile: bool,
) -> Graph:
    """Records ``function`` on ``(args, kwargs)`` as a :class:`Graph`."""
    leaves, arguments = pytree.tree_flatten((args, kwargs))
    inputs = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
    sources: list[Tensor] = []  # what the gradients belong to: captured tensors or local inputs
    locals_: list[Tensor] = []
    structure: list[pytree.TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        locals_[:] = [_local(x, differentiate and x.requires_grad) for x in tensors]
        watch = Watch(locals_)
        remaining = iter(locals_)
        filled = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inner_args, inner_kwargs = pytree.tree_unflatten(filled, arguments)
        with watch, watch.sites:
            outputs, spec = pytree.tree_flatten(function(*inner_args, **inner_kwargs))
            structure[:] = [spec]
            results = [torch.as_tensor(output) for output in outputs]
            if differentiate:
                objective = sum(watch.objectives) if watch.objectives else results[0]
                sources[:] = _leaves(objective)
                results += [g.contiguous() for g in torch.autograd.grad(objective, sources)]
        return [result.detach() for result in results]

    with (
        pyro.validation_enabled(False),
        torch.set_grad_enabled(differentiate),
        torch.autograd.set_multithreading_enabled(False),
    ):
        try:
            module = make_fx(flat, tracing_mode="real")(*inputs)
        except RuntimeError as error:
            if "value out of a tracing tensor" not in str(error):
                raise
            raise GraphError(explain("a Python value", "a hook or an extension")) from error
    refuse_dynamic_shapes(module)
    captured = lift(module)
    places = {id(tensor): i for i, tensor in enumerate([*captured, *locals_])}
    if any(id(source) not in places for source in sources):
        raise GraphError(
            "the program depends on a tensor that was computed, with gradient, outside of it; "
            "compute it inside the program or pass it as an argument"
        )
    run = _compiled(module, [*captured, *inputs]) if compile else module
    return Graph(
        module=module,
        run=run,
        captured=tuple(sources_of(captured, modules)),
        attributes=tuple(attributes_of(modules)),
        targets=tuple(places[id(source)] for source in sources),
        structure=structure[0],
    )


def _local(tensor: Tensor, requires_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_() if requires_grad else tensor


def _signature(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), leaf


def _torch_modes() -> tuple[Any, ...]:
    """What else decides which operations a program does."""
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return torch.get_default_dtype(), *autocast


def _leaves(objective: Any) -> list[Tensor]:
    """The leaf tensors that ``objective`` depends on, in the order autograd meets them."""
    if not isinstance(objective, Tensor) or objective.grad_fn is None:
        return []
    found, seen, stack = [], set(), [objective.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return found


@contextmanager
def _forked_rng() -> Iterator[None]:
    """Random numbers drawn inside leave torch's generators as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def _restored_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Running statistics updated inside get their values back."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                if buffer.shape == value.shape:
                    buffer.copy_(value)


def _compiled(
    module: torch.fx.GraphModule, example: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """``module`` by TorchInductor, drawing the random numbers that torch itself would draw."""
    if not _has_compiler():
        return module
    import torch._inductor

    with torch.no_grad():
        run: Callable[..., Sequence[Tensor]] = torch._inductor.compile(
            module, list(example), options={"fallback_random": True}
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
