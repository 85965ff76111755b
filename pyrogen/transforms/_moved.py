"""Plain objects that hold tensors, moved with the module that holds them.

A ``torch.nn.Module`` moves its parameters and buffers when it is converted (``.to``, ``.double``,
``.cuda``), but distributions and transforms are plain objects.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

__all__ = ["moved", "tensors"]

T = TypeVar("T")
_HOLDERS = (Distribution, Transform, Constraint)


def moved(holder: T, fn: Callable[[Tensor], Tensor]) -> T:
    """Returns a copy of a distribution, transform or constraint with ``fn`` applied to its tensors.

    Modules inside are left as they are: they move by themselves.
    """
    return _map(holder, fn, {})  # type: ignore[no-any-return]


def tensors(holder: Any) -> Iterator[Tensor]:
    """Yields the tensors that :func:`moved` would move."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    moved(holder, note)
    yield from found


def _map(value: Any, fn: Callable[[Tensor], Tensor], memo: dict[int, Any]) -> Any:
    if isinstance(value, nn.Module) or type(value) is type:
        return value
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, weakref.ref):
        return None  # a transform's link to its inverse, which is made anew
    if type(value) in (list, tuple):
        return type(value)(_map(item, fn, memo) for item in value)
    if isinstance(value, _HOLDERS):
        if id(value) not in memo:
            memo[id(value)] = new = copy.copy(value)
            new.__dict__.update({k: _map(v, fn, memo) for k, v in vars(value).items()})
        return memo[id(value)]
    return value
