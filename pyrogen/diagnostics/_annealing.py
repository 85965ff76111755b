"""Ways from a law whose normaliser is known to one whose normaliser is not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pyrogen.distributions import EnergyBased, Harmonium, MarkovField
from pyrogen.kernels import Kernel
from pyrogen.kernels._phase import moved

__all__ = ["FieldPath", "HarmoniumPath", "KernelPath", "Path"]


class Path(ABC):
    """Unnormalised laws ``f_beta`` of points ``x [chains, *]``, from ``beta = 0`` to 1."""

    @abstractmethod
    def log_z_of_start(self) -> Tensor:
        """The log-normaliser at 0."""

    @abstractmethod
    def start(self, num_chains: int) -> Tensor:
        """Independent draws at 0."""

    def exact(self, num_chains: int) -> Tensor:
        """Independent draws at 1.

        Raises:
            ValueError: if there is no way to make them.
        """
        raise ValueError("no exact draws")

    @abstractmethod
    def step(
        self, x: Tensor, log_weight: Tensor, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adds ``log f_after(x) - log f_before(x)`` to the weight, then moves by a transition that
        leaves ``f_after`` unchanged."""

    def step_back(
        self, x: Tensor, log_weight: Tensor, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same by the reversed transition."""
        return self.step(x, log_weight, before, after)


class HarmoniumPath(Path):
    """Weights grow from zero, while the bias changes from ``bias`` to that of the machine."""

    def __init__(self, fn: Harmonium, bias: Tensor | None) -> None:
        self.fn = fn
        self.bias = fn.bias if bias is None else bias

    def log_z_of_start(self) -> Tensor:
        """The log-normaliser at 0."""
        fn = self.fn
        other: Tensor = fn.other_units.log_partition(fn.other_bias)
        return other + fn.units.log_partition(self.bias)

    def start(self, num_chains: int) -> Tensor:
        """Independent draws at 0."""
        return self.fn.units.draw(self.bias.expand(num_chains, -1))

    def exact(self, num_chains: int) -> Tensor:
        """Independent draws at 1."""
        drawn: Tensor = self.fn.exact_sample((num_chains,))
        return drawn

    def step(
        self, x: Tensor, log_weight: Tensor, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One temperature forward."""
        fn, features = self.fn, self.fn.features(x)
        change, field = fn.bias - self.bias, features @ fn.weights
        one, other = (fn.other_bias + beta * field for beta in (before, after))
        log_ratio = (after - before) * (features @ change)
        log_ratio = log_ratio + fn.other_units.log_partition(other)
        log_ratio = log_ratio - fn.other_units.log_partition(one)
        hidden = fn.other_units.features(fn.other_units.draw(other), fn.weights)
        natural = self.bias + after * (change + hidden @ fn.weights.T)
        return fn.units.draw(natural), log_weight + log_ratio


class FieldPath(Path):
    """Couplings grow from zero, while the bias changes from ``bias`` to that of the field."""

    def __init__(self, fn: MarkovField, bias: Tensor | None) -> None:
        self.fn = fn
        self.bias = fn.bias if bias is None else bias

    def log_z_of_start(self) -> Tensor:
        """The log-normaliser at 0."""
        return self.fn.units.log_partition(self.bias)

    def start(self, num_chains: int) -> Tensor:
        """Independent draws at 0."""
        return self.fn.units.draw(self.bias.expand(num_chains, -1))

    def exact(self, num_chains: int) -> Tensor:
        """Independent draws at 1."""
        drawn: Tensor = self.fn.exact_sample((num_chains,))
        return drawn

    def step(
        self, x: Tensor, log_weight: Tensor, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One temperature forward."""
        log_weight = log_weight + self._log_ratio(x, before, after)
        return self.fn.tempered(after, self.bias).sweep(x), log_weight

    def step_back(
        self, x: Tensor, log_weight: Tensor, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One temperature, reversed."""
        log_weight = log_weight + self._log_ratio(x, before, after)
        return self.fn.tempered(after, self.bias).sweep(x, backward=True), log_weight

    def _log_ratio(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        own = self.fn.units.features(x, self.bias) @ (self.fn.bias - self.bias)
        return (after - before) * (own + self.fn.interaction(x))


class KernelPath(Path):
    """The energy grows from zero over a normalised base; a kernel moves the points."""

    def __init__(self, fn: EnergyBased, kernel: Kernel) -> None:
        self.fn = fn
        self.kernel = kernel
        self.target = kernel.target_of("x", fn)

    def log_z_of_start(self) -> Tensor:
        """The log-normaliser at 0."""
        return torch.zeros((), dtype=self.target.dtype, device=self.target.device)

    def start(self, num_chains: int) -> Tensor:
        """Independent draws at 0."""
        return self.target.start(self.fn.base.sample(torch.Size([num_chains])))

    def step(
        self, x: Tensor, log_weight: Tensor, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One temperature forward."""
        value = self.target.constrain(self.target.unflatten(x))["x"]
        log_weight = log_weight + (before - after) * self.fn.energy_at(value)
        tempered = EnergyBased(self._energy(after), self.fn.base)
        phase = moved(self.kernel, self.kernel.target_of("x", tempered), x, 1)
        return phase.position, log_weight

    def _energy(self, beta: Tensor) -> Any:
        return lambda x: beta * self.fn.energy_at(x)
