"""Potentials against their ground states: closed forms, or diagonalisation to the digits quoted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

from pyrogen.models import (
    Anharmonic,
    DoubleWell,
    Harmonic,
    HookesAtom,
    Molecule,
    PoschlTeller,
    TrappedBosons,
)


def local_energy(potential, log_psi, x):
    """``-psi'' / (2 psi) + V`` by automatic differentiation, ``[n]``."""

    def laplacian(f):
        return lambda y: torch.func.jacrev(torch.func.grad(f))(y).trace()

    gradient = torch.func.vmap(torch.func.grad(log_psi))(x)
    curvature = torch.func.vmap(laplacian(log_psi))(x)
    return potential(x) - 0.5 * (gradient.square().sum(-1) + curvature)


def hookes_wave(x):
    apart = (x[:3] - x[3:]).norm()
    return torch.log1p(apart / 2) - x.square().sum() / 4


@pytest.mark.parametrize(
    ("potential", "log_psi", "energy"),
    [
        (Harmonic(3, frequency=1.7), lambda x: -0.85 * x.square().sum(), 1.5 * 1.7),
        (PoschlTeller(2.5), lambda x: -2.5 * x.cosh().log().sum(), -(2.5**2) / 2),
        (Molecule.atom(3.0), lambda x: -3 * x.norm(), -4.5),
        (HookesAtom(), hookes_wave, 2.0),
        (TrappedBosons(3, coupling=0.0), lambda x: -0.5 * x.square().sum(), 3.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exact_wave_function_has_a_constant_local_energy(potential, log_psi, energy):
    x = torch.randn(20, potential.dim, dtype=torch.float64)
    # Second derivatives cancel against the potential, up to rounding of terms of up to 1e3.
    torch.testing.assert_close(
        local_energy(potential, log_psi, x),
        torch.full((20,), energy, dtype=x.dtype),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    ("potential", "energy"),
    [
        (DoubleWell(1.0), 0.869580918934),
        (DoubleWell(2.0), 1.400957265167),
        (DoubleWell(4.0), 2.289649549866),
        (Anharmonic(), 0.803770651234),
    ],
)
def test_wells_have_the_energy_of_their_diagonalisation(potential, energy):
    """In the basis of the oscillator, with the powers of x as matrices."""
    size = 160
    below = np.diag(np.sqrt(np.arange(1, size) / 2), 1)
    x = below + below.T
    square = x @ x
    kinetic = np.diag(np.arange(size) + 0.5) - square / 2
    # The polynomial V = a + b x^2 + c x^4, from its values at 0, 1 and 2.
    at = potential(torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)).numpy()
    quartic = (at[2] - 4 * at[1] + 3 * at[0]) / 12
    values = at[0] * np.eye(size) + (at[1] - at[0] - quartic) * square + quartic * square @ square
    cut = size - 8  # powers of a cut matrix are wrong in its corner
    lowest = np.linalg.eigvalsh((kinetic + values)[:cut, :cut])[0]
    assert lowest == pytest.approx(energy, abs=1e-11)


@pytest.mark.parametrize(
    ("coupling", "energy"), [(1, 2.12696701), (3, 2.31198252), (10, 2.61686674), (15, 2.71532122)]
)
def test_two_bosons_have_the_energy_of_their_diagonalisation(coupling, energy):
    """One quantum of the centre of mass, and the relative motion in two dimensions."""
    size = 120
    bosons = TrappedBosons(2, coupling=coupling)
    stretch = 1 + 2 / bosons.width**2  # the interaction as part of the weight of the quadrature
    nodes, weights = scipy.special.roots_laguerre(170)
    t = nodes / stretch  # half the squared distance
    x = torch.zeros(len(t), 4, dtype=torch.float64)
    x[:, 0] = torch.as_tensor(np.sqrt(2 * t))
    interaction = (bosons(x) - 0.5 * x.square().sum(-1)).numpy()
    basis = np.stack([scipy.special.eval_laguerre(n, t) for n in range(size)])
    weights = weights / stretch * interaction * np.exp((stretch - 1) * t)
    matrix = (basis * weights) @ basis.T + np.diag(2.0 * np.arange(size) + 1)
    assert 1 + np.linalg.eigvalsh(matrix)[0] == pytest.approx(energy, abs=2e-8)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_repulsion_of_bosons_integrates_to_the_coupling(dim):
    bosons = TrappedBosons(2, coupling=3.0, width=0.4, dim=dim)
    axis = torch.linspace(-3, 3, 61, dtype=torch.float64)
    apart = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    x = torch.cat([apart, torch.zeros_like(apart)], -1)
    repulsion = bosons(x) - 0.5 * x.square().sum(-1)
    # A sum over a grid of 4 points per width converges like exp(-(pi * 0.4 / 0.1)^2).
    assert float(repulsion.sum()) * 0.1**dim == pytest.approx(3.0, abs=1e-9)


def test_the_energy_of_a_molecule_is_that_of_every_pair_of_charges():
    nuclei = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.5, 0.0], [0.3, 0.0, -2.0]]).double()
    molecule = Molecule(nuclei, [1.0, 2.0, 3.0], num_electrons=2)
    x = torch.randn(4, 6, dtype=torch.float64)
    for row, value in zip(x, molecule(x), strict=True):
        bodies = [*zip(nuclei, (1, 2, 3), strict=True), (row[:3], -1), (row[3:], -1)]
        pairs = [(a, b) for i, a in enumerate(bodies) for b in bodies[:i]]
        total = sum(p * q / float((a - b).norm()) for (a, p), (b, q) in pairs)
        assert float(value) == pytest.approx(total, abs=1e-12)


def test_hydrogen_molecules_and_ions():
    molecule = Molecule.diatomic(1.4)
    assert molecule.dim == 6
    assert float(molecule.nuclear_repulsion()) == pytest.approx(1 / 1.4)
    ion = Molecule.diatomic(2.0, num_electrons=1)
    # In the middle, 1 Bohr from either nucleus.
    assert float(ion(torch.zeros(3))) == pytest.approx(0.5 - 2)
    helium = Molecule.atom(2.0, num_electrons=2)
    x = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, -2.0])
    assert float(helium(x)) == pytest.approx(-2 - 1 + 1 / math.sqrt(5))


def test_single_precision_holds_everywhere():
    x = torch.randn(3, 6)
    for potential in (Molecule.diatomic(1.4), HookesAtom(), TrappedBosons(3)):
        assert potential(x).dtype == torch.float32
        assert potential.double()(x.double()).dtype == torch.float64
        torch.testing.assert_close(potential(x.double()).float(), potential.float()(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Harmonic(0), r"dim: expected a whole number above 0, got 0"),
        (lambda: Harmonic(1, frequency=-1), "frequency: expected a finite number above 0, got -1"),
        (lambda: DoubleWell(math.nan), "barrier: expected a finite number above 0"),
        (lambda: PoschlTeller(0), "depth: expected"),
        (lambda: Molecule([0.0, 0.0, 0.0]), r"nuclei: expected positions \[M, 3\], got \[3\]"),
        (lambda: Molecule(torch.zeros(1, 3), [1.0, 1.0]), "charges: expected one for each of 1"),
        (lambda: Molecule(torch.zeros(1, 3), [-1.0]), "charges: expected finite numbers above 0"),
        (lambda: Molecule(torch.zeros(2, 3)), "nuclei: expected them at finite places apart"),
        (lambda: Molecule.diatomic(0.0), "separation: expected a finite number above 0"),
        (lambda: Molecule.atom(1.0, num_electrons=0), "num_electrons: expected a whole number"),
        (lambda: TrappedBosons(2, coupling=-1.0), "coupling: expected a finite number of at least"),
        (lambda: TrappedBosons(2, width=0.0), "width: expected a finite number above 0"),
        (lambda: HookesAtom(0.0), "frequency: expected a finite number above 0"),
        (lambda: Anharmonic(quartic=0.0), "quartic: expected a finite number above 0"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_points_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"expected shape \[\*, 6\] for Molecule, got \[5, 3\]"):
        Molecule.diatomic(1.4)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"expected shape \[\*, 1\] for DoubleWell, got \[\]"):
        DoubleWell()(torch.zeros(()))
