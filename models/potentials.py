r"""Potentials of quantum mechanics, in atomic units (:math:`\hbar = m = e = 1`).

.. math:: H = -\tfrac12 \nabla^2 + V(x)

acts on functions of the coordinates :math:`x` of all particles together, one after the other, so
that :math:`n` electrons are a point :math:`x \in \mathbb R^{3n}`. Energies are in units of the
frequency for traps, in Hartree for atoms and molecules. What is known exactly of the ground state
stands with each of them.

References:
    A. Barr, W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
    arXiv:2006.09044.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Anharmonic",
    "DoubleWell",
    "Harmonic",
    "HookesAtom",
    "Molecule",
    "PoschlTeller",
    "Potential",
    "TrappedBosons",
]


class Potential(nn.Module, ABC):
    """A function ``V`` of the coordinates of all particles.

    Args:
        dim: how many coordinates there are, of all particles together.

    Attributes:
        dim: the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = _count("dim", dim)

    def forward(self, x: Tensor) -> Tensor:
        """The potential energy ``[*]`` at points ``x [*, dim]``.

        Raises:
            ValueError: if ``x`` has another number of coordinates.
        """
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(
                f"x: expected shape [*, {self.dim}] for {type(self).__name__}, got {list(x.shape)}"
            )
        return self.energy(x)

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """``V(x)`` of shape ``[*]``; ``x [*, dim]`` is checked."""


class Harmonic(Potential):
    r"""The oscillator, :math:`V = \tfrac12 \omega^2 \|x\|^2`.

    :math:`E_0 = \omega d / 2`, with :math:`\nabla \log \varphi_0 = -\omega x`.

    Args:
        dim: :math:`d`.
        frequency: :math:`\omega`.

    Raises:
        ValueError: if one of them is not positive.

    Example:
        >>> Harmonic(dim=2)(torch.tensor([[1.0, 2.0]]))
        tensor([2.5000])
    """

    def __init__(self, dim: int = 1, frequency: float = 1.0) -> None:
        super().__init__(dim)
        self.frequency = _positive("frequency", frequency)

    def energy(self, x: Tensor) -> Tensor:
        """``frequency^2 |x|^2 / 2``."""
        return 0.5 * self.frequency**2 * x.square().sum(-1)


class DoubleWell(Potential):
    r"""Two wells, :math:`V = c\, (x^2 - 1)^2`, in one dimension.

    :math:`E_0 = 0.869580918934` for :math:`c = 1`, :math:`1.400957265167` for 2 and
    :math:`2.289649549866` for 4.

    Args:
        barrier: :math:`c`, the height between the wells at :math:`\pm 1`.

    Raises:
        ValueError: if it is not positive.

    Example:
        >>> DoubleWell(barrier=2.0)(torch.tensor([[0.0], [1.0], [2.0]]))
        tensor([ 2.,  0., 18.])
    """

    def __init__(self, barrier: float = 1.0) -> None:
        super().__init__(1)
        self.barrier = _positive("barrier", barrier)

    def energy(self, x: Tensor) -> Tensor:
        """``barrier (x^2 - 1)^2``."""
        return self.barrier * (x.square() - 1).square().squeeze(-1)


class Anharmonic(Potential):
    r"""The oscillator with a quartic term, :math:`V = \sum_i \tfrac12 x_i^2 + \lambda x_i^4`.

    :math:`E_0 = 0.803770651234` for :math:`\lambda = 1`, in each dimension.

    Args:
        dim: number of coordinates.
        quartic: :math:`\lambda`.

    Raises:
        ValueError: if one of them is not positive.

    Example:
        >>> Anharmonic()(torch.tensor([[2.0]]))
        tensor([18.])
    """

    def __init__(self, dim: int = 1, quartic: float = 1.0) -> None:
        super().__init__(dim)
        self.quartic = _positive("quartic", quartic)

    def energy(self, x: Tensor) -> Tensor:
        """The sum of ``x^2 / 2 + quartic x^4``."""
        square = x.square()
        return (0.5 * square + self.quartic * square.square()).sum(-1)


class PoschlTeller(Potential):
    r"""The potential of Pöschl and Teller, :math:`V = -\tfrac12 \lambda (\lambda + 1)
    \operatorname{sech}^2 x`, in one dimension.

    :math:`E_0 = -\lambda^2 / 2`, with :math:`\nabla \log \varphi_0 = -\lambda \tanh x`.

    Args:
        depth: :math:`\lambda`.

    Raises:
        ValueError: if it is not positive.

    References:
        G. Pöschl, E. Teller, *Bemerkungen zur Quantenmechanik des anharmonischen Oszillators*,
        1933, doi:10.1007/BF01331132.

    Example:
        >>> PoschlTeller(depth=2.0)(torch.zeros(1, 1))
        tensor([-3.])
    """

    def __init__(self, depth: float = 1.0) -> None:
        super().__init__(1)
        self.depth = _positive("depth", depth)

    def energy(self, x: Tensor) -> Tensor:
        """``-depth (depth + 1) sech^2(x) / 2``."""
        # 1 - tanh^2, where cosh would overflow.
        return -0.5 * self.depth * (self.depth + 1) * (1 - x.tanh().square()).squeeze(-1)


class Molecule(Potential):
    r"""Electrons in the field of nuclei at rest,

    .. math:: V = -\sum_{i,a} \frac{Z_a}{\|r_i - R_a\|} + \sum_{i<j} \frac1{\|r_i - r_j\|}
        + \sum_{a<b} \frac{Z_a Z_b}{\|R_a - R_b\|} ,

    so that the energy is that of the molecule, the repulsion of the nuclei included. Positive wave
    functions, the only ones a drift can stand for, are right for one electron, and for two with
    opposite spins.

    Exact, or to the digits shown: hydrogen atom −0.5 Hartree, helium −2.903724, H₂⁺ at 2 Bohr
    −0.602634214, H₂ at 1.4 Bohr −1.174475714.

    Args:
        nuclei: positions ``[M, 3]``, in Bohr.
        charges: ``[M]``; a number stands for all nuclei.
        num_electrons: how many electrons.

    Attributes:
        nuclei: a buffer ``[M, 3]``.
        charges: a buffer ``[M]``.
        num_electrons: how many electrons.

    Raises:
        ValueError: if shapes do not fit, a charge is not positive, or two nuclei are at one place.

    Example:
        >>> hydrogen = Molecule.atom(charge=1.0, num_electrons=1)
        >>> hydrogen(torch.tensor([[0.0, 0.0, 2.0]]))
        tensor([-0.5000])
        >>> Molecule.diatomic(separation=1.4).nuclear_repulsion()  # of two nuclei of charge 1
        tensor(0.7143)
        >>> Molecule.diatomic(separation=2.0, num_electrons=1).dim  # H2+
        3
    """

    nuclei: Tensor
    charges: Tensor

    def __init__(
        self, nuclei: Any, charges: float | Sequence[float] | Tensor = 1.0, num_electrons: int = 1
    ) -> None:
        super().__init__(3 * _count("num_electrons", num_electrons))
        self.num_electrons = num_electrons
        places = _floating(nuclei)
        if places.dim() != 2 or places.shape[0] == 0 or places.shape[1] != 3:
            raise ValueError(f"nuclei: expected positions [M, 3], got {list(places.shape)}")
        strengths = _floating(charges).to(places.dtype)
        if strengths.dim() > 0 and strengths.shape != places.shape[:1]:
            raise ValueError(
                f"charges: expected one for each of {len(places)} nuclei, got shape "
                f"{list(strengths.shape)}"
            )
        if not (bool((strengths > 0).all()) and bool(strengths.isfinite().all())):
            raise ValueError(f"charges: expected finite numbers above 0, got {strengths.tolist()}")
        self.register_buffer("nuclei", places)
        self.register_buffer("charges", strengths.expand(len(places)).clone())
        distances = _distances(places)
        if not bool(((distances > 0) & distances.isfinite()).all()):
            raise ValueError("nuclei: expected them at finite places apart from each other")

    @classmethod
    def atom(cls, charge: float = 1.0, num_electrons: int = 1) -> Molecule:
        """One nucleus at the origin: ``atom(2, num_electrons=2)`` is helium."""
        return cls(torch.zeros(1, 3), [charge], num_electrons)

    @classmethod
    def diatomic(
        cls,
        separation: float,
        charges: float | Sequence[float] = 1.0,
        num_electrons: int = 2,
    ) -> Molecule:
        """Two nuclei on the last axis, half the separation (in Bohr) from the origin each: H₂."""
        half = 0.5 * _positive("separation", separation)
        return cls([[0.0, 0.0, -half], [0.0, 0.0, half]], charges, num_electrons)

    def nuclear_repulsion(self) -> Tensor:
        """The energy of the nuclei in each other's field, a scalar."""
        first, second = _pairs(self.charges.unsqueeze(-1))
        return ((first * second).squeeze(-1) / _distances(self.nuclei)).sum(-1)

    def energy(self, x: Tensor) -> Tensor:
        """All Coulomb energies."""
        electrons: Tensor = x.unflatten(-1, (self.num_electrons, 3))
        apart: Tensor = (electrons.unsqueeze(-2) - self.nuclei.to(x)).norm(dim=-1)
        attraction = (self.charges.to(x) / apart).sum((-2, -1))
        repulsion = _distances(electrons).reciprocal().sum(-1)
        total: Tensor = repulsion - attraction + self.nuclear_repulsion().to(x)
        return total


class HookesAtom(Potential):
    r"""Two electrons in three dimensions, held by springs, :math:`V = \tfrac12 \omega^2 (r_1^2 +
    r_2^2) + 1 / r_{12}`.

    For :math:`\omega = \tfrac12` the ground state is known: :math:`E_0 = 2` with
    :math:`\varphi_0 = (1 + \tfrac12 r_{12})\, e^{-(r_1^2 + r_2^2) / 4}`.

    Args:
        frequency: :math:`\omega`.

    Raises:
        ValueError: if it is not positive.

    References:
        M. Taut, *Two electrons in an external oscillator potential: particular analytic solutions
        of a Coulomb correlation problem*, 1993, doi:10.1103/PhysRevA.48.3561.

    Example:
        >>> HookesAtom()(torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, -1.0]]))  # 1/4 + 1/2
        tensor([0.7500])
    """

    def __init__(self, frequency: float = 0.5) -> None:
        super().__init__(6)
        self.frequency = _positive("frequency", frequency)

    def energy(self, x: Tensor) -> Tensor:
        """Springs and repulsion."""
        apart: Tensor = (x[..., :3] - x[..., 3:]).norm(dim=-1)
        return 0.5 * self.frequency**2 * x.square().sum(-1) + apart.reciprocal()


class TrappedBosons(Potential):
    r"""Particles in a harmonic trap that repel each other over a short range,

    .. math:: V = \sum_i \tfrac12 \|r_i\|^2
        + \frac{g}{(\pi s^2)^{d/2}} \sum_{i<j} e^{-\|r_i - r_j\|^2 / s^2} ,

    a contact interaction of strength :math:`g` for :math:`s \to 0`. For two particles in two
    dimensions with :math:`s = 0.5` the energy is 2.12696701 for :math:`g = 1`, 2.31198252 for 3,
    2.61686674 for 10 and 2.71532122 for 15.

    Args:
        num_particles: :math:`N`.
        coupling: :math:`g`; 0 for none.
        width: :math:`s`, in lengths of the trap.
        dim: :math:`d`, dimensions of space.

    Attributes:
        num_particles: the same.
        particle_dim: dimensions of space; the attribute ``dim`` is :math:`N d`.

    Raises:
        ValueError: if the coupling is negative or another number is not positive.

    Example:
        >>> bosons = TrappedBosons(num_particles=2, coupling=3.0)
        >>> bosons(torch.zeros(1, 4))  # g / (pi s^2)
        tensor([3.8197])
    """

    def __init__(
        self, num_particles: int, coupling: float = 1.0, width: float = 0.5, dim: int = 2
    ) -> None:
        super().__init__(_count("num_particles", num_particles) * _count("dim", dim))
        if not (coupling >= 0 and math.isfinite(coupling)):
            raise ValueError(f"coupling: expected a finite number of at least 0, got {coupling!r}")
        self.num_particles = num_particles
        self.particle_dim = dim
        self.coupling = float(coupling)
        self.width = _positive("width", width)

    def energy(self, x: Tensor) -> Tensor:
        """Trap and repulsion."""
        particles: Tensor = x.unflatten(-1, (self.num_particles, self.particle_dim))
        trap = 0.5 * x.square().sum(-1)
        height = self.coupling / (math.pi * self.width**2) ** (self.particle_dim / 2)
        squares: Tensor = _differences(particles).square().sum(-1)
        total: Tensor = trap + height * (-squares / self.width**2).exp().sum(-1)
        return total


def _pairs(points: Tensor) -> tuple[Tensor, Tensor]:
    """The two of each pair ``[*, pairs, d]`` among points ``[*, n, d]``."""
    pairs = list(combinations(range(points.shape[-2]), 2))
    if not pairs:
        return points[..., :0, :], points[..., :0, :]
    # Slices, whose gradients need no scattering.
    first = torch.stack([points[..., i, :] for i, _ in pairs], -2)
    return first, torch.stack([points[..., j, :] for _, j in pairs], -2)


def _differences(points: Tensor) -> Tensor:
    first, second = _pairs(points)
    return first - second


def _distances(points: Tensor) -> Tensor:
    lengths: Tensor = _differences(points).norm(dim=-1)
    return lengths


def _floating(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return float(value)


def _count(name: str, value: int) -> int:
    if not (isinstance(value, int) and value > 0):
        raise ValueError(f"{name}: expected a whole number above 0, got {value!r}")
    return value
