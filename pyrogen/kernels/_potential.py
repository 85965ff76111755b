"""The potential energy of a batch of chains, and its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrogen.kernels._vectorize import vectorized

__all__ = ["Batched", "PerChain", "Potential", "WithoutGradient"]


class Potential(ABC):
    """The potential ``U(x) = -log p(x)`` of chains ``x [chains, size]``, in unconstrained space."""

    @abstractmethod
    def value(self, position: Tensor) -> Tensor:
        """The potential energy ``[chains]`` at ``position [chains, size]``."""

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """The potential energy ``[chains]`` and its gradient ``[chains, size]``."""
        if torch.is_inference_mode_enabled():  # where all gradients would be taken for zero
            with torch.inference_mode(False):
                return self.value_and_grad(position.clone())
        with torch.enable_grad():
            at = position.detach().requires_grad_()
            value = self.value(at)
            gradient = _gradient(value.sum(), at)
        return value.detach(), gradient


class Batched(Potential):
    """A function of all chains at once, ``[chains, size] -> [chains]``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def value(self, position: Tensor) -> Tensor:
        return self._function(position).to(position.dtype)


class PerChain(Potential):
    """A function of one chain, ``[size] -> []``, vectorised over chains, or called one by one.

    Args:
        function: ``(chain, common) -> energy``.
        vectorized: for all chains at once.
        draw_common: draws what is common to all chains, once for each evaluation.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Any], Tensor],
        vectorized: bool = True,
        draw_common: Callable[[], Any] = dict,
    ) -> None:
        self._function = function
        self._vectorized = vectorized
        self._draw_common = draw_common

    def value(self, position: Tensor) -> Tensor:
        common = self._draw_common()

        def energy(chain: Tensor) -> Tensor:
            return _checked(self._function(chain, common)).to(chain.dtype)

        if self._vectorized:
            return vectorized(energy, position)
        return torch.stack([energy(chain) for chain in position])


class WithoutGradient(Potential):
    """A potential whose gradient nobody will use: zeros stand for it."""

    def __init__(self, potential: Potential) -> None:
        self._potential = potential

    def value(self, position: Tensor) -> Tensor:
        return self._potential.value(position)

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(position), torch.zeros_like(position)


def _checked(energy: Any) -> Tensor:
    if not isinstance(energy, Tensor) or energy.dim() > 0:
        got = list(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise ValueError(f"potential energy of one chain: expected a tensor of shape [], got {got}")
    return energy


def _gradient(total: Tensor, position: Tensor) -> Tensor:
    if not total.requires_grad:  # a constant
        return torch.zeros_like(position)
    (gradient,) = torch.autograd.grad(total, position, allow_unused=True, materialize_grads=True)
    return gradient
