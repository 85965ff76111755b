r"""Harmoniums: Boltzmann machines of two sides, without connections within a side.

.. math:: p(a, b) = \frac1Z\, h(a)\, h(b)\,
   e^{\phi(a) \cdot \alpha + \phi(b) \cdot \beta + \phi(a)^\top W \phi(b)}

Given one side, the units of the other are independent, with natural parameters
:math:`\beta + W^\top \phi(a)` and :math:`\alpha + W \phi(b)`. So the second side is summed out
exactly, and the first has the free energy

.. math:: F(a) = -\phi(a) \cdot \alpha - \log h(a) - A(\beta + W^\top \phi(a)), \qquad
   p(a) = e^{-F(a)} / Z,

with the log-partition function :math:`A` of the second side's units
(:mod:`pyrogen.distributions.units`). A restricted Boltzmann machine is a harmonium; so is a deep
one (odd against even layers), and an Ising model on a lattice of two colours.

References:
    P. Smolensky, *Information processing in dynamical systems: foundations of harmony theory*,
    1986. M. Welling, M. Rosen-Zvi, G. Hinton, *Exponential family harmoniums with an application to
    information retrieval*, 2004.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.nn.functional import linear

from pyrogen.distributions.energy import EnergyBased
from pyrogen.distributions.units import Units, as_units

__all__ = ["Harmonium"]

_MOST_BITS = 20
_ROWS = 2**14  # states that are enumerated at once


class Harmonium(EnergyBased):
    r"""The marginal of the first side of a harmonium, an energy-based distribution.

    Its normaliser is that of both sides together, :math:`Z = \sum_a e^{-F(a)}`.

    Args:
        weights: :math:`W`, ``[features, other_features]``.
        bias: :math:`\alpha`, ``[features]``.
        other_bias: :math:`\beta`, ``[other_features]``.
        units: of this side: ``"bernoulli"``, ``"spin"``, ``"gaussian"``, or
            :class:`~pyrogen.distributions.Units`. Categorical units have one feature a level.
        other_units: of the other side, likewise.
        sampler: draws, as for :class:`~pyrogen.distributions.EnergyBased`.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> weights = torch.tensor([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]])
        >>> rbm = Harmonium(weights, torch.zeros(3), torch.zeros(2))
        >>> v = torch.tensor([1.0, 0.0, 1.0])
        >>> rbm.free_energy(v)  # -log(1 + e^1) - log(1 + e^(-1 + 2))
        tensor(-2.6265)
        >>> rbm.other(v).mean
        tensor([0.7311, 0.7311])
        >>> rbm.exact_log_z()
        tensor(4.5548)
        >>> rbm.exact_sample((1000,)).shape
        torch.Size([1000, 3])
    """

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor,
        other_bias: Tensor,
        units: str | Units = "bernoulli",
        other_units: str | Units = "bernoulli",
        sampler: Callable[[Any, Size], Tensor] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        expected = (*bias.shape, *other_bias.shape)
        if weights.dim() != 2 or tuple(weights.shape) != expected:
            raise ValueError(
                "weights: expected [features, other_features] as bias [features] and other_bias "
                f"[other_features] have, got weights {list(weights.shape)}, bias "
                f"{list(bias.shape)}, other_bias {list(other_bias.shape)}"
            )
        self.weights, self.bias, self.other_bias = weights, bias, other_bias
        self.units = as_units(units)
        self.other_units = as_units(other_units, "other_units")
        self.units.num_units(len(bias))
        self.other_units.num_units(len(other_bias))
        super().__init__(
            self._tilt, self.units.law(bias), sampler=sampler, validate_args=validate_args
        )

    def _tilt(self, value: Tensor) -> Tensor:
        """What tilts the law of this side alone."""
        other = self.other_units.log_partition(self.other_natural(value))
        return -other - self.units.log_partition(self.bias)

    def features(self, value: Tensor) -> Tensor:
        """The features of this side's values, ``[*, features]``."""
        return self.units.features(value, self.weights)

    def other_natural(self, value: Tensor) -> Tensor:
        r"""The other side's natural parameters :math:`\beta + W^\top \phi(a)` given this one."""
        return linear(self.features(value), self.weights.T, self.other_bias)

    def natural(self, other_value: Tensor) -> Tensor:
        r"""This side's natural parameters :math:`\alpha + W \phi(b)` given the other."""
        features = self.other_units.features(other_value, self.weights)
        return linear(features, self.weights, self.bias)

    def other(self, value: Tensor) -> Any:
        """The law of the other side given this one, ``value [*, units]``."""
        return self.other_units.law(self.other_natural(value))

    def given(self, other_value: Tensor) -> Any:
        """The law of this side given the other, ``other_value [*, other_units]``."""
        return self.units.law(self.natural(other_value))

    def free_energy(self, value: Tensor, other_natural: Tensor | None = None) -> Tensor:
        """The free energy ``F(a)``, ``[*]``.

        Args:
            value: ``[*, units]``.
            other_natural: :meth:`other_natural` of it, if known.
        """
        natural = self.other_natural(value) if other_natural is None else other_natural
        own = self.features(value) @ self.bias + self.units.log_base(value)
        return -own - self.other_units.log_partition(natural)

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """Minus the free energy."""
        return -self.free_energy(value)

    def joint_energy(self, value: Tensor, other_value: Tensor) -> Tensor:
        """The energy of both sides together, minus the exponent above, ``[*]``."""
        other = self.other_units.features(other_value, self.weights)
        bases = self.units.log_base(value) + self.other_units.log_base(other_value)
        within = self.features(value) @ self.bias + bases
        return -within - (self.other_natural(value) * other).sum(-1)

    def swapped(self) -> Harmonium:
        """The same machine, seen from the other side."""
        return Harmonium(self.weights.T, self.other_bias, self.bias, self.other_units, self.units)

    def tempered(self, beta: float | Tensor, bias: Tensor | None = None) -> Harmonium:
        r"""A machine between one without connections and this one.

        Its weights are :math:`\beta W`, its bias :math:`(1 - \beta) \alpha_0 + \beta \alpha`.

        Args:
            beta: 0 for the machine without connections, 1 for this one.
            bias: :math:`\alpha_0`; by default that of this machine.
        """
        start = self.bias if bias is None else bias
        changed = start + beta * (self.bias - start)
        return Harmonium(
            beta * self.weights, changed, self.other_bias, self.units, self.other_units
        )

    def exact_log_z(self) -> Tensor:
        """The log-normaliser ``log Z``, by enumeration of the smaller side.

        Raises:
            ValueError: if that has more than 2^20 states, or infinitely many.
        """
        machine, states = self._enumerated()
        parts = [(-machine.free_energy(rows)).logsumexp(0) for rows in states.split(_ROWS)]
        return torch.stack(parts).logsumexp(0)

    def exact_sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Independent draws, by enumeration of the smaller side.

        Returns:
            ``[*sample_shape, *batch, units]``.

        Raises:
            ValueError: as for :meth:`exact_log_z`.
        """
        with torch.no_grad():
            machine, states = self._enumerated()
            log_weights = torch.cat([-machine.free_energy(rows) for rows in states.split(_ROWS)])
            shape = Size((*sample_shape, *self.batch_shape))
            index = torch.multinomial(log_weights.softmax(0), max(shape.numel(), 1), True)
            drawn = states[index].reshape(*shape, -1)
            return drawn if machine is self else self.units.draw(self.natural(drawn))

    def _enumerated(self) -> tuple[Harmonium, Tensor]:
        """The machine seen from its smaller side, and the states of that side."""
        bits = self.units.log_num_states(len(self.bias))
        other_bits = self.other_units.log_num_states(len(self.other_bias))
        if min(bits, other_bits) > _MOST_BITS:
            raise ValueError(
                f"expected a side of at most 2^{_MOST_BITS} states to enumerate, got 2^{bits:.4g} "
                f"and 2^{other_bits:.4g}; estimate log Z by diagnostics.ais"
            )
        machine = self if bits <= other_bits else self.swapped()
        return machine, machine.units.states(len(machine.bias), self.weights)
