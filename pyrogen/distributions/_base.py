"""What a flow or a path starts from: a shape, a fixed distribution, or a module that makes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrogen.transforms._moved import Held

__all__ = ["LearnedNormal", "as_base"]


class StandardNormal(nn.Module):
    """Independent standard normal variables of one shape, in the dtype of the module."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("_zeros", torch.zeros(tuple(event_shape)), persistent=False)
        self._zeros: Tensor

    def forward(self, *context: Tensor) -> TorchDistribution:
        """Returns the distribution, of batch shape ``[]``."""
        normal = dist.Normal(self._zeros, torch.ones_like(self._zeros))
        joined: TorchDistribution = normal.to_event(self._zeros.dim())
        return joined


class LearnedNormal(PyroModule):
    """Independent normal variables ``[D]`` whose means and deviations are learned."""

    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.std = PyroParam(std, constraints.positive)  # type: ignore[assignment]

    def forward(self) -> TorchDistribution:
        """Returns the distribution, of batch shape ``[]``."""
        normal: TorchDistribution = dist.Normal(self.mean, self.std).to_event(1)
        return normal


class _OfProgram(nn.Module):
    """The distribution of a program."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def forward(self, *context: Tensor) -> TorchDistribution:
        fn: TorchDistribution = self.program.distribution(*context)
        return fn


class _OfNetworks(nn.Module):
    """A distribution that consists of modules, whose parameters it shows."""

    def __init__(self, fn: Distribution) -> None:
        super().__init__()
        self._fn = fn
        self.parts = nn.ModuleDict(
            {name: part for name, part in vars(fn).items() if isinstance(part, nn.Module)}
        )

    def forward(self, *context: Tensor) -> Any:
        return self._fn


def as_base(base: Any) -> nn.Module:
    """Returns a module that makes the base distribution when called.

    Args:
        base: the shape of an event (an integer ``n`` means ``(n,)``), for a standard normal; a
            distribution of batch shape ``[]``, which stays as it is, or is trained with the modules
            that it consists of; a program whose ``distribution()`` returns one, such as
            :class:`pyrogen.models.Flow`; or a module, called without arguments (with the context,
            where there is one), that returns one.

    Raises:
        TypeError: if it is none of these.
        ValueError: if a distribution has a batch shape, or tensors that require a gradient; or a
            size is not positive.
    """
    if isinstance(base, nn.Module):
        return _OfProgram(base) if callable(getattr(base, "distribution", None)) else base
    if isinstance(base, Distribution):
        if base.batch_shape:
            raise ValueError(
                f"base: expected batch shape [], got {list(base.batch_shape)}; make the batch part "
                f"of the event with .to_event({len(base.batch_shape)})"
            )
        if any(isinstance(part, nn.Module) for part in vars(base).values()):
            return _OfNetworks(base)
        try:
            return Held(base)
        except ValueError as error:
            raise ValueError(
                f"base: {error}; pass a module that returns the distribution"
            ) from None
    sizes = (base,) if isinstance(base, int) else base
    if not isinstance(sizes, Sequence) or not all(isinstance(size, int) for size in sizes):
        raise TypeError(
            f"base: expected a shape, a distribution or a module, got {type(base).__name__}"
        )
    if not all(size > 0 for size in sizes):
        raise ValueError(f"base: expected positive sizes, got {tuple(sizes)}")
    return StandardNormal(sizes)
