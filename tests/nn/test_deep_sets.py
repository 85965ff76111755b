"""Functions of sets, and the drift of pairs: symmetry, cusps, what they refuse."""

from __future__ import annotations

import pytest
import torch

from pyrogen.nn import DeepSets, PairDrift

DOUBLE = torch.float64


def drawn(network):
    network = network.double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def test_deep_sets_permute():
    network = drawn(DeepSets((4, 3), 2, hidden=(8, 8)))
    x, order = torch.randn(5, 4, 3, dtype=DOUBLE), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[:, order]), network(x)[:, order])
    other = x.clone()
    other[:, 3] += 1.0  # what one element is changes the outputs of all
    assert bool(((network(other) - network(x))[:, 0].abs() > 1e-3).any())


def test_invariant_deep_sets():
    network = drawn(DeepSets((4, 3), 2, hidden=(8,), invariant=True))
    x, order = torch.randn(5, 2, 4, 3, dtype=DOUBLE), torch.tensor([2, 0, 3, 1])
    assert network(x).shape == (5, 2, *network.out_shape)
    torch.testing.assert_close(network(x[..., order, :]), network(x))


def test_deep_sets_refuse():
    with pytest.raises(ValueError, match=r"\(elements, features\), got \(3,\)"):
        DeepSets((3,), 2)
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 4, 3\]"):
        DeepSets((4, 3), 2)(torch.zeros(4, 2))


MOLECULE = {
    "nuclei": torch.tensor([[0.0, 0.0, -0.7], [0.0, 0.0, 0.7]], dtype=DOUBLE),
    "charges": torch.tensor([1.0, 2.0], dtype=DOUBLE),
}


@pytest.mark.parametrize("options", [{}, {"trap": 1.0}, {**MOLECULE, "pair_cusp": 0.5}])
def test_pair_drift_permutes(options):
    drift = drawn(PairDrift(3, 3, width=16, **options))
    x, order = torch.randn(5, 3, 3, dtype=DOUBLE), torch.tensor([2, 0, 1])
    plain = drift(x.flatten(1), torch.tensor(0.1)).unflatten(-1, (3, 3))
    torch.testing.assert_close(drift(x[:, order].flatten(1)), plain[:, order].flatten(1))


def test_cusps_of_pair_drift():
    """The jump of the drift across a charge is twice its cusp; the rest is continuous, so that
    what is left after a distance of 1e-7 is of that order."""
    drift = drawn(PairDrift(2, 3, width=16, pair_cusp=0.5, **MOLECULE))
    direction = torch.nn.functional.normalize(torch.randn(3, dtype=DOUBLE), dim=0)
    other = torch.tensor([0.5, 0.2, 0.1], dtype=DOUBLE)
    cases = [(MOLECULE["nuclei"][0], -1.0), (MOLECULE["nuclei"][1], -2.0), (other, 0.5)]
    for where, slope in cases:
        sides = [drift(torch.cat([where + sign * direction, other]))[:3] for sign in (1e-7, -1e-7)]
        torch.testing.assert_close(sides[0] - sides[1], 2 * slope * direction, atol=1e-5, rtol=0)


def test_pair_drift_begins_at_its_cusps():
    drift = PairDrift(1, 2, trap=2.0)
    x = torch.randn(5, 2)
    torch.testing.assert_close(drift(x), -2.0 * x)


def test_pair_drift_refuses():
    with pytest.raises(ValueError, match=r"nuclei, charges: expected positions \[M, 3\]"):
        PairDrift(2, 3, nuclei=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"got \[1, 2\] and \[1\]"):
        PairDrift(2, 3, nuclei=torch.zeros(1, 2), charges=torch.ones(1))
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 6\]"):
        PairDrift(2, 3)(torch.zeros(5))
