"""What a program reads from outside its arguments, and where to read it at the next call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

__all__ = ["Attribute", "Source", "attributes_of", "lift", "sources_of"]

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


def sources_of(tensors: Sequence[Tensor], modules: Sequence[nn.Module]) -> list[Source]:
    """For each tensor, its place in the parameter store or in a module, else the tensor itself."""
    places: dict[int, Read] = {}
    for part in _parts(modules):
        for group in (part.__dict__, part._buffers, part._parameters):
            for name, value in group.items():
                if isinstance(value, Tensor):
                    places[id(value)] = functools.partial(group.get, name)  # type: ignore[arg-type]
    store = pyro.get_param_store()
    for name, value in store.named_parameters():  # the store has the last word over a module
        places[id(value)] = functools.partial(_stored, store, name)
    return [Source(places.get(id(x), functools.partial(_itself, x)), _layout(x)) for x in tensors]


def attributes_of(modules: Sequence[nn.Module]) -> Iterator[Attribute]:
    """What else of the modules shapes the program: submodules, flags and numbers."""
    for part in _parts(modules):
        for name, child in part._modules.items():
            yield Attribute(part._modules, name, child)
        for name, value in part.__dict__.items():
            if value is None or isinstance(value, (bool, int, float, str)):
                yield Attribute(part.__dict__, name, value)


def _parts(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        yield from module.modules()


def _stored(store: Any, name: str) -> Tensor | None:
    tensor: Tensor | None = store._params.get(name)  # unconstrained; the store has no public reader
    return tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
