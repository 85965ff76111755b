"""A nested state as a flat dictionary of tensors and a JSON tree.

Tensors are written by ``torch.save`` and read with ``weights_only=True``; all else is JSON. So
reading a checkpoint runs no code, and both files can be looked into with ordinary tools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Splits nested dicts, lists and tuples into a JSON tree and the tensors it refers to.

    Returns:
        The tree, and copies of the tensors on the CPU, under their path in the state.

    Raises:
        TypeError: if something else than numbers, strings, ``None`` and tensors is found.

    Example:
        >>> from pyrogen.training._packing import pack, unpack
        >>> tree, tensors = pack({"lr": 0.1, "moments": [torch.zeros(2)]})
        >>> sorted(tensors)
        ['moments.0']
        >>> unpack(tree, tensors)
        {'lr': 0.1, 'moments': [tensor([0., 0.])]}
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, "", tensors), tensors


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True)
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [(_key(key, path), item) for key, item in value.items()]
        return {"dict": [[key, _pack(item, _join(path, key), tensors)] for key, item in items]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, _join(path, i), tensors) for i, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint holds numbers, strings, None and tensors; expected one of these at "
        f"{path!r}, got {type(value).__name__}; choose an optimizer or scheduler whose "
        f"state_dict() holds no other objects"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that :func:`pack` was given."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    if kind == "float":
        return float(content)
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _key(key: Any, path: str) -> str | int:
    if isinstance(key, str | int):
        return key
    raise TypeError(f"expected a key of type str or int at {path!r}, got {type(key).__name__}")


def _join(path: str, key: str | int) -> str:
    return f"{path}.{key}" if path else str(key)
