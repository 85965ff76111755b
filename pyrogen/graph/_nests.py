"""Nests of tensors, taken apart and put together at every call of a graph.

They are torch's pytrees. Tuples, lists and dictionaries, which nearly all nests are made of, are
handled here, because torch's general way costs as much as some layers of a network.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["filled", "places_of", "taken_apart"]


def taken_apart(nest: Any, leaves: list[Any]) -> Hashable:
    """Appends the leaves of a nest, in torch's order, and returns what is left: its structure."""
    kind = type(nest)
    if issubclass(kind, Tensor):
        leaves.append(nest)
        return None
    if kind is tuple or kind is list:
        return kind, *[taken_apart(part, leaves) for part in nest]
    if kind is dict:
        return kind, *[(name, taken_apart(part, leaves)) for name, part in nest.items()]
    others, structure = pytree.tree_flatten(nest)
    leaves += others
    return structure


def places_of(structure: pytree.TreeSpec) -> Any:
    """A nest of this structure, in which each leaf is its own number."""
    return pytree.tree_unflatten(list(range(structure.num_leaves)), structure)


def filled(places: Any, leaves: Sequence[Any]) -> Any:
    """The nest with each leaf in its place."""
    kind = type(places)
    if kind is int:
        return leaves[places]
    if kind is dict:
        return {name: filled(part, leaves) for name, part in places.items()}
    if kind is list or issubclass(kind, tuple):
        parts = [filled(part, leaves) for part in places]
        return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    return pytree.tree_map(leaves.__getitem__, places)
