r"""Positive wave functions, whose drift is a gradient.

A ground state without nodes is :math:`\psi = e^{f}`, and its process is

.. math:: dx = \nabla f(x)\, dt + dW ,

the stationary law of which is :math:`\psi^2`. The energy is an average over that law of

.. math:: E_L = \frac{H\psi}{\psi} = V - \tfrac12 \left(\nabla^2 f + \|\nabla f\|^2\right),

which is constant if, and only if, :math:`\psi` is an eigenfunction. :class:`WaveFunction` is a sum
:math:`f = \sum_k f_k` of terms (:mod:`pyrogen.nn.wave_terms`): an envelope or orbitals, which keep
the particles together; the cusps, which make the local energy finite where charges meet; and a
symmetric network, which is smooth there and so leaves the cusps as they are.

References:
    W. L. McMillan, *Ground state of liquid He4*, 1965, doi:10.1103/PhysRev.138.A442. T. Kato, *On
    the eigenfunctions of many-particle systems in quantum mechanics*, 1957,
    doi:10.1002/cpa.3160100201.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrogen.nn._jet import Jet
from pyrogen.nn.shapes import batch_shape
from pyrogen.nn.wave_terms import Envelope, Orbitals, PairCusp, SymmetricNetwork, WaveTerm

__all__ = ["WaveFunction"]


class _WaveDerivatives(NamedTuple):
    """The logarithm of a wave function with its derivatives.

    Attributes:
        log_amplitude: ``[*]``.
        gradient: ``[*, D]``.
        laplacian: ``[*]``.
    """

    log_amplitude: Tensor
    gradient: Tensor
    laplacian: Tensor


class WaveFunction(nn.Module):
    r"""The drift :math:`\nabla \log \psi` of a positive wave function.

    Args:
        terms: of :math:`\log \psi`, all of as many particles in as many dimensions.

    Attributes:
        in_shape: ``(D,)``, the coordinates of all particles, one after the other.

    Raises:
        TypeError: if a term is none.
        ValueError: if there is no term, or terms are of different particles; on call, if the input
            does not end in ``in_shape``.

    References:
        A. Barr, W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
        arXiv:2006.09044.

    Example:
        >>> from pyrogen.nn import Envelope
        >>> oscillator = WaveFunction(Envelope(1, 3))  # exp(-|x|^2 / 2)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(oscillator(x), -x)
        True
        >>> local_energy = oscillator.local_kinetic(x) + 0.5 * x.square().sum(-1)
        >>> torch.allclose(local_energy, torch.full((5,), 1.5))
        True
    """

    def __init__(self, *terms: WaveTerm) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms: expected at least one, such as Envelope(1, 3)")
        for term in terms:
            if not isinstance(term, WaveTerm):
                raise TypeError(f"terms: expected Envelope and its like, got {type(term).__name__}")
        shapes = {(term.num_particles, term.dim) for term in terms}
        if len(shapes) > 1:
            raise ValueError(
                f"terms: expected all of the same (particles, dimensions), got {sorted(shapes)}"
            )
        ((self.num_particles, self.dim),) = shapes
        self.in_shape = self.out_shape = (self.num_particles * self.dim,)
        self.terms = nn.ModuleList(terms)

    @classmethod
    def molecule(
        cls, nuclei: Tensor, charges: Tensor, num_electrons: int = 2, width: int = 48
    ) -> WaveFunction:
        """Of one electron, or two of opposite spin, in the field of nuclei.

        Args:
            nuclei: ``[M, 3]``, in Bohr.
            charges: ``[M]``.
            num_electrons: 1 or 2.
            width: of the network.
        """
        terms: list[WaveTerm] = [Orbitals(nuclei, charges, num_electrons)]
        if num_electrons > 1:
            terms.append(PairCusp(num_electrons, 3))
        return cls(*terms, SymmetricNetwork(num_electrons, 3, centers=nuclei, width=width))

    @classmethod
    def trap(
        cls, num_particles: int, dim: int, width: int = 48, cusp: float | None = None
    ) -> WaveFunction:
        """Of particles in a trap about the origin.

        Args:
            num_particles: how many.
            dim: dimensions of space.
            width: of the network.
            cusp: slope of ``log psi`` where two particles meet; ``None`` if they do so smoothly.
        """
        terms: list[WaveTerm] = [Envelope(num_particles, dim)]
        if cusp is not None:
            terms.append(PairCusp(num_particles, dim, cusp))
        round_trap = num_particles > 1
        centers = torch.zeros(1, dim) if round_trap else None
        return cls(*terms, SymmetricNetwork(num_particles, dim, centers=centers, width=width))

    def log_amplitude(self, x: Tensor) -> Tensor:
        """``log psi``, up to a constant, of shape ``[*]`` at ``x [*, D]``."""
        return self._sum(x, Jet(x)).value

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """The drift.

        Args:
            x: ``[*, D]``.
            t: not looked at: the drift is stationary.

        Returns:
            ``[*, D]``.
        """
        return self.value_and_drift(x)[1]

    def value_and_drift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log psi [*]`` and its gradient ``[*, D]``."""
        pulled: Any = torch.func.vjp(self.log_amplitude, x)
        value, pull_back = pulled
        (drift,) = pull_back(torch.ones_like(value))
        return value, drift

    def derivatives(self, x: Tensor) -> _WaveDerivatives:
        """Value, gradient and Laplacian of ``log psi``, in one pass forwards."""
        jet = self._sum(x, Jet.at(x))
        gradient, laplacian = jet.derivatives()
        return _WaveDerivatives(jet.value, gradient.movedim(0, -1), laplacian)

    def local_kinetic(self, x: Tensor) -> Tensor:
        r""":math:`-\tfrac12 \nabla^2 \psi / \psi` of shape ``[*]`` at ``x [*, D]``."""
        _, gradient, laplacian = self.derivatives(x)
        return -0.5 * (laplacian + gradient.square().sum(-1))

    def _sum(self, x: Tensor, coordinates: Jet) -> Jet:
        batch_shape(x, self.in_shape, "WaveFunction")
        particles = coordinates.each(lambda f: f.unflatten(-1, (self.num_particles, self.dim)))
        terms: Any = self.terms
        total, *rest = (term(particles) for term in terms)
        for jet in rest:
            total = total + jet
        return total  # type: ignore[no-any-return]
