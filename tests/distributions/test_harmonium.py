"""Harmoniums against sums over all states of both sides."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import (
    BernoulliUnits,
    CategoricalUnits,
    GaussianUnits,
    Harmonium,
    JointUnits,
    Spin,
    SpinUnits,
    unnormalized,
)
from tests.statistics import assert_follows, assert_frequencies, assert_mean_close

DISCRETE = {
    "bernoulli": (BernoulliUnits(), 3),
    "spin": (SpinUnits(), 3),
    "categorical": (CategoricalUnits(3), 2),
    "joint": (JointUnits([(CategoricalUnits(3), 1), (SpinUnits(), 2)]), 3),
}
UNITS = {**DISCRETE, "gaussian": (GaussianUnits(0.7), 2)}


def machine(one, other):
    (units, count), (other_units, other_count) = UNITS[one], UNITS[other]
    size, other_size = units.size(count), other_units.size(other_count)
    weights = torch.randn(size, other_size, dtype=torch.float64)
    bias, other_bias = (torch.randn(n, dtype=torch.float64) for n in (size, other_size))
    return Harmonium(weights, bias, other_bias, units, other_units)


def all_states(units, size):
    return units.states(size, torch.zeros((), dtype=torch.float64))


def table(harmonium):
    """Minus the joint energy of all pairs of states, written out."""
    a = all_states(harmonium.units, len(harmonium.bias))
    b = all_states(harmonium.other_units, len(harmonium.other_bias))
    like = harmonium.weights
    fa, fb = harmonium.units.features(a, like), harmonium.other_units.features(b, like)
    log_joint = (fa @ harmonium.bias)[:, None] + fb @ harmonium.other_bias
    return a, b, log_joint + fa @ like @ fb.T


PAIRS = list(itertools.product(DISCRETE, DISCRETE))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_sums_over_states(one, other):
    harmonium = machine(one, other)
    a, b, log_joint = table(harmonium)
    log_z = log_joint.flatten().logsumexp(0)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(-harmonium.free_energy(a), log_joint.logsumexp(1), **close)
    torch.testing.assert_close(-harmonium.swapped().free_energy(b), log_joint.logsumexp(0), **close)
    torch.testing.assert_close(harmonium.exact_log_z(), log_z, **close)
    torch.testing.assert_close(harmonium.swapped().exact_log_z(), log_z, **close)
    pairs = a[:, None].expand(-1, len(b), -1), b.expand(len(a), -1, -1)
    torch.testing.assert_close(-harmonium.joint_energy(*pairs), log_joint, **close)
    given_a = harmonium.other(a[:, None].expand(-1, len(b), -1)).log_prob(pairs[1])
    torch.testing.assert_close(given_a, log_joint.log_softmax(1), **close)
    given_b = harmonium.given(pairs[1]).log_prob(pairs[0])
    torch.testing.assert_close(given_b, log_joint.log_softmax(0), **close)


@pytest.mark.parametrize(("one", "other"), [("bernoulli", "spin"), ("joint", "categorical")])
def test_exact_draws_follow_the_marginal(one, other):
    for harmonium in (machine(one, other), machine(other, one)):
        a, _, log_joint = table(harmonium)
        drawn = harmonium.exact_sample((20_000,))
        assert_frequencies(drawn, a, log_joint.logsumexp(1).softmax(0))


@pytest.mark.parametrize("hidden", ["bernoulli", "spin", "categorical"])
def test_real_units_are_a_mixture_of_gaussians(hidden):
    harmonium = machine("gaussian", hidden)
    grid = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    density = (-harmonium.free_energy(points)).exp().sum() * (grid[1] - grid[0]) ** 2
    torch.testing.assert_close(density.log(), harmonium.exact_log_z(), rtol=0, atol=1e-10)
    drawn = harmonium.exact_sample((3000,))
    log_prob = harmonium.unnormalized_log_prob(drawn) - harmonium.exact_log_z()
    assert_follows(drawn, log_prob)


def test_it_is_its_base_tilted_by_its_energy():
    for one, other in [("bernoulli", "spin"), ("gaussian", "bernoulli"), ("joint", "spin")]:
        harmonium = machine(one, other)
        value = harmonium.base.sample((5, 4))
        tilted = harmonium.base.log_prob(value) - harmonium.energy_at(value)
        torch.testing.assert_close(harmonium.unnormalized_log_prob(value), tilted)
        assert harmonium.expand([4]).unnormalized_log_prob(value).shape == (5, 4)


def test_without_weights_sides_are_independent():
    bias, other_bias = torch.randn(30), torch.randn(7)
    harmonium = Harmonium(torch.zeros(30, 7), bias, other_bias)
    expected = torch.nn.functional.softplus(torch.cat([bias, other_bias])).sum()
    torch.testing.assert_close(harmonium.exact_log_z(), expected)


def test_tempering_goes_from_no_connections_to_all():
    harmonium, start = machine("categorical", "spin"), torch.randn(6, dtype=torch.float64)
    ends = harmonium.tempered(0.0, start), harmonium.tempered(1.0, start)
    log_z = harmonium.units.log_partition(start) + SpinUnits().log_partition(harmonium.other_bias)
    torch.testing.assert_close(ends[0].exact_log_z(), log_z)
    torch.testing.assert_close(ends[1].exact_log_z(), harmonium.exact_log_z())
    a = all_states(harmonium.units, 6)
    torch.testing.assert_close(
        -harmonium.tempered(0.3).joint_energy(a, torch.ones(len(a), 3)),
        -0.7 * harmonium.tempered(0.0).joint_energy(a, torch.ones(len(a), 3))
        - 0.3 * harmonium.joint_energy(a, torch.ones(len(a), 3)),
    )


def test_the_gradient_of_the_log_likelihood_is_a_difference_of_moments():
    weights = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    harmonium = Harmonium(
        weights, torch.randn(12, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    )
    data = torch.bernoulli(torch.full((5, 12), 0.5, dtype=torch.float64))
    mean = (harmonium.unnormalized_log_prob(data) - harmonium.exact_log_z()).mean()
    (gradient,) = torch.autograd.grad(mean, weights)
    a = all_states(harmonium.units, 12)
    with torch.no_grad():
        probability = harmonium.unnormalized_log_prob(a).softmax(0)
        positive = data.T @ torch.sigmoid(harmonium.other_natural(data)) / 5
        negative = (a * probability[:, None]).T @ torch.sigmoid(harmonium.other_natural(a))
    torch.testing.assert_close(gradient, positive - negative)


def test_units_draw_what_they_say():
    for units, count in UNITS.values():
        natural = torch.randn(units.size(count), dtype=torch.float64)
        many = natural.expand(20_000, -1)
        for drawn in (units.draw(many), units.law(many).sample()):
            assert_mean_close(units.features(drawn, natural), units.mean(natural))
        torch.testing.assert_close(
            units.mean(units.natural(units.mean(natural))), units.mean(natural)
        )


def test_means_are_gradients_of_the_log_partition_function():
    for units, count in UNITS.values():
        natural = torch.randn(units.size(count), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(units.log_partition(natural), natural)
        torch.testing.assert_close(gradient, units.mean(natural))


def test_joint_units_are_scored_and_expanded():
    units = JointUnits([(GaussianUnits(2.0), 2), (CategoricalUnits(3), 1)])
    natural = torch.randn(4, 5)
    law = units.law(natural)
    value = law.sample((3,))
    assert value.shape == (3, 4, 3)
    expected = dist.Normal(4 * natural[:, :2], 2.0).log_prob(value[..., :2]).sum(-1)
    expected = expected + dist.Categorical(logits=natural[:, 2:]).log_prob(value[..., 2])
    torch.testing.assert_close(law.log_prob(value), expected)
    torch.testing.assert_close(units.log_base(value), -(value[..., :2] ** 2).sum(-1) / 8)
    assert law.expand([6, 4]).log_prob(value[0]).shape == (6, 4)
    assert not units.discrete
    with pytest.raises(ValueError, match="3 units, got 4"):
        units.size(4)


def test_spin():
    spin = Spin(torch.tensor([-0.5, 0.3], dtype=torch.float64))
    values = spin.enumerate_support()
    torch.testing.assert_close(spin.log_prob(values).exp().sum(0), torch.ones(2).double())
    torch.testing.assert_close((spin.log_prob(values).exp() * values).sum(0), spin.mean)
    assert_mean_close(spin.expand([20_000, 2]).sample(), spin.mean)
    with pytest.raises(ValueError, match="support"):
        Spin(torch.zeros(1), validate_args=True).log_prob(torch.zeros(1))


def test_it_refuses_to_pass_for_normalised():
    harmonium = machine("bernoulli", "spin")
    with pytest.raises(ValueError, match="known up to a constant"):
        harmonium.log_prob(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected a sampler"):
        harmonium.sample()

    def model():
        pyro.sample("x", harmonium)

    trace = pyro.poutine.trace(unnormalized(model)).get_trace()
    expected = harmonium.unnormalized_log_prob(trace.nodes["x"]["value"])
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2), torch.zeros(2), torch.zeros(2)), r"got weights \[3, 2\]"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), "binary"), "units: expected one of"),
        (
            (torch.zeros(4, 2), torch.zeros(4), torch.zeros(2), CategoricalUnits(3)),
            "multiple of 3 levels",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Harmonium(*arguments)


def test_too_large_to_enumerate():
    harmonium = Harmonium(torch.zeros(21, 21), torch.zeros(21), torch.zeros(21))
    with pytest.raises(ValueError, match=r"diagnostics\.ais"):
        harmonium.exact_log_z()
    for wrong in (1, 2.5):
        with pytest.raises(ValueError, match="levels"):
            CategoricalUnits(wrong)
    with pytest.raises(ValueError, match="scale"):
        GaussianUnits(0.0)
    with pytest.raises(ValueError, match="at least one"):
        JointUnits([])
