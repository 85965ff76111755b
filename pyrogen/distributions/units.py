r"""What a side of a Boltzmann machine is made of: exponential families of single units.

Given the rest of the machine, units are independent, and a unit with value :math:`x` and natural
parameter :math:`\eta` follows

.. math:: p(x) = h(x)\, e^{\phi(x) \cdot \eta - A(\eta)},

with features :math:`\phi`, base measure :math:`h` and log-partition function :math:`A`:

=============  ==============  ================  ==========================================
units          values          features          :math:`A(\eta)`
=============  ==============  ================  ==========================================
Bernoulli      0, 1            the value         :math:`\log(1 + e^\eta)`
spin           -1, 1           the value         :math:`\log 2 \cosh \eta`
Gaussian       real            the value         :math:`\sigma^2 \eta^2 / 2 + \log \sqrt{2 \pi \sigma^2}`
categorical    0 .. K-1        one of K is one   :math:`\log \sum_k e^{\eta_k}`
=============  ==============  ================  ==========================================

Gaussian units have :math:`h(x) = e^{-x^2 / 2 \sigma^2}`, so their mean is :math:`\sigma^2 \eta`.

References:
    M. Welling, M. Rosen-Zvi, G. Hinton, *Exponential family harmoniums with an application to
    information retrieval*, 2004.
"""  # noqa: E501

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrogen.distributions.spin import Spin

__all__ = [
    "BernoulliUnits",
    "CategoricalUnits",
    "GaussianUnits",
    "SpinUnits",
    "Units",
    "as_units",
]


class Units(ABC):
    """A kind of unit; natural parameters and features are ``[*, size]``, values ``[*, units]``."""

    discrete = True

    def num_units(self, size: int) -> int:
        """How many units have so many natural parameters.

        Raises:
            ValueError: if none has.
        """
        return size

    def size(self, num_units: int) -> int:
        """How many natural parameters so many units have."""
        return num_units

    def log_num_states(self, size: int) -> float:
        """The log of the number of states, to base 2."""
        return math.inf

    def features(self, value: Tensor, like: Tensor) -> Tensor:
        """The features of values, in the dtype of ``like``."""
        return value.to(like.dtype)

    def log_base(self, value: Tensor) -> Tensor | float:
        """The log of the base measure, summed over units."""
        return 0.0

    @abstractmethod
    def log_partition(self, natural: Tensor) -> Tensor:
        """The log-partition function, summed over units: ``[*]``."""

    @abstractmethod
    def mean(self, natural: Tensor) -> Tensor:
        """The mean of the features, the gradient of the log-partition function."""

    @abstractmethod
    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameter of a mean, the inverse of :meth:`mean`."""

    @abstractmethod
    def law(self, natural: Tensor) -> Any:
        """The distribution of the values, with one event dimension."""

    def draw(self, natural: Tensor) -> Tensor:
        """Values, drawn."""
        value: Tensor = self.law(natural).sample()
        return value

    def value(self, position: Tensor) -> Tensor:
        """Values of real numbers that stand for them."""
        return position

    def states(self, size: int, like: Tensor) -> Tensor:
        """All states of the units, ``[states, units]``."""
        raise ValueError(f"expected units with finitely many states, got {self!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class BernoulliUnits(Units):
    """Units that are 0 or 1.

    Example:
        >>> BernoulliUnits().mean(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """

    def log_num_states(self, size: int) -> float:
        """The number of states, in bits."""
        return float(size)

    def log_partition(self, natural: Tensor) -> Tensor:
        """The log-partition function, ``[*]``."""
        return softplus(natural).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        """The mean of the features."""
        return torch.sigmoid(natural)

    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameter of a mean."""
        return torch.logit(mean)

    def law(self, natural: Tensor) -> Any:
        """The law of the values."""
        return dist.Bernoulli(logits=natural).to_event(1)

    def draw(self, natural: Tensor) -> Tensor:
        """Values, drawn."""
        return (_uniform(natural) < torch.sigmoid(natural)).to(natural.dtype)

    def states(self, size: int, like: Tensor) -> Tensor:
        """All states."""
        return _bits(size, like)


class SpinUnits(Units):
    """Units that are -1 or 1.

    Example:
        >>> SpinUnits().log_partition(torch.zeros(2))  # two times log 2
        tensor(1.3863)
    """

    def log_num_states(self, size: int) -> float:
        """The number of states, in bits."""
        return float(size)

    def log_partition(self, natural: Tensor) -> Tensor:
        """The log-partition function, ``[*]``."""
        return (softplus(2 * natural) - natural).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        """The mean of the features."""
        return torch.tanh(natural)

    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameter of a mean."""
        return torch.atanh(mean)

    def law(self, natural: Tensor) -> Any:
        """The law of the values."""
        return Spin(natural).to_event(1)

    def draw(self, natural: Tensor) -> Tensor:
        """Values, drawn."""
        up = _uniform(natural) < torch.sigmoid(2 * natural)
        return 2 * up.to(natural.dtype) - 1

    def states(self, size: int, like: Tensor) -> Tensor:
        """All states."""
        return 2 * _bits(size, like) - 1


class GaussianUnits(Units):
    r"""Real units.

    Args:
        scale: the standard deviation :math:`\sigma` of a unit, given the rest of the machine.

    Raises:
        ValueError: if it is not positive.

    Example:
        >>> GaussianUnits(scale=2.0).mean(torch.ones(1))  # the variance times the parameter
        tensor([4.])
    """

    discrete = False

    def __init__(self, scale: float = 1.0) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: expected a positive number, got {scale}")
        self.scale = float(scale)

    def log_base(self, value: Tensor) -> Tensor:
        """The log of the base measure, ``[*]``."""
        return -0.5 * (value / self.scale).square().sum(-1)

    def log_partition(self, natural: Tensor) -> Tensor:
        """The log-partition function, ``[*]``."""
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.scale)
        return (0.5 * (self.scale * natural).square() + constant).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        """The mean of the features."""
        return self.scale**2 * natural

    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameter of a mean."""
        return mean / self.scale**2

    def law(self, natural: Tensor) -> Any:
        """The law of the values."""
        return dist.Normal(self.mean(natural), self.scale).to_event(1)

    def draw(self, natural: Tensor) -> Tensor:
        """Values, drawn."""
        return self.mean(natural) + self.scale * torch.randn_like(natural)

    def __repr__(self) -> str:
        return f"GaussianUnits({self.scale})"


class CategoricalUnits(Units):
    """Units of several levels, ``0 .. levels-1``, as integers; ``levels`` parameters each.

    Args:
        levels: how many.

    Raises:
        ValueError: if it is no integer above 1.

    Example:
        >>> units = CategoricalUnits(3)
        >>> units.features(torch.tensor([2, 0]), torch.zeros(()))
        tensor([0., 0., 1., 1., 0., 0.])
        >>> units.num_units(6)
        2
    """

    def __init__(self, levels: int) -> None:
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels: expected an integer above 1, got {levels!r}")
        self.levels = levels

    def num_units(self, size: int) -> int:
        """How many units."""
        if size % self.levels:
            raise ValueError(
                f"expected a multiple of {self.levels} levels of natural parameters, got {size}"
            )
        return size // self.levels

    def size(self, num_units: int) -> int:
        """How many natural parameters."""
        return num_units * self.levels

    def log_num_states(self, size: int) -> float:
        """The number of states, in bits."""
        return self.num_units(size) * math.log2(self.levels)

    def features(self, value: Tensor, like: Tensor) -> Tensor:
        """The features, ``[*, size]``."""
        levels = torch.arange(self.levels, device=value.device)
        return (value.unsqueeze(-1) == levels).to(like.dtype).flatten(-2)

    def log_partition(self, natural: Tensor) -> Tensor:
        """The log-partition function, ``[*]``."""
        return self._grouped(natural).logsumexp(-1).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        """The mean of the features."""
        return self._grouped(natural).softmax(-1).flatten(-2)

    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameter of a mean."""
        return mean.log()

    def law(self, natural: Tensor) -> Any:
        """The law of the values."""
        return dist.Categorical(logits=self._grouped(natural)).to_event(1)

    def draw(self, natural: Tensor) -> Tensor:
        """Values, drawn."""
        grouped = self._grouped(natural)
        return (grouped - torch.empty_like(grouped).exponential_().log()).argmax(-1)  # Gumbel's

    def value(self, position: Tensor) -> Tensor:
        """Values of real numbers."""
        return position.round().long()

    def states(self, size: int, like: Tensor) -> Tensor:
        """All states."""
        levels = torch.arange(self.levels, device=like.device)
        count = self.num_units(size)
        table: Tensor = torch.cartesian_prod(*[levels] * count)
        return table.reshape(-1, count)

    def _grouped(self, natural: Tensor) -> Tensor:
        grouped: Tensor = natural.unflatten(-1, (-1, self.levels))
        return grouped

    def __repr__(self) -> str:
        return f"CategoricalUnits({self.levels})"


def _uniform(like: Tensor) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device)


def _bits(size: int, like: Tensor) -> Tensor:
    codes = torch.arange(2**size, device=like.device).unsqueeze(-1)
    places = torch.arange(size, device=like.device)
    bits: Tensor = (codes >> places) & 1
    return bits.to(like.dtype)


KINDS = {
    "bernoulli": BernoulliUnits,
    "spin": SpinUnits,
    "gaussian": GaussianUnits,
}


def as_units(units: Any, name: str = "units") -> Units:
    """Units, given as such or by name.

    Raises:
        ValueError: if they are neither.
    """
    if isinstance(units, Units):
        return units
    if isinstance(units, str) and units in KINDS:
        made: Units = KINDS[units]()
        return made
    raise ValueError(
        f"{name}: expected one of {sorted(KINDS)}, or units such as CategoricalUnits(17), got "
        f"{units!r}"
    )
