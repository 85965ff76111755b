"""A sequence of transforms inside a program.

Flows are given as lists that mix modules (bijections with parameters), plain transforms of torch,
inverses and compositions. A chain registers the modules wherever they hide, moves and saves the
tensors of the plain ones along (a permutation drawn at random, say), and conditions all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform
from torch.distributions.transforms import _InverseTransform

from pyrogen.transforms._bijection import Bijection, Inverse
from pyrogen.transforms._moved import Held

__all__ = ["Chain"]


class Chain(nn.Module):
    """Transforms in the order in which they are applied to the base.

    Args:
        transforms: one or several of torch, Pyro or PyroGen, conditional or not. Compositions are
            flattened; the inverse of a module becomes a module.

    Attributes:
        conditional: whether any of them needs a context.

    Raises:
        TypeError: if one of them is no transform.
        ValueError: if one holds a tensor that requires a gradient outside a module, where no
            optimiser would find it.
    """

    def __init__(self, transforms: Transform | Iterable[Any]) -> None:
        super().__init__()
        if isinstance(transforms, (Transform, ConditionalTransform)):
            transforms = [transforms]
        for i, part in enumerate(part for given in transforms for part in _parts(given)):
            self.add_module(str(i), part if isinstance(part, nn.Module) else _held(part))

    def __iter__(self) -> Iterator[Any]:
        for module in self._modules.values():
            yield module() if isinstance(module, Held) else module

    def __len__(self) -> int:
        return len(self._modules)

    @property
    def conditional(self) -> bool:
        """Whether any of the transforms needs a context."""
        return any(_is_conditional(transform) for transform in self)

    def condition(self, context: Tensor | None = None) -> list[Transform]:
        """Returns the transforms, each that needs one with the context, ``[*, context_dim]``."""
        if context is None:
            return list(self)
        return [t.condition(context) if _is_conditional(t) else t for t in self]


def _held(part: Any) -> Held:
    try:
        return Held(part)
    except ValueError as error:
        raise ValueError(f"transforms: {error}; use a pyro.distributions.TransformModule") from None


def _is_conditional(transform: Any) -> bool:
    if isinstance(transform, Bijection):
        return transform.context_dim > 0
    return isinstance(transform, ConditionalTransform)


def _parts(transform: Any) -> Iterator[Any]:
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _parts(part)
    elif isinstance(transform, _InverseTransform) and _has_module(transform.inv):
        for part in reversed(list(_parts(transform.inv))):
            yield Inverse(part) if isinstance(part, TransformModule) else part.inv
    elif isinstance(transform, (Transform, ConditionalTransform)):
        yield transform
    else:
        raise TypeError(f"transforms: expected transforms, got {type(transform).__name__}")


def _has_module(transform: Any) -> bool:
    return isinstance(transform, nn.Module) or (
        isinstance(transform, ComposeTransform) and any(map(_has_module, transform.parts))
    )
