"""Wave functions: derivatives against autograd, symmetry, cusps, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from pyrogen.models import HookesAtom, Molecule
from pyrogen.nn import Envelope, Orbitals, PairCusp, SymmetricNetwork, WaveFunction

DOUBLE = torch.float64
NUCLEI = torch.tensor([[0.0, 0.0, -0.7], [0.0, 0.3, 0.7]], dtype=DOUBLE)
CHARGES = torch.tensor([1.0, 2.0], dtype=DOUBLE)
MADE = {
    "hydrogen": lambda: WaveFunction.molecule(NUCLEI[:1], CHARGES[:1], 1),
    "one electron": lambda: WaveFunction.molecule(NUCLEI, CHARGES, 1),
    "two electrons": lambda: WaveFunction.molecule(NUCLEI, CHARGES, 2),
    "line": lambda: WaveFunction.trap(1, 1),
    "three bosons": lambda: WaveFunction.trap(3, 2),
    "Hooke's atom": lambda: WaveFunction.trap(2, 3, cusp=0.5),
    "exponential": lambda: WaveFunction(
        Envelope(2, 2, "exponential"), SymmetricNetwork(2, 2, num_layers=3)
    ),
}
every = pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))


def drawn(make):
    """With parameters at random, in double precision."""
    psi = make().double()
    for parameter in psi.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return psi


@every
def test_gradient_and_laplacian_are_those_of_autograd(make):
    psi = drawn(make)
    x = torch.randn(6, *psi.in_shape, dtype=DOUBLE)
    gradient = torch.func.vmap(torch.func.grad(psi.log_amplitude))(x)
    hessian = torch.stack(
        [torch.autograd.functional.hessian(psi.log_amplitude, each) for each in x]
    )
    laplacian = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
    found = psi.derivatives(x)
    torch.testing.assert_close(found.log_amplitude, psi.log_amplitude(x))
    torch.testing.assert_close(found.gradient, gradient)
    torch.testing.assert_close(found.laplacian, laplacian)
    torch.testing.assert_close(psi(x, torch.tensor(0.3)), gradient)
    value, drift = psi.value_and_drift(x)
    torch.testing.assert_close((value, drift), (found.log_amplitude, gradient))
    kinetic = -0.5 * (laplacian + gradient.square().sum(-1))
    torch.testing.assert_close(psi.local_kinetic(x), kinetic)


@every
def test_drift_trains_every_parameter(make):
    psi = drawn(make)
    x = torch.randn(5, *psi.in_shape, dtype=DOUBLE)
    psi(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in psi.parameters())


@every
def test_particles_are_alike(make):
    psi = drawn(make)
    x = torch.randn(4, psi.num_particles, psi.dim, dtype=DOUBLE)
    order = torch.randperm(psi.num_particles)
    swapped, plain = x[:, order].flatten(1), x.flatten(1)
    torch.testing.assert_close(psi.log_amplitude(swapped), psi.log_amplitude(plain))
    drift = psi(plain).unflatten(-1, (psi.num_particles, psi.dim))
    torch.testing.assert_close(psi(swapped), drift[:, order].flatten(1))


@every
def test_any_leading_dimensions(make):
    psi = drawn(make)
    x = torch.randn(2, 3, *psi.in_shape, dtype=DOUBLE)
    for method in (psi.log_amplitude, psi, psi.local_kinetic):
        torch.testing.assert_close(method(x)[1, 2], method(x[1, 2]))


def approach(places, direction, distances):
    """Places whose first particle is at a distance from where it would meet another charge."""
    x = places.expand(len(distances), -1).clone()
    x[:, :3] = x[:, :3] + distances[:, None] * direction
    return x


@pytest.mark.parametrize("meeting", ["nucleus", "other nucleus", "electrons"])
def test_local_energy_is_finite_where_charges_meet(meeting):
    """A wrong slope, off by 1e-3, would leave 1e-3 / r = 1e3 of it at the last distance."""
    psi, molecule = drawn(MADE["two electrons"]), Molecule(NUCLEI, CHARGES, 2)
    second = torch.tensor([0.4, -0.9, 0.2], dtype=DOUBLE)
    where = {"nucleus": NUCLEI[0], "other nucleus": NUCLEI[1], "electrons": second}[meeting]
    direction = torch.nn.functional.normalize(torch.randn(3, dtype=DOUBLE), dim=0)
    distances = torch.tensor([1e-4, 1e-5, 1e-6], dtype=DOUBLE)
    x = approach(torch.cat([where, second]), direction, distances)
    local = molecule(x) + psi.local_kinetic(x)
    # What is left is smooth in r, with slopes of the order of squared charges and weights.
    assert bool((local - local[-1]).abs()[:2].max() < 100 * distances[0])


def test_cusp_of_hookes_atom():
    psi, atom = drawn(MADE["Hooke's atom"]), HookesAtom()
    distances = torch.tensor([1e-4, 1e-5, 1e-6], dtype=DOUBLE)
    second = torch.tensor([0.3, 0.1, -0.5], dtype=DOUBLE)
    x = approach(torch.cat([second, second]), torch.tensor([0.0, 0.6, 0.8]).double(), distances)
    local = atom(x) + psi.local_kinetic(x)
    assert bool((local - local[-1]).abs()[:2].max() < 100 * distances[0])


def test_orbitals_hold_the_states_of_one_electron_atoms():
    """The local energy of exp(-Z r) is -Z^2 / 2 everywhere."""
    for charge in (1.0, 2.0):
        potential = Molecule.atom(charge, 1).double()
        psi = WaveFunction(Orbitals(potential.nuclei, potential.charges, 1)).double()
        x = torch.randn(50, 3, dtype=DOUBLE)
        local = potential(x) + psi.local_kinetic(x)
        torch.testing.assert_close(local, torch.full_like(local, -0.5 * charge**2))


def test_a_covalent_bond_far_apart_is_two_atoms():
    """Without its ionic weights, the energy at 60 Bohr is that of two hydrogen atoms, -1: the
    cusp of the far nucleus has ended, and the repulsions and attractions left cancel to 1e-2."""
    molecule = Molecule.diatomic(60.0).double()
    orbitals = Orbitals(molecule.nuclei, molecule.charges, 2).double()
    with torch.no_grad():
        orbitals.log_weight.copy_(torch.tensor([[-1e3, 0.0], [0.0, -1e3]]))
    psi = WaveFunction(orbitals)
    x = torch.randn(20, 2, 3, dtype=DOUBLE) + molecule.nuclei
    local = molecule(x.flatten(1)) + psi.local_kinetic(x.flatten(1))
    # Multipoles: of the order of |x|^2 / 60^3.
    torch.testing.assert_close(local, torch.full_like(local, -1.0), atol=1e-3, rtol=0.0)


def test_hookes_atom_tail():
    """The envelope exp(-r^2 / 4) alone has the energy of the trap without repulsion."""
    psi = WaveFunction(Envelope(2, 3, rate=0.5))
    x = torch.randn(10, 6)
    trap = 0.125 * x.square().sum(-1)
    torch.testing.assert_close(trap + psi.local_kinetic(x), torch.full((10,), 1.5))


def test_rotations_about_the_center():
    psi = drawn(MADE["three bosons"])
    x = torch.randn(4, 3, 2, dtype=DOUBLE)
    c, s = math.cos(0.7), math.sin(0.7)
    turned = x @ torch.tensor([[c, s], [-s, c]], dtype=DOUBLE)
    torch.testing.assert_close(
        psi.log_amplitude(turned.flatten(1)), psi.log_amplitude(x.flatten(1))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WaveFunction, "at least one"),
        (lambda: WaveFunction(Envelope(1, 3), Envelope(2, 3)), "all of the same"),
        (lambda: Envelope(1, 3, "flat"), "'gaussian' or 'exponential', got 'flat'"),
        (lambda: Envelope(1, 3, rate=0.0), "rate: expected a finite number above 0"),
        (
            lambda: Orbitals(torch.zeros(2, 2), torch.ones(2)),
            r"nuclei: expected positions \[M, 3\]",
        ),
        (lambda: Orbitals(torch.zeros(1, 3), torch.ones(2)), r"charges: expected positive"),
        (lambda: Orbitals(torch.zeros(1, 3), -torch.ones(1)), r"charges: expected positive"),
        (lambda: Orbitals(torch.zeros(1, 3), torch.ones(1), 3), "changes sign, got 3"),
        (lambda: PairCusp(1, 3), "at least 2, got 1"),
        (lambda: SymmetricNetwork(2, 3, centers=torch.zeros(1, 2)), r"centers: expected"),
        (lambda: WaveFunction.trap(2, 2)(torch.zeros(5, 3)), r"expected input of shape \[\*, 4\]"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_terms_are_refused():
    with pytest.raises(TypeError, match="got Linear"):
        WaveFunction(torch.nn.Linear(1, 1))
