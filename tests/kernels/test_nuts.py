from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyrogen.kernels import MCMC, NUTS
from pyrogen.kernels import nuts as module
from tests.kernels.posteriors import (
    EIGHT_SCHOOLS,
    ERRORS,
    SCHOOLS,
    assert_posterior_mean,
    eight_schools,
)
from tests.kernels.targets import GAUSSIAN, SKEWED
from tests.statistics import TEST_FAILURE_RATE


class Reference:
    """One transition of one chain, as in the papers: recursion over lists of all states."""

    def __init__(self, force, energy, step_size, scale, most_doublings, rng):
        self.force, self.potential, self.step_size, self.scale = force, energy, step_size, scale
        self.most_doublings, self.rng = most_doublings, rng

    def energy(self, state):
        position, momentum = state
        return self.potential(position) + 0.5 * momentum @ momentum

    def leapfrog(self, state, direction):
        position, momentum = state
        half = 0.5 * direction * self.step_size
        momentum = momentum + half * self.scale * self.force(position)
        position = position + 2 * half * self.scale * momentum
        return position, momentum + half * self.scale * self.force(position)

    def turns(self, states):
        """Whether some sub-tree of a list of states, in order of time, turns."""
        if len(states) == 1:
            return False
        left, right = states[: len(states) // 2], states[len(states) // 2 :]
        return (
            self.turns(left)
            or self.turns(right)
            or opposed(states)
            or opposed([*left, right[0]])
            or opposed([left[-1], *right])
        )

    def sampled(self, states):
        weights = np.exp([self.start_energy - self.energy(state) for state in states])
        return states[self.rng.choice(len(states), p=weights / weights.sum())], weights.sum()

    def subtree(self, state, direction, depth):
        """New states in order of growth, fewer than ``2**depth`` where the tree is cut off."""
        states = []
        for i in range(1, 2**depth + 1):
            state = self.leapfrog(state, direction)
            states.append(state)
            if not self.energy(state) - self.start_energy <= 1000:
                return states, False
            size = 2
            while i % size == 0:  # the sub-trees that this state completes
                if self.turns(states[-size:][::direction]):
                    return states, False
                size *= 2
        return states, True

    def transition(self, position):
        """``(depth, num_steps, position)``."""
        states = [(position, self.rng.standard_normal(len(position)))]
        self.start_energy = self.energy(states[0])
        chosen, weight, num_steps = states[0], 1.0, 0
        for depth in range(self.most_doublings):
            direction = self.rng.choice([-1, 1])
            new, whole = self.subtree(states[-1 if direction == 1 else 0], direction, depth)
            num_steps += len(new)
            if not whole:
                break
            candidate, new_weight = self.sampled(new)
            if self.rng.uniform() < new_weight / weight:
                chosen = candidate
            weight += new_weight
            states = states + new if direction == 1 else new[::-1] + states
            if self.turns(states):
                break
        return depth + 1, num_steps, chosen[0]


def opposed(states):
    way = sum(momentum for _, momentum in states)
    return way @ states[0][1] <= 0 or way @ states[-1][1] <= 0


def gaussian_force(x):
    return np.array([-2 * x[0] + 1.6 * x[1], 1.6 * x[0] - 2 * x[1]]) / 0.72


def skewed_force(x):
    off = x[1] - 0.5 * x[0] ** 2
    return np.array([2 - np.exp(x[0]) + off * x[0], -off])


def normal_force(x):
    return -x


@pytest.mark.parametrize(
    ("energy", "force", "start", "step_size", "most_doublings"),
    [
        (GAUSSIAN.energy, gaussian_force, [1.0, -0.5], 0.25, 10),
        (GAUSSIAN.energy, gaussian_force, [0.2, 0.1], 0.08, 4),
        (SKEWED.energy, skewed_force, [-1.0, 2.0], 0.6, 10),
        (lambda x: 0.5 * x.square().sum(-1), normal_force, [0.5, 1.0], 0.55, 10),
    ],
    ids=["gaussian", "shallow", "skewed", "isotropic"],
)
def test_a_transition_has_the_law_of_the_recursive_algorithm(
    energy, force, start, step_size, most_doublings
):
    """From one point: depth, number of steps, and where it goes."""
    scale = np.array([0.8, 1.3])
    reference = Reference(
        force,
        lambda x: float(energy(torch.as_tensor(x))),
        step_size,
        scale,
        most_doublings,
        np.random.default_rng(int(torch.randint(2**31, ()))),
    )
    expected = [reference.transition(np.array(start)) for _ in range(1500)]
    kernel = NUTS(
        energy=energy,
        event_shape=(2,),
        step_size=step_size,
        max_tree_depth=most_doublings,
        compile=False,
    )
    chains = kernel.start(6000, 0, initial_params={"x": torch.tensor([start] * 6000)})
    chains.tuning = chains.tuning._replace(scale=torch.tensor(scale, dtype=torch.float32))
    info = chains.advance()
    depth, num_steps, position = (np.array(column) for column in zip(*expected, strict=True))
    assert_same_counts(info.tree_depth, depth)
    assert_same_counts(info.num_steps, num_steps)
    moved = chains.position.numpy()
    for got, wanted in ((moved[:, 0], position[:, 0]), (moved[:, 1], position[:, 1])):
        assert scipy.stats.ks_2samp(got, wanted).pvalue > TEST_FAILURE_RATE


def assert_same_counts(got, expected):
    """A chi-squared test of homogeneity; rare values are pooled."""
    got, expected = got.numpy().astype(int), expected.astype(int)
    counts = np.stack([np.bincount(x, minlength=2048) for x in (got, expected)])
    frequent = counts.sum(0) >= 40
    table = np.column_stack([counts[:, frequent], counts[:, ~frequent].sum(1)])
    table = table[:, table.sum(0) > 0]
    if table.shape[1] == 1:
        return
    assert scipy.stats.chi2_contingency(table).pvalue > TEST_FAILURE_RATE, table


def test_steps_fit_the_depth_and_the_most_is_kept():
    kernel = NUTS(energy=SKEWED.energy, event_shape=(2,), step_size=0.2, compile=False)
    chains = kernel.start(500, 0, initial_params={"x": SKEWED.draw(500)})
    info = chains.advance()
    assert (info.num_steps <= 2**info.tree_depth - 1).all()
    assert (info.num_steps >= 2 ** (info.tree_depth - 1)).all()
    assert len(info.tree_depth.unique()) >= 4
    for most in (1, 2, 3, 5):
        kernel = NUTS(
            energy=SKEWED.energy,
            event_shape=(2,),
            step_size=1e-3,
            max_tree_depth=most,
            compile=False,
        )
        chains = kernel.start(300, 0, initial_params={"x": SKEWED.draw(300)})
        info = chains.advance()
        assert (info.tree_depth == most).all()
        assert (info.num_steps == 2**most - 1).all()
        assert (info.accept_prob > 0.99).all()


def test_step_is_the_same_transition_as_one_function():
    """Unrolled to the most doublings, as another kernel would call it."""
    start = SKEWED.draw(4000)
    results = []
    for whole in (False, True):
        kernel = NUTS(
            energy=SKEWED.energy, event_shape=(2,), step_size=0.7, max_tree_depth=4, compile=False
        )
        chains = kernel.start(len(start), 0, initial_params={"x": start})
        if whole:
            state, info = chains.run(kernel.step, chains.state, chains.tuning)
            SKEWED.assert_follows(state.position)
        else:
            info = chains.advance()
        results.append(info)
    assert_same_counts(results[0].num_steps, results[1].num_steps.numpy())


def test_groups_of_any_size_have_the_same_law(monkeypatch):
    depths = []
    for least in (400, 3000):
        monkeypatch.setitem(module._LEAST_GROUP, "cpu", least)
        kernel = NUTS(energy=SKEWED.energy, event_shape=(2,), step_size=0.15, compile=False)
        chains = kernel.start(3000, 0, initial_params={"x": SKEWED.draw(3000)})
        depths.append(chains.advance().tree_depth)
        chains.advance()
        SKEWED.assert_follows(chains.position)
    assert_same_counts(depths[0], depths[1].numpy())


def test_energies_belong_to_the_new_state():
    kernel = NUTS(energy=SKEWED.energy, event_shape=(2,), step_size=0.5, compile=False)
    chains = kernel.start(1000, 0, initial_params={"x": SKEWED.draw(1000)})
    info = chains.advance()
    torch.testing.assert_close(info.potential_energy, SKEWED.energy(chains.position))
    at = chains.position.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SKEWED.energy(at).sum(), at)
    torch.testing.assert_close(chains.state.gradient, gradient)
    # The kinetic energy of an exact draw follows Gamma(1, 1) in two dimensions.
    kinetic = (info.energy - info.potential_energy).numpy()
    assert scipy.stats.kstest(kinetic, "expon").pvalue > TEST_FAILURE_RATE


@pytest.mark.slow
def test_compiled_chains_move_as_uncompiled_ones():
    start = SKEWED.draw(600)  # several groups
    positions = []
    for compiled in (False, True):
        kernel = NUTS(energy=SKEWED.energy, event_shape=(2,), step_size=0.4, compile=compiled)
        chains = kernel.start(len(start), 0, initial_params={"x": start})
        torch.manual_seed(11)
        info = chains.advance()
        positions.append((chains.position, info.num_steps))
    (plain, plain_steps), (fast, steps) = positions
    same = plain_steps == steps  # rounding may decide a chain's U-turn
    assert same.float().mean() > 0.98
    close = (plain - fast).abs().amax(1) < 1e-3
    assert (same & close).float().mean() > 0.97


@pytest.mark.parametrize("mass_matrix", ["diagonal", "dense"])
def test_moments_of_a_correlated_gaussian(mass_matrix):
    size = 8
    spread = torch.logspace(-1, 1, size)
    correlation = 0.8 ** (torch.arange(size).unsqueeze(0) - torch.arange(size).unsqueeze(1)).abs()
    covariance = spread.unsqueeze(1) * correlation * spread
    precision = torch.linalg.inv(covariance.double()).float()
    mean = torch.arange(float(size)) - 3

    def energy(x):
        return 0.5 * ((x - mean) @ precision * (x - mean)).sum(-1)

    kernel = NUTS(energy=energy, event_shape=(size,), mass_matrix=mass_matrix, compile=False)
    mcmc = MCMC(kernel, 50, 150, num_chains=100, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples(group_by_chain=True)["x"]
    for i in range(size):
        centred = drawn[..., i] - mean[i]
        assert_posterior_mean(drawn[..., i], float(mean[i]))
        assert_posterior_mean(centred.square(), float(covariance[i, i]))
        other = drawn[..., i - 1] - mean[i - 1]
        assert_posterior_mean(centred * other, float(covariance[i, i - 1]))
    accepted = mcmc.info["accept_prob"].mean()
    assert 0.7 < accepted < 0.9  # adapted to 0.8
    assert mcmc.info["diverging"].sum() == 0
    if mass_matrix == "dense":  # no correlation left: 3 or 7 steps
        assert mcmc.info["num_steps"].mean() < 8


def test_eight_schools():
    kernel = NUTS(eight_schools, compile=False)
    mcmc = MCMC(kernel, 100, 150, num_chains=200, disable_progbar=True)
    mcmc.run(ERRORS, SCHOOLS)
    drawn = mcmc.get_samples(group_by_chain=True)
    for site, (mean, error) in EIGHT_SCHOOLS.items():
        assert_posterior_mean(drawn[site], mean, error)


def centred_funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([9]).to_event(1))


def noncentred_funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
    pyro.deterministic("x", z * (v / 2).exp())


def test_divergences_flag_the_centred_funnel():
    """From exact draws: a step that suits the mouth is many times the width of the neck."""
    v = 3 * torch.randn(2000)
    start = {"v": v, "x": (v / 2).exp().unsqueeze(1) * torch.randn(2000, 9)}
    kernel = NUTS(centred_funnel, step_size=0.5, max_tree_depth=6, compile=False)
    info = kernel.start(2000, 0, initial_params=start).advance()
    # Where the step is 10 widths, it takes 1 width of displacement to 1 - 10**2 / 2 = -49 widths.
    assert info.diverging[v < 2 * math.log(0.05)].float().mean() > 0.95
    assert info.diverging[v > 0].float().mean() < 0.1


def test_the_noncentred_funnel_is_sampled_without_divergence():
    mcmc = MCMC(
        NUTS(noncentred_funnel, compile=False), 30, 60, num_chains=100, disable_progbar=True
    )
    mcmc.run()
    drawn = mcmc.get_samples(group_by_chain=True)["v"]
    assert mcmc.info["diverging"].sum() == 0
    assert_posterior_mean(drawn, 0.0)
    assert_posterior_mean(drawn.square(), 9.0)


def test_a_divergence_ends_the_trajectory_where_it_happens():
    """Beyond the wall every state diverges: two chains in one doubling, one of which meets it."""

    def energy(x):
        return torch.where(x[:, 0] > 0.5, torch.nan, 1e-6 * x[:, 0])

    kernel = NUTS(energy=energy, event_shape=(1,), step_size=1.0, max_tree_depth=6, compile=False)
    start = torch.tensor([[0.0], [-1e6]])
    chains = kernel.start(2, 0, initial_params={"x": start})
    info = chains.advance()
    assert info.diverging.tolist() == [True, False]
    assert info.num_steps[1] == 2**6 - 1
    assert info.num_steps[0] < 2**6 - 1
    assert (chains.position[0] <= 0.5).all()
    assert math.isclose(float(info.accept_prob[1]), 1.0, abs_tol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"max_tree_depth": 0}, "max_tree_depth"),
        ({"mass_matrix": "full"}, "mass_matrix"),
        ({"target_accept_prob": 1.0}, "target_accept_prob"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NUTS(energy=SKEWED.energy, event_shape=(2,), **options)
