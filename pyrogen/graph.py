r"""A Pyro program as a pure tensor function.

Pyro interprets a program anew at every call: each ``sample`` statement walks a stack of handlers,
which costs more than the arithmetic of a small model and stops any compiler. But a program whose
*structure* is static does the same tensor operations each time. This module runs it once, with its
handlers, while ``make_fx`` writes down the operations that reach ATen, below handlers and below
autograd. What is left is a graph

.. math:: (\theta, x, \varepsilon) \mapsto \text{outputs},

of the tensors :math:`\theta` that the program reads from outside (parameters, buffers, closed-over
data), its arguments :math:`x` and torch's random numbers :math:`\varepsilon`. The graph is compiled by
TorchInductor and called in place of the program.

What holds:

* **Captured tensors are read at every call** from the module or parameter store that owns them, so
  optimiser steps, ``load_state_dict`` and a cleared store are seen. Nothing is baked in.
* **Noise is fresh at every call** and is drawn from torch's global generator in the program's order: a
  graph under one seed draws the numbers that the program under that seed draws. Capturing consumes none.
* **One graph per signature**: shapes, dtypes and devices of tensors, the values of all other arguments,
  ``training`` flags and other plain attributes of the modules involved. Any change captures anew.
* **Gradients are part of the graph** (:meth:`Captured.value_and_grad`): autograd runs while the graph is
  recorded, so ``no_grad`` regions and custom ``autograd.Function`` (straight-through estimators, implicit
  reparametrisation) mean what they mean in the program.
* **Structure that depends on values cannot be captured** and raises :class:`~pyrogen.errors.GraphError`,
  naming the sites the value depends on.
* Validation of values is off inside a graph; ``prepare`` is the place for checks, once per signature.

Reference: Reed, DeVito, He, Ussery, Ansel, *torch.fx: Practical Program Capture and Transformation for
Deep Learning in Python*, 2022 (arXiv:2112.08429).
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_inf, warn_if_nan
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyrogen.errors import GraphError

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
    captured: tuple[_Slot, ...]
    attributes: tuple[tuple[dict[str, Any], str, Any], ...]
    targets: tuple[int, ...]
    structure: pytree.TreeSpec

    def read(self) -> list[Tensor] | None:
        """The captured tensors as they are now, or ``None`` if the graph no longer fits them."""
        for owner, name, value in self.attributes:
            now = owner.get(name)
            if now is not value and now != value:
                return None
        tensors = []
        for slot in self.captured:
            tensor = slot.read()
            if tensor is None or _layout(tensor) != slot.layout:
                return None
            tensors.append(tensor)
        return tensors


@dataclass(frozen=True)
class _Slot:
    """Where a captured tensor lives: ``read`` fetches what stands there now."""

    read: Callable[[], Tensor | None]
    layout: tuple[Any, ...]


class Captured:
    """A function that runs as a graph, captured once for each signature of its arguments.

    Args:
        function: takes and returns (nested) tensors; it may run Pyro programs. If it calls
            ``backward`` on a tensor, that tensor is what :meth:`value_and_grad` differentiates, else its
            one output is.
        modules: modules whose parameters, buffers and plain attributes the function reads. A tensor
            that belongs to none of them, nor to Pyro's parameter store, is remembered as the object it is.
        prepare: called with the arguments before each capture, uncompiled and with validation as it is
            set; creates lazy parameters and raises the user's errors. Its random numbers are put back.
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
        key = (differentiate, structure, *map(_signature, leaves))
        try:
            graph = self.graphs.get(key)
        except TypeError as error:
            raise TypeError(
                "arguments of a compiled program: expected tensors or hashable values, got "
                f"{[type(x).__name__ for x in leaves if not isinstance(x, Tensor)]}"
            ) from error
        captured = graph.read() if graph is not None else None
        if graph is None or captured is None:
            graph = self.graphs[key] = self._capture(differentiate, args, kwargs)
            captured = graph.read()
            assert captured is not None, "a new graph fits what it was captured from"
        return graph, captured + inputs

    def _capture(
        self, differentiate: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Graph:
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
        watch = _Watch(locals_)
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
            raise GraphError(_explain("a Python value", "a hook or an extension")) from error
    _refuse_dynamic_shapes(module)
    captured = _lift(module)
    places = {id(tensor): i for i, tensor in enumerate([*captured, *locals_])}
    if any(id(source) not in places for source in sources):
        raise GraphError(
            "the program depends on a tensor that was computed, with gradient, outside of it; "
            "compute it inside the program or pass it as an argument"
        )
    run = _compiled(module, [*captured, *inputs]) if compile else module
    owners = _owners(modules)
    return Graph(
        module=module,
        run=run,
        captured=tuple(_slot(tensor, owners) for tensor in captured),
        attributes=tuple(_attributes(modules)),
        targets=tuple(places[id(source)] for source in sources),
        structure=structure[0],
    )


def _local(tensor: Tensor, requires_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_() if requires_grad else tensor


def _signature(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), leaf


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


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


# --- Recording ----------------------------------------------------------------------------------


class _Watch(TorchFunctionMode):
    """Watches torch's functions while a program is recorded.

    It keeps, for every tensor, the names of the sites and arguments it was computed from, so that a
    forbidden read can name them; collects ``backward`` calls instead of running them; and lets
    Pyro's objectives take the value of their own loss, as a tensor.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.objectives: list[Tensor] = []
        self.sites = _NameSites(self)
        self._origins: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no id is used twice
        for i, tensor in enumerate(inputs):
            self.name(tensor, f"tensor argument {i}")

    def name(self, tensor: Tensor, name: str) -> None:
        self._alive.append(tensor)
        self._origins[id(tensor)] = frozenset([name])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            self.objectives.append(args[0])
            return None
        if func is Tensor.register_hook and _called_from(_WARNINGS):
            return None
        if func in _READS:
            return self._read(func, args, kwargs, sys._getframe(1))
        if func in _DYNAMIC or (func is Tensor.__getitem__ and _has_mask(args[1])):
            raise GraphError(self._message("the shape of a tensor", args))
        result = func(*args, **kwargs)
        self._inherit(result, args, kwargs)
        return result

    def _inherit(self, result: Any, args: Any, kwargs: Any) -> None:
        outputs = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        if outputs:
            origin = self._origin((args, kwargs))
            for output in outputs:
                self._alive.append(output)
                self._origins.setdefault(id(output), origin)

    def _origin(self, values: Any) -> frozenset[str]:
        tensors = (x for x in pytree.tree_leaves(values) if isinstance(x, Tensor))
        return frozenset().union(*(self._origins.get(id(x), frozenset()) for x in tensors))

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: Any, frame: Any) -> Any:
        """A tensor's value is wanted in Python: allowed to Pyro's objectives and to constants."""
        if frame.f_code in _WARNINGS:
            return False
        if frame.f_code in _VALIDATIONS:
            return True
        if func is Tensor.item and _is_objective(frame.f_globals.get("__name__", "")):
            return args[0].detach()
        tensors = [x for x in args if isinstance(x, Tensor)]
        made_here = all(id(x) in self._origins and not x.requires_grad for x in tensors)
        if not made_here or self._origin(args):
            raise GraphError(self._message("a Python value", args))
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            raise GraphError(self._message("a Python value", args)) from error

    def _message(self, what: str, args: tuple[Any, ...]) -> str:
        origin = ", ".join(sorted(self._origin(args)))
        frame = _user_frame()
        return _explain(
            what,
            f"{origin or 'a parameter, a buffer or an unnamed random number'} "
            f"({frame.f_code.co_filename}:{frame.f_lineno})",
        )


class _NameSites(Messenger):  # type: ignore[misc]
    """Tells a :class:`_Watch` which tensors are the values of sample sites."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            self._watch.name(msg["value"], f"site {msg['name']!r}")


_READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__array__,
    Tensor.__contains__,
    Tensor.equal,
    Tensor.allclose,
    torch.equal,
    torch.allclose,
    torch.is_nonzero,
}
_DYNAMIC = {
    torch.nonzero,
    torch.argwhere,
    torch.masked_select,
    torch.unique,
    torch.unique_consecutive,
    torch.bincount,
    Tensor.nonzero,
    Tensor.argwhere,
    Tensor.masked_select,
    Tensor.unique,
    Tensor.unique_consecutive,
    Tensor.bincount,
}
# Pyro looks for NaN in its losses; torch validates where an instance asks for it.
_WARNINGS = {warn_if_nan.__code__, warn_if_inf.__code__}
_VALIDATIONS = {
    torch.distributions.Distribution.__init__.__code__,
    torch.distributions.Distribution._validate_sample.__code__,
}


def _explain(what: str, origin: str) -> str:
    return (
        f"the structure of the program depends on {what} that differs from call to call, computed "
        f"from {origin}; expected static structure. Use tensor operations instead (torch.where, "
        "poutine.mask), or run it uncompiled (compile=False, or the objective without Compiled)"
    )


def _is_objective(module: str) -> bool:
    return module.startswith(("pyro.infer.", "pyrogen.losses"))


def _called_from(codes: set[CodeType], depth: int = 5) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and depth:
        if frame.f_code in codes:
            return True
        frame, depth = frame.f_back, depth - 1
    return False


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in parts)


def _user_frame() -> Any:
    """The innermost frame outside of torch, Pyro and this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("torch.", "pyro.", __name__)
    ):
        frame = frame.f_back
    return frame


def _refuse_dynamic_shapes(module: torch.fx.GraphModule) -> None:
    """Catches by its tag what went past the watch: operations whose output shape depends on values."""
    for node in module.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape in tags and node.target is not torch.ops.aten.index.Tensor:
            raise GraphError(
                f"the program uses {node.target}, whose output shape depends on values; expected "
                "static shapes. Use a fixed-size operation, or run it uncompiled"
            )


# --- Captured tensors ---------------------------------------------------------------------------


def _lift(module: torch.fx.GraphModule) -> list[Tensor]:
    """Turns tensors that the graph holds into its leading inputs, and returns them.

    Constants that the program itself makes (``torch.tensor(3.0)``) stay in the graph.
    """
    graph, start = module.graph, next(iter(module.graph.nodes))
    lifted: dict[int, tuple[Tensor, torch.fx.Node]] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr" or not isinstance(getattr(module, node.target), Tensor):
            continue
        if any(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        tensor = getattr(module, node.target)
        if id(tensor) not in lifted:
            with graph.inserting_before(start):
                lifted[id(tensor)] = tensor, graph.placeholder(f"captured_{len(lifted)}")
        node.replace_all_uses_with(lifted[id(tensor)][1])
        graph.erase_node(node)
    module.recompile()
    return [tensor for tensor, _ in lifted.values()]


def _owners(modules: Sequence[nn.Module]) -> dict[int, Callable[[], Tensor | None]]:
    """For each tensor in the parameter store or in a module: how to read what stands in its place."""
    owners: dict[int, Callable[[], Tensor | None]] = {}
    for root in modules:
        for part in root.modules():
            for group in (part._parameters, part._buffers):
                for name, tensor in group.items():
                    if tensor is not None:
                        owners[id(tensor)] = functools.partial(group.get, name)
    store = pyro.get_param_store()
    for name, tensor in store.named_parameters():  # the store has the last word over a module
        owners[id(tensor)] = functools.partial(_stored, store, name)
    return owners


def _stored(store: Any, name: str) -> Tensor | None:
    tensor: Tensor | None = store._params.get(name)  # the unconstrained value; no public reader
    return tensor


def _slot(tensor: Tensor, owners: dict[int, Callable[[], Tensor | None]]) -> _Slot:
    read = owners.get(id(tensor), lambda: tensor)
    return _Slot(read, _layout(tensor))


def _attributes(modules: Sequence[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """What else of the modules shapes the program: submodules, flags and numbers."""
    for root in modules:
        for part in root.modules():
            for name, child in part._modules.items():
                yield part._modules, name, child  # type: ignore[misc]
            for name, value in part.__dict__.items():
                if isinstance(value, (bool, int, float, str)):
                    yield part.__dict__, name, value


# --- Surroundings -------------------------------------------------------------------------------


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
            for buffer, value in zip(buffers, values):
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
