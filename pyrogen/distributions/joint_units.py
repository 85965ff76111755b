"""Units of several kinds, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyrogen.distributions.units import Units

__all__ = ["JointUnits"]


class JointUnits(Units):
    """Several kinds of unit, side by side, such as the even layers of a deep Boltzmann machine.

    Values are reals, whatever the parts have: levels among them are whole numbers.

    Args:
        parts: pairs of a kind of unit and how many of it.

    Raises:
        ValueError: if there is none.

    Example:
        >>> from pyrogen.distributions import BernoulliUnits, CategoricalUnits
        >>> units = JointUnits([(CategoricalUnits(3), 2), (BernoulliUnits(), 4)])
        >>> units.size(6)
        10
        >>> levels, binary = units.split(torch.zeros(5, 6))
        >>> levels.shape, levels.dtype, binary.shape
        (torch.Size([5, 2]), torch.int64, torch.Size([5, 4]))
    """

    def __init__(self, parts: Sequence[tuple[Units, int]]) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise ValueError("parts: expected at least one kind of unit, got none")
        self.discrete = all(units.discrete for units, _ in self.parts)

    def num_units(self, size: int) -> int:
        """How many units."""
        if size != sum(self._sizes):
            raise ValueError(f"expected {sum(self._sizes)} natural parameters, got {size}")
        return sum(self._counts)

    def size(self, num_units: int) -> int:
        """How many natural parameters."""
        if num_units != sum(self._counts):
            raise ValueError(f"expected {sum(self._counts)} units, got {num_units}")
        return sum(self._sizes)

    def log_num_states(self, size: int) -> float:
        """The number of states, in bits."""
        return sum(u.log_num_states(n) for (u, _), n in zip(self.parts, self._sizes, strict=True))

    def split(self, value: Tensor) -> list[Tensor]:
        """The values of each part, in its own dtype."""
        pieces = value.split(self._counts, -1)
        return [u.value(x) for (u, _), x in zip(self.parts, pieces, strict=True)]

    def join(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """The values of all parts, in the dtype of ``like``."""
        return torch.cat([value.to(like.dtype) for value in values], -1)

    def split_natural(self, natural: Tensor) -> list[Tensor]:
        """The natural parameters of each part."""
        return list(natural.split(self._sizes, -1))

    def features(self, value: Tensor, like: Tensor) -> Tensor:
        """The features, ``[*, size]``."""
        each = zip(self.parts, self.split(value), strict=True)
        return torch.cat([u.features(x, like) for (u, _), x in each], -1)

    def log_base(self, value: Tensor) -> Tensor | float:
        """The log of the base measure, ``[*]``."""
        each = zip(self.parts, self.split(value), strict=True)
        return sum((u.log_base(x) for (u, _), x in each), 0.0)

    def log_partition(self, natural: Tensor) -> Tensor:
        """The log-partition function, ``[*]``."""
        terms = [u.log_partition(eta) for u, eta in self.each(natural)]
        return torch.stack(terms).sum(0)

    def mean(self, natural: Tensor) -> Tensor:
        """The mean of the features."""
        return torch.cat([u.mean(eta) for u, eta in self.each(natural)], -1)

    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameter of a mean."""
        return torch.cat([u.natural(m) for u, m in self.each(mean)], -1)

    def law(self, natural: Tensor) -> Any:
        """The law of the values."""
        return _JointLaw(self, natural)

    def draw(self, natural: Tensor) -> Tensor:
        """Values, drawn."""
        return self.join([u.draw(eta) for u, eta in self.each(natural)], natural)

    def states(self, size: int, like: Tensor) -> Tensor:
        """All states."""
        each = zip(self.parts, self._sizes, strict=True)
        tables = [u.states(n, like).to(like.dtype) for (u, _), n in each]
        rows = itertools.product(*tables)
        return torch.stack([torch.cat(row) for row in rows])

    def each(self, natural: Tensor) -> list[tuple[Units, Tensor]]:
        """Each kind of unit with its natural parameters."""
        pieces = self.split_natural(natural)
        return [(u, eta) for (u, _), eta in zip(self.parts, pieces, strict=True)]

    @property
    def _counts(self) -> list[int]:
        return [count for _, count in self.parts]

    @property
    def _sizes(self) -> list[int]:
        return [units.size(count) for units, count in self.parts]

    def __repr__(self) -> str:
        return f"JointUnits({list(self.parts)})"


class _JointLaw(TorchDistribution):
    """Independent units of several kinds, as one vector."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, units: JointUnits, natural: Tensor) -> None:
        self._units, self._natural = units, natural
        self._laws = [u.law(eta) for u, eta in units.each(natural)]
        event_shape = Size([sum(law.event_shape[0] for law in self._laws)])
        super().__init__(natural.shape[:-1], event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Those of the parts, side by side."""
        lengths = [law.event_shape[0] for law in self._laws]
        supports = [law.base_dist.support for law in self._laws]
        return constraints.independent(constraints.cat(supports, -1, lengths), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, ``[*]``."""
        parts = zip(self._laws, self._units.split(value), strict=True)
        return torch.stack(torch.broadcast_tensors(*[law.log_prob(x) for law, x in parts])).sum(0)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            drawn = [law.sample(Size(sample_shape)) for law in self._laws]
            return self._units.join(drawn, self._natural)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _JointLaw:
        """The same for a larger batch."""
        return _JointLaw(self._units, self._natural.expand(*batch_shape, -1))
