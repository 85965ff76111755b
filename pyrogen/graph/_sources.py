"""What a program reads from outside its arguments, and where to read it at the next call.

A program is followed to whatever it may read: the modules it is made of, the variables that its
functions close over or find among their globals, the objects that its methods belong to. Of these
*places*, those that hold a captured tensor are read at every call, and those that hold anything
else (a number, a flag, a list, a submodule) must hold the same as when the program was captured.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Attribute", "Source", "Surroundings", "is_constant", "lift"]

Read = Callable[[], Any]

_CONSTANTS = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum,
    torch.dtype, torch.device, torch.Size, torch.layout,
)  # fmt: skip
_CONTAINERS = (list, tuple, dict)
_LIBRARIES = ("torch", "pyro", "pyrogen", "numpy", "scipy", "functools", "contextlib", "builtins")
_INTERNAL = set(vars(nn.Module()))
_LONG = 256


@dataclass(frozen=True)
class Source:
    """A captured tensor, and the places that held it."""

    reads: tuple[Read, ...]
    layout: tuple[Any, ...]

    def current(self) -> Tensor | None:
        """The tensor there now, or ``None`` if places disagree or its layout is another."""
        tensor = self.reads[0]()
        if any(read() is not tensor for read in self.reads[1:]):
            return None
        return tensor if isinstance(tensor, Tensor) and _layout(tensor) == self.layout else None


@dataclass(frozen=True)
class Attribute:
    """What else a place held when a program was captured."""

    read: Read
    value: Any
    snapshot: Any
    mutable: bool

    def holds(self) -> bool:
        """Whether it holds the same now."""
        now = self.read()
        return (now is self.value and not self.mutable) or _snapshot(now) == self.snapshot


class Surroundings:
    """All that a program may read, noted while it runs; buffers are put back at the end.

    Modules that run are noted too, so that none is missed however it is wrapped, and capturing a
    program moves no running statistics.

    Args:
        roots: the program: functions, methods, modules, handlers around them.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._roots = list(roots)

    def __enter__(self) -> Surroundings:
        self._buffers: dict[nn.Module, dict[str, Tensor]] = {}
        for thing in list(_reachable(self._roots)):
            if isinstance(thing, nn.Module):
                self._note(thing, None)
        self._hook = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        with torch.no_grad():
            for module, values in self._buffers.items():
                for name, value in values.items():
                    buffer = module._buffers[name]
                    if buffer is None or buffer.shape != value.shape or _is_expanded(buffer):
                        continue
                    buffer.copy_(value)

    def sources(self, tensors: Sequence[Tensor]) -> tuple[Source, ...]:
        """Where each tensor is held; one that no place holds is kept as the object it is."""
        holders: dict[int, list[Read]] = {}
        for read, value in [*self._places(), *_stored()]:
            if isinstance(value, Tensor):
                holders.setdefault(id(value), []).append(read)
        return tuple(
            Source(tuple(holders.get(id(x), [functools.partial(_itself, x)])), _layout(x))
            for x in tensors
        )

    def attributes(self) -> tuple[Attribute, ...]:
        """What the places hold that is no tensor."""
        return tuple(
            Attribute(read, value, _snapshot(value), _is_mutable(value))
            for read, value in self._places()
            if not isinstance(value, Tensor)
        )

    def _places(self) -> Iterator[tuple[Read, Any]]:
        for thing in _reachable([*self._roots, *self._buffers]):
            yield from _namespace(thing)

    def _note(self, module: nn.Module, _: Any) -> None:
        if module not in self._buffers:
            buffers = module._buffers.items()
            self._buffers[module] = {n: b.detach().clone() for n, b in buffers if b is not None}


def is_constant(value: Any) -> bool:
    """Whether a value is one of a kind that cannot change."""
    return isinstance(value, _CONSTANTS)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether elements share their memory, so that no operation writes to them."""
    return any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _reachable(roots: Iterable[Any]) -> Iterator[Any]:
    """The modules, functions and owners of methods that ``roots`` lead to, each once."""
    stack, seen = list(roots), set()
    while stack:
        thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, functools.partial):
            stack += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, MethodType):
            stack += [thing.__func__, _Owner(thing.__self__)]
        elif isinstance(thing, _Owner):
            yield thing.value
            stack += _inside(thing.value)
        elif isinstance(thing, (nn.Module, FunctionType, Messenger)):
            yield thing
            stack += _inside(thing)
        elif isinstance(thing, _CONTAINERS):
            if len(thing) <= _LONG:
                stack += thing.values() if isinstance(thing, dict) else thing
        elif callable(thing) and hasattr(thing, "__dict__") and not isinstance(thing, type):
            stack.append(_Owner(thing))


@dataclass(frozen=True)
class _Owner:
    """An object whose method is called: its attributes count, whatever it is."""

    value: Any


def _inside(thing: Any) -> list[Any]:
    """The values in the places of ``thing`` that may lead further."""
    values = [value for _, value in _namespace(thing)]
    return [value for value in values if not isinstance(value, (Tensor, *_CONSTANTS))]


def _namespace(thing: Any) -> Iterator[tuple[Read, Any]]:
    """The places of one thing: ``(read, what it holds)``."""
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            yield functools.partial(_contents, cell), _contents(cell)
        if (thing.__module__ or "").split(".")[0] not in _LIBRARIES:
            for name in thing.__code__.co_names:
                if name in thing.__globals__:
                    yield functools.partial(thing.__globals__.get, name), thing.__globals__[name]
        return
    groups = [getattr(thing, "__dict__", {})]
    if isinstance(thing, nn.Module):
        groups += [thing._parameters, thing._buffers, thing._modules]
    for group in groups:
        for name, value in group.items():
            if name == "training" or not (name in _INTERNAL or name.startswith("_pyro_")):
                yield functools.partial(group.get, name), value


def _is_mutable(value: Any) -> bool:
    """Whether what is inside of a value can change, and is compared."""
    if isinstance(value, tuple):
        return any(map(_is_mutable, value))
    return isinstance(value, _CONTAINERS)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def _snapshot(value: Any, depth: int = 3) -> Any:
    """A value that compares equal as long as ``value`` is the same to a program."""
    if isinstance(value, _CONSTANTS):
        return type(value), value
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, _CONTAINERS) and len(value) <= _LONG and depth:
        items = value.items() if isinstance(value, dict) else value
        return type(value), tuple(_snapshot(item, depth - 1) for item in items)
    return id(value)


def _stored() -> Iterator[tuple[Read, Tensor]]:
    """The places of Pyro's parameter store, which holds unconstrained values."""
    store = pyro.get_param_store()
    for name, value in store.named_parameters():
        yield functools.partial(_from_store, store, name), value


def _from_store(store: Any, name: str) -> Any:
    return store._params.get(name)  # the store has no public reader of unconstrained values


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def lift(module: torch.fx.GraphModule) -> list[Tensor]:
    """Turns tensors that the graph holds into its leading inputs, and returns them.

    Constants that the program itself makes (``torch.tensor(3.0)``) stay in the graph.
    """
    graph, start = module.graph, next(iter(module.graph.nodes))
    lifted: dict[int, tuple[Tensor, torch.fx.Node]] = {}
    replaced: list[torch.fx.Node] = []
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
        replaced.append(node)
    for node in replaced:
        graph.erase_node(node)
    module.recompile()
    return [tensor for tensor, _ in lifted.values()]
