"""Markov fields against sums over all states."""

from __future__ import annotations

import pytest
import torch

from pyrogen.distributions import (
    BernoulliUnits,
    CategoricalUnits,
    GaussianUnits,
    InteractionGraph,
    MarkovField,
    SpinUnits,
)
from tests.statistics import assert_frequencies

TRIANGLE_AND_TAIL = torch.tensor([[0, 1], [1, 2], [2, 0], [2, 3], [4, 2]])
SQUARE = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [4, 0]])
UNITS = [SpinUnits(), BernoulliUnits(), CategoricalUnits(3)]


def field_on(edges, units):
    graph = InteractionGraph(edges, 5)
    coupling = torch.randn(len(edges), dtype=torch.float64)
    return MarkovField(graph, coupling, torch.randn(units.size(5), dtype=torch.float64), units)


def states_of(field):
    return field.units.states(len(field.bias), field.bias)


@pytest.mark.parametrize("edges", [TRIANGLE_AND_TAIL, SQUARE], ids=["three colours", "two"])
@pytest.mark.parametrize("units", UNITS, ids=repr)
def test_sums_over_states(edges, units):
    field = field_on(edges, units)
    states = states_of(field)
    log_joint = field.units.features(states, field.bias) @ field.bias
    for bond, (i, j) in zip(field.coupling, edges.tolist(), strict=True):
        if isinstance(units, CategoricalUnits):
            log_joint = log_joint + bond * (states[:, i] == states[:, j])
        else:
            log_joint = log_joint + bond * states[:, i] * states[:, j]
    torch.testing.assert_close(field.unnormalized_log_prob(states), log_joint)
    torch.testing.assert_close(field.exact_log_z(), log_joint.logsumexp(0))
    tilted = field.base.log_prob(states) - field.energy_at(states)
    torch.testing.assert_close(field.unnormalized_log_prob(states), tilted)
    assert_frequencies(field.exact_sample((10_000,)), states, log_joint.softmax(0))


@pytest.mark.parametrize("units", UNITS, ids=repr)
def test_conditionals(units):
    field = field_on(TRIANGLE_AND_TAIL, units)
    states = states_of(field)
    log_joint = field.unnormalized_log_prob(states)
    for sites in field.graph.colours:
        others = torch.tensor([i for i in range(5) if i not in sites])
        alike = (states[:, None, others] == states[None, :, others]).all(-1)
        log_sum = torch.where(alike, log_joint, -torch.inf).logsumexp(1)
        given = field.given(states, sites).log_prob(states[:, sites])
        torch.testing.assert_close(given, log_joint - log_sum)


def test_a_sweep_leaves_the_law_unchanged():
    for units in UNITS:
        field = field_on(TRIANGLE_AND_TAIL, units)
        states = states_of(field)
        moved = field.sweep(field.exact_sample((10_000,)))
        probability = field.unnormalized_log_prob(states).softmax(0)
        assert_frequencies(moved, states, probability)


def test_two_colours_are_a_harmonium():
    field = field_on(SQUARE, CategoricalUnits(3))
    states, machine = states_of(field), field.harmonium()
    first, second = (states[:, sites] for sites in field.graph.colours)
    energy = machine.joint_energy(first, second)
    torch.testing.assert_close(field.unnormalized_log_prob(states), -energy)
    with pytest.raises(ValueError, match="two colours, got 3"):
        field_on(TRIANGLE_AND_TAIL, SpinUnits()).harmonium()


def test_tempering():
    field = field_on(TRIANGLE_AND_TAIL, SpinUnits())
    start = torch.randn(5, dtype=torch.float64)
    independent = field.tempered(0.0, start).exact_log_z()
    torch.testing.assert_close(independent, field.units.log_partition(start))
    torch.testing.assert_close(field.tempered(1.0, start).exact_log_z(), field.exact_log_z())


def test_lattices():
    torus = InteractionGraph.lattice((4, 6))
    assert len(torus.edges) == 48
    assert [len(sites) for sites in torus.colours] == [12, 12]
    assert (torus.edges.flatten().bincount() == 4).all()
    assert len(InteractionGraph.lattice((3, 3)).colours) > 2
    assert len(InteractionGraph.lattice((3, 3), periodic=False).colours) == 2
    assert len(InteractionGraph.lattice((3, 3), periodic=False).edges) == 12
    assert len(InteractionGraph.lattice((4, 4, 4)).edges) == 192
    for graph in (torus, InteractionGraph.lattice((5, 3)), InteractionGraph(TRIANGLE_AND_TAIL)):
        colour = torch.zeros(graph.num_sites)
        for number, sites in enumerate(graph.colours):
            colour[sites] += 1 + number
        assert (colour[graph.edges[:, 0]] != colour[graph.edges[:, 1]]).all()


def test_wrong_arguments():
    graph = InteractionGraph(SQUARE)
    with pytest.raises(ValueError, match=r"bias: expected \[5\]"):
        MarkovField(graph, torch.tensor(1.0), torch.zeros(4))
    with pytest.raises(ValueError, match=r"coupling: expected \[\] or \[5\]"):
        MarkovField(graph, torch.ones(3), torch.zeros(5))
    with pytest.raises(ValueError, match="finitely many"):
        MarkovField(graph, torch.tensor(1.0), torch.zeros(5), GaussianUnits())
    with pytest.raises(ValueError, match=r"integers \[edges, 2\]"):
        InteractionGraph(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="two different sites"):
        InteractionGraph(torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="at least 2"):
        InteractionGraph.lattice((1, 3))
    large = InteractionGraph.lattice((5, 5))
    with pytest.raises(ValueError, match=r"2\^25"):
        MarkovField(large, torch.tensor(1.0), torch.zeros(25)).exact_log_z()
