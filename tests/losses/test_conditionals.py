"""Pseudo-likelihood and ratio matching against enumeration of all states."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import EnergyBased
from pyrogen.guides import Empty
from pyrogen.losses import PseudoLikelihood, RatioMatching
from tests.statistics import assert_mean_close


def states(levels, size):
    return torch.tensor(list(itertools.product(range(levels), repeat=size)))


def boltzmann(size=4):
    """A fully visible Boltzmann machine: all states, and its energy."""
    coupling = torch.randn(size, size).double().triu(1)
    bias = torch.randn(size).double()

    def energy(x):
        return -(x @ bias + torch.einsum("...i,ij,...j->...", x, coupling, x))

    base = dist.Bernoulli(torch.full((size,), 0.3).double()).to_event(1)
    return EnergyBased(energy, base), states(2, size).double()


def potts(size=3, levels=3):
    """Categorical variables with a random table as energy."""
    table = torch.randn([levels] * size).double()
    probs = torch.rand(size, levels).double() + 0.2

    def energy(x):
        return table[tuple(x.unbind(-1))]

    return EnergyBased(energy, dist.Categorical(probs).to_event(1)), states(levels, size)


def conditionals(fn, x):
    """log p(x_i | x_-i) for every state and variable, by enumeration."""
    joint = fn.unnormalized_log_prob(x).log_softmax(0)
    columns = []
    for i in range(x.shape[-1]):
        others = torch.cat([x[:, :i], x[:, i + 1 :]], -1)
        same = (others.unsqueeze(0) == others.unsqueeze(1)).all(-1)
        total = joint.expand(len(x), -1).masked_fill(~same, -torch.inf).logsumexp(-1)
        columns.append(joint - total)
    return torch.stack(columns, -1)


@pytest.mark.parametrize("make", [boltzmann, potts])
def test_pseudo_likelihood_is_the_sum_of_conditionals(make):
    fn, x = make()
    expected = conditionals(fn, x).sum(-1)
    torch.testing.assert_close(PseudoLikelihood().score("x", fn.expand([len(x)]), x), expected)


def test_ratio_matching_is_the_sum_of_squares():
    fn, x = boltzmann()
    expected = (1 - conditionals(fn, x).exp()).square().sum(-1)
    torch.testing.assert_close(-RatioMatching().score("x", fn.expand([len(x)]), x), expected)
    ratios = []
    for i in range(4):  # as Hyvärinen writes it: g(p(x) / p(x with bit i flipped))²
        flipped = x.clone()
        flipped[:, i] = 1 - flipped[:, i]
        ratio = (fn.unnormalized_log_prob(x) - fn.unnormalized_log_prob(flipped)).exp()
        ratios.append((1 / (1 + ratio)).square())
    torch.testing.assert_close(expected, sum(ratios))


@pytest.mark.parametrize("objective", [PseudoLikelihood, RatioMatching])
def test_some_variables_are_unbiased(objective):
    """One state, many times: each has the subset of its own batch of one."""
    fn, x = boltzmann()
    expected = objective().score("x", fn, x[5])
    draws = [objective(num_variables=2).score("x", fn, x[5]) for _ in range(1_000)]
    assert_mean_close(torch.stack(draws), expected)
    pairs = {round(float(draw), 9) for draw in draws}
    assert len(pairs) == 6  # of four


@pytest.mark.parametrize("objective", [PseudoLikelihood, RatioMatching])
def test_the_truth_is_stationary(objective):
    """The expected gradient under the model's own law vanishes at its parameters, and only there.

    Exactly, by enumeration: the objectives are consistent.
    """
    x = states(2, 4).double()
    truth = torch.randn(4, 4).double()

    def fn(parameters):
        coupling = parameters.triu(1)
        bias = parameters.diagonal()
        return EnergyBased(
            lambda x: -(x @ bias + torch.einsum("...i,ij,...j->...", x, coupling, x)),
            dist.Bernoulli(torch.full((4,), 0.5).double()).to_event(1),
        )

    law = fn(truth).unnormalized_log_prob(x).softmax(0)

    def gradient(at):
        parameters = at.clone().requires_grad_()
        expected = (law * objective().score("x", fn(parameters), x)).sum()
        return torch.autograd.grad(expected, parameters)[0]

    assert gradient(truth).abs().max() < 1e-12
    assert gradient(1.5 * truth).abs().max() > 1e-3


def test_groups_of_indicators_move_together():
    """One-hot events are the categorical events, written otherwise."""
    fn, x = potts()
    eye = torch.eye(3).double()

    def energy(hot):
        return fn.energy(hot.argmax(-1))

    probs = fn.base.base_dist.probs
    hot = EnergyBased(energy, dist.OneHotCategorical(probs).to_event(1))
    expected = PseudoLikelihood().score("x", fn, x)
    torch.testing.assert_close(PseudoLikelihood().score("x", hot, eye[x]), expected)


def test_images_of_bits_keep_their_shape():
    """Event [2, 2] is event [4] reshaped; and a flat base on bits knows its levels."""
    fn, x = boltzmann()
    square = EnergyBased(
        lambda x: fn.energy(x.flatten(-2)),
        dist.Bernoulli(torch.full((2, 2), 0.3).double()).to_event(2),
    )
    expected = PseudoLikelihood().score("x", fn, x)
    shaped = PseudoLikelihood().score("x", square, x.reshape(-1, 2, 2))
    torch.testing.assert_close(shaped, expected)
    boolean = dist.constraints.independent(dist.constraints.boolean, 1)
    flat = EnergyBased(fn.energy, dist.ImproperUniform(boolean, (), (4,)))
    even = EnergyBased(fn.energy, dist.Bernoulli(torch.full((4,), 0.5).double()).to_event(1))
    torch.testing.assert_close(
        PseudoLikelihood().score("x", flat, x), PseudoLikelihood().score("x", even, x)
    )


def test_wrong_sites_and_options_are_refused():
    def model(x):
        pyro.sample("x", EnergyBased(lambda x: x, dist.Normal(0.0, 1.0)), obs=x)

    with pytest.raises(ValueError, match="site 'x': expected a base of independent discrete"):
        PseudoLikelihood().loss(model, Empty(), torch.tensor(0.5))
    fn, x = potts()
    with pytest.raises(ValueError, match="site 'x': expected binary variables, got 3 levels"):
        RatioMatching().score("x", fn, x)
    with pytest.raises(ValueError, match="num_variables: expected a positive integer or None"):
        PseudoLikelihood(num_variables=0)
    with pytest.raises(ValueError, match="num_variables: expected a positive integer or None"):
        RatioMatching(num_variables=1.5)
