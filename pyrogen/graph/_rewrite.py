r"""Operations of a graph replaced by equal ones that cost less, before it is compiled for a CPU.

The gradient of an energy in its argument, of which samplers take many, has twice the matrix
products of the energy and twice its activations. Three things are made cheaper:

* **SiLU and its derivative** are functions of one :math:`\sigma(x)`, which the compiler would
  compute twice, exponentials and all: :math:`x \sigma`, and :math:`\sigma (1 + x (1 - \sigma))`.
* **Products with few columns or few terms**, as of points in the plane. Libraries of matrix
  products are made for large ones. Written as sums of a few numbers each, these become loops that
  the compiler joins with the activation before or after.
* **Large products** are left to oneDNN.

What comes out differs by rounding alone, and random numbers are drawn in the same order. A graph
that writes to a tensor which is not its own stays as it is: to record it anew is to run it, and to
write once more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyrogen.graph._product import is_large, product

__all__ = ["rewritten"]

_FEW = 4  # terms or columns that count as few
_MANY_ROWS = 16  # below which a product is too small to matter

aten = torch.ops.aten
_Known = dict[Any, tuple[Tensor, Tensor]]


def rewritten(module: torch.fx.GraphModule, example: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The same function, recorded anew with the replacements.

    Args:
        module: a graph, ``(*tensors) -> outputs``.
        example: tensors to run it on, of the right shapes.

    Returns:
        ``module`` itself, if there is nothing to replace, or if it writes to a tensor not its own.
    """
    targets = {node.target for node in module.graph.nodes}
    table = {target: cheap for target, cheap in _replacements().items() if target in targets}
    if not table or any(x.device.type != "cpu" for x in example) or _writes(module):
        return module
    with torch.no_grad():
        return make_fx(module, decomposition_table=table, tracing_mode="real")(*example)


def _writes(module: torch.fx.GraphModule) -> bool:
    """Whether a tensor that was there before is written to, such as running statistics."""
    return any(
        _origin(written).op != "call_function"
        for node in module.graph.nodes
        for written in _written(node)
    )


def _written(node: Node) -> list[Node]:
    """What an operation writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    arguments = node.target._schema.arguments
    given = dict(zip((each.name for each in arguments), node.args, strict=False)) | node.kwargs
    changed = (each for each in arguments if each.alias_info and each.alias_info.is_write)
    found = pytree.tree_leaves([given.get(each.name) for each in changed])
    return [each for each in found if isinstance(each, Node)]


def _origin(node: Any) -> Node:
    """The node whose memory a view, or what was changed in place, shares."""
    while isinstance(node, Node) and (
        node.target is operator.getitem
        or (
            isinstance(node.target, torch._ops.OpOverload)
            and any(each.alias_info is not None for each in node.target._schema.returns)
        )
    ):
        node = node.args[0]
    found: Node = node
    return found


def _replacements() -> dict[Any, Callable[..., Any]]:
    return {**_silu(), **_products()}


def _silu() -> dict[Any, Callable[..., Any]]:
    """SiLU and its derivative, which share what they are made of."""
    known: _Known = {}  # with x itself, so that its id stays its own

    def sigmoid(x: Tensor) -> Tensor:
        key = id(x), x._version
        if key not in known:
            known[key] = x, torch.sigmoid(x)
        return known[key][1]

    def silu(x: Tensor) -> Any:
        return x * sigmoid(x) if _is_full(x) else NotImplemented

    def silu_backward(gradient: Tensor, x: Tensor) -> Any:
        if not _is_full(x):
            return NotImplemented
        share = sigmoid(x)
        return gradient * (share * (1 + x * (1 - share)))

    return {aten.silu.default: silu, aten.silu_backward.default: silu_backward}


def _products() -> dict[Any, Callable[..., Any]]:
    """Products of ``a [rows, terms]`` and ``b [terms, columns]`` with few terms or columns, or with
    all many."""
    known: _Known = {}

    def mm(a: Tensor, b: Tensor) -> Any:
        return product(a, b) if is_large(a, b) else _few(a, b, known)

    def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        if (beta, alpha) != (1, 1):
            return NotImplemented
        if is_large(a, b) and bias.shape == b.shape[1:]:
            return product(a, b, bias)
        found = _few(a, b, known)
        return found if found is NotImplemented else bias + found

    return {aten.mm.default: mm, aten.addmm.default: addmm}


def _few(a: Tensor, b: Tensor, known: _Known) -> Any:
    """The product as sums of a few numbers each, or over as many as there are terms."""
    terms, columns = b.shape
    if len(a) < _MANY_ROWS or not _is_full(a):
        return NotImplemented
    if 0 < terms <= _FEW:
        rows = _in_rows(b, known)
        return reduce(operator.add, (a[:, i : i + 1] * rows[i] for i in range(terms)))
    if 0 < columns <= _FEW:
        rows = _in_rows(b.t(), known)
        return torch.stack([(a * rows[i]).sum(1) for i in range(columns)], dim=1)
    return NotImplemented


def _in_rows(x: Tensor, known: _Known) -> Tensor:
    """``x``, row after row in memory, so that a loop along one takes many numbers at once."""
    if x.is_contiguous():
        return x
    key = x.data_ptr(), x._version, x.shape, x.stride()
    if key not in known:
        copy = x.contiguous()  # which a view keeps out of the loop
        known[key] = x, copy.as_strided(copy.shape, copy.stride())
    return known[key][1]


def _is_full(x: Tensor) -> bool:
    """Whether numbers are as precise as what is computed with them (and tell when they change)."""
    return x.dtype in (torch.float32, torch.float64) and not x.is_inference()
