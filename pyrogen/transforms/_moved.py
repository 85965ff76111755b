"""Plain objects that hold tensors, moved and saved with the module that holds them.

A ``torch.nn.Module`` moves its parameters and buffers when it is converted (``.to``, ``.double``,
``.cuda``) and saves them in its ``state_dict``, but distributions and transforms are plain objects.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

from pyrogen.transforms._contents import modules_in

__all__ = ["Held", "moved", "tensors"]

T = TypeVar("T")
_HOLDERS = (Distribution, Transform, Constraint)


class Held(nn.Module):
    """A plain object as a module: its tensors are buffers, and modules inside of it submodules.

    Args:
        holder: a distribution or transform. A copy of it is kept.

    Raises:
        ValueError: if it holds a tensor that requires a gradient outside a module, where no
            optimiser would find it.
    """

    def __init__(self, holder: Any) -> None:
        super().__init__()
        if any(tensor.requires_grad for tensor in tensors(holder)):
            raise ValueError(
                f"expected parameters in modules, got a {type(holder).__name__} with a tensor that "
                "requires a gradient"
            )
        # As it is now: what it computes and keeps later would not follow its tensors.
        self._template = moved(holder, lambda tensor: tensor)
        self._names = [f"tensor_{i}" for i, _ in enumerate(tensors(holder))]
        for name, tensor in zip(self._names, tensors(holder), strict=True):
            self.register_buffer(name, tensor.detach().clone())
        self.modules_inside = nn.ModuleList(modules_in(holder))
        self._built: Any = None

    def forward(self, *_: Any) -> Any:
        """Returns the object, with the tensors as they are now."""
        if self._built is None:
            buffers = (getattr(self, name) for name in self._names)
            self._built = moved(self._template, lambda _: next(buffers))
        return self._built

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Held:
        self._built = None
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._built = None
        super()._load_from_state_dict(*args, **kwargs)


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
