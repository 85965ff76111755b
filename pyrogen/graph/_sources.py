"""What a program reads from outside its arguments, and where to read it at the next call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Attribute", "ModulesSeen", "Source", "attributes_of", "lift", "sources_of"]

Read = Callable[[], Any]


@dataclass(frozen=True)
class Source:
    """Where a captured tensor lives: ``read`` fetches what stands there now."""

    read: Read
    layout: tuple[Any, ...]

    def current(self) -> Tensor | None:
        """The tensor, or ``None`` if it is gone or laid out differently than when captured."""
        tensor = self.read()
        return tensor if tensor is not None and _layout(tensor) == self.layout else None


@dataclass(frozen=True)
class Attribute:
    """A submodule, flag or number of a module, as it was when a program was captured."""

    owner: dict[str, Any]
    name: str
    value: Any

    def holds(self) -> bool:
        now = self.owner.get(self.name)
        return now is self.value or bool(now == self.value)


class ModulesSeen:
    """Notes the modules that run inside, and puts their buffers back at the end.

    So it is known what a program reads, however it was wrapped, and running it to capture it moves
    no running statistics.
    """

    def __enter__(self) -> ModulesSeen:
        self._buffers: dict[nn.Module, dict[str, Tensor]] = {}
        self._hook = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        with torch.no_grad():
            for module, values in self._buffers.items():
                for name, value in values.items():
                    buffer = module._buffers[name]
                    if buffer is not None and buffer.shape == value.shape:
                        buffer.copy_(value)

    def __iter__(self) -> Iterator[nn.Module]:
        """The modules, with all that they hold, each once."""
        yield from dict.fromkeys(part for module in self._buffers for part in module.modules())

    def _note(self, module: nn.Module, _: Any) -> None:
        if module not in self._buffers:
            buffers = module._buffers.items()
            self._buffers[module] = {n: b.detach().clone() for n, b in buffers if b is not None}


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


def sources_of(tensors: Sequence[Tensor], modules: Iterable[nn.Module]) -> list[Source]:
    """For each tensor, its place in the parameter store or in a module, else the tensor itself."""
    places: dict[int, Read] = {}
    for part in modules:
        for group in (part.__dict__, part._buffers, part._parameters):
            for name, value in group.items():
                if isinstance(value, Tensor):
                    places[id(value)] = functools.partial(group.get, name)
    store = pyro.get_param_store()
    for name, value in store.named_parameters():  # the store has the last word over a module
        places[id(value)] = functools.partial(_stored, store, name)
    return [Source(places.get(id(x), functools.partial(_itself, x)), _layout(x)) for x in tensors]


def attributes_of(modules: Iterable[nn.Module]) -> Iterator[Attribute]:
    """What else of the modules shapes the program: submodules, flags and numbers."""
    for part in modules:
        for name, child in part._modules.items():
            yield Attribute(part._modules, name, child)
        for name, value in part.__dict__.items():
            if value is None or isinstance(value, (bool, int, float, str)):
                yield Attribute(part.__dict__, name, value)


def _stored(store: Any, name: str) -> Tensor | None:
    tensor: Tensor | None = store._params.get(name)  # unconstrained; the store has no public reader
    return tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
