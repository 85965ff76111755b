"""What few numbers have in common with many is computed once, not once for each.

A compiler that fuses all it can repeats the exponential of a time in the loop over all elements of
the state at that time. A view with strides of its own has to have its numbers in memory, so that
one after the exponential keeps it out of the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tag, Tensor
from torch.fx import GraphModule, Node

__all__ = ["compute_before_broadcast"]

_COSTLY = {
    "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "pow", "sin", "cos",
    "tan", "tanh", "sigmoid", "softplus", "log_sigmoid_forward", "erf", "erfc", "erfinv", "lgamma",
    "digamma",
}  # fmt: skip
_MANY = 8  # how many elements share a number before it is worth a place in memory


def compute_before_broadcast(module: GraphModule) -> None:
    """Changes a graph so that costly numbers are in memory before they meet many elements.

    Args:
        module: of ATen operations, with an example ``val`` of each; changed in place.
    """
    costly: set[Node] = set()  # computed within the loops of those who use them
    for node in list(module.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        inside = [n for n in node.all_input_nodes if n in costly]
        pointwise, view = Tag.pointwise in node.target.tags, _is_view(node)
        for source in {_origin(n) for n in inside if pointwise or view}:
            if _is_row(source) and _size(node) >= _MANY * _size(source):
                _put_down(source)
                costly.discard(source)
        named = str(node.target.overloadpacket).removeprefix("aten.") in _COSTLY
        if named or ((pointwise or view) and any(_origin(n) in costly for n in inside)):
            costly.add(node)
    module.recompile()


def _put_down(source: Node) -> None:
    value, users = source.meta["val"], list(source.users)
    with source.graph.inserting_after(source):
        arguments = source, list(value.shape), list(value.stride())
        kept = source.graph.call_function(torch.ops.aten.as_strided.default, arguments)
    kept.meta["val"] = value
    for user in users:
        user.replace_input_with(source, kept)


def _origin(node: Node) -> Node:
    """What ``node`` is a view of."""
    while _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _is_view(node: Node) -> bool:
    target: Any = node.target
    return isinstance(target, torch._ops.OpOverload) and any(
        result.alias_info is not None for result in target._schema.returns
    )


def _is_row(node: Node) -> bool:
    """Whether ``node`` is a number or a row of them: then its strides cannot be in doubt."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.numel() == max(value.shape, default=1)


def _size(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
