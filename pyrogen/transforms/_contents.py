"""What distributions and transforms are made of, at any depth."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

__all__ = ["contents", "modules_in"]

_CONSTANTS = (bool, int, float, str, type(None))
_MODULE = vars(nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}


def contents(*roots: Any) -> Iterator[Any]:
    """Yields the tensors and constants in ``roots``, those of modules and closures too."""
    stack, seen = list(roots), set()
    while stack:
        thing = stack.pop()
        if isinstance(thing, (Tensor, *_CONSTANTS)):
            yield thing
        elif id(thing) not in seen:
            seen.add(id(thing))
            stack.extend(_parts(thing))


def modules_in(root: Any) -> list[nn.Module]:
    """Returns the modules in ``root``, without those inside of other modules."""
    found: dict[int, nn.Module] = {}
    stack, seen = [root], set()
    while stack:
        thing = stack.pop()
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif id(thing) not in seen:
            seen.add(id(thing))
            stack.extend(reversed(list(_parts(thing))))
    return list(found.values())


def _parts(thing: Any) -> Iterable[Any]:
    parts: Iterable[Any] = ()
    if isinstance(thing, (list, tuple)):
        parts = thing
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, functools.partial):
        parts = thing.func, thing.args, thing.keywords
    elif isinstance(thing, MethodType):
        parts = (thing.__self__,)
    elif isinstance(thing, FunctionType):
        parts = [cell.cell_contents for cell in thing.__closure__ or ()]
    elif isinstance(thing, (nn.Module, Transform, Distribution)):
        parts = [value for name, value in vars(thing).items() if not _is_bookkeeping(name)]
    return parts


def _is_bookkeeping(name: str) -> bool:
    return name in _MODULE or name == "_memo" or name.startswith(("_inv", "_cache", "_pyro_"))
