"""Gibbs kernels leave laws that are enumerated as they are, whatever the model around them."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch

from pyrogen.distributions import (
    BernoulliUnits,
    CategoricalUnits,
    EnergyBased,
    GaussianUnits,
    Harmonium,
    InteractionGraph,
    MarkovField,
    SpinUnits,
    unnormalized,
)
from pyrogen.kernels import MCMC, BlockGibbs, Gibbs, ShortRun
from pyrogen.models import Ising, Potts, RestrictedBoltzmannMachine
from tests.statistics import assert_follows, assert_frequencies, assert_mean_close

CHAINS = 10_000


def harmonium(units, count, hidden_units=None, hidden=3):
    hidden_units = hidden_units or BernoulliUnits()
    size, width = units.size(count), hidden_units.size(hidden)
    tensors = torch.randn(size, width), torch.randn(size), torch.randn(width)
    return Harmonium(*(x.double() for x in tensors), units, hidden_units)


def field(edges, units):
    graph = InteractionGraph(torch.tensor(edges))
    coupling = torch.randn(len(edges), dtype=torch.float64)
    size = units.size(graph.num_sites)
    return MarkovField(graph, coupling, torch.randn(size, dtype=torch.float64), units)


TRIANGLE = [[0, 1], [1, 2], [2, 0], [2, 3]]
TARGETS = {
    "bernoulli": lambda: BlockGibbs(harmonium(BernoulliUnits(), 4), compile=False),
    "spin": lambda: BlockGibbs(harmonium(SpinUnits(), 4, SpinUnits()), compile=False),
    "levels": lambda: BlockGibbs(harmonium(CategoricalUnits(3), 3), compile=False),
    "levels, hidden": lambda: BlockGibbs(
        harmonium(SpinUnits(), 4, CategoricalUnits(4), 2), compile=False
    ),
    "ising": lambda: Gibbs(field(TRIANGLE, SpinUnits()), compile=False),
    "potts": lambda: Gibbs(field(TRIANGLE, CategoricalUnits(3)), compile=False),
    "compiled": lambda: BlockGibbs(harmonium(CategoricalUnits(3), 3)),
}


def after(kernel, fn, steps=3):
    """Values of chains that started at exact draws."""
    start = fn.exact_sample((CHAINS,))
    mcmc = MCMC(
        kernel,
        num_samples=1,
        warmup_steps=0,
        num_chains=CHAINS,
        thinning=steps,
        initial_params={"x": start},
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples()["x"]


@pytest.mark.parametrize("name", TARGETS)
def test_the_law_is_left_unchanged(name):
    kernel = TARGETS[name]()
    fn = kernel.model.fn
    drawn = after(kernel, fn)
    states = fn.units.states(len(fn.bias), fn.bias)
    assert drawn.dtype == states.dtype
    assert_frequencies(drawn, states, fn.unnormalized_log_prob(states).softmax(0))


@pytest.mark.parametrize("name", ["levels", "ising"])
def test_chains_forget_where_they_started(name):
    kernel = TARGETS[name]()
    fn = kernel.model.fn
    mcmc = MCMC(kernel, 1, 60, num_chains=CHAINS, disable_progbar=True)
    mcmc.run()
    states = fn.units.states(len(fn.bias), fn.bias)
    probabilities = fn.unnormalized_log_prob(states).softmax(0)
    assert_frequencies(mcmc.get_samples()["x"], states, probabilities)
    energy = mcmc.info["potential_energy"].flatten()
    torch.testing.assert_close(energy, -fn.unnormalized_log_prob(mcmc.get_samples()["x"]))
    assert (mcmc.info["accept_prob"] == 1).all()
    assert not mcmc.info["diverging"].any()


def test_real_visible_units():
    fn = harmonium(GaussianUnits(0.7), 2)
    drawn = after(BlockGibbs(fn, compile=False), fn)
    assert_follows(drawn, fn.unnormalized_log_prob(drawn) - fn.exact_log_z())


def test_a_model_s_site_and_what_follows_it():
    """The draws are of the harmonium; the rest is drawn given them."""
    fn = harmonium(BernoulliUnits(), 3)

    def model():
        with pyro.plate("data", 2, dim=-1):
            a = pyro.sample("a", fn)
            pyro.sample("b", fn.other(a))

    mcmc = MCMC(BlockGibbs(model, compile=False), 1, 30, num_chains=CHAINS, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()
    assert list(draws) == ["a"]
    assert draws["a"].shape == (CHAINS, 2, 3)
    states = fn.units.states(3, fn.bias)
    both = draws["a"].reshape(-1, 3)
    assert_frequencies(both, states, fn.unnormalized_log_prob(states).softmax(0))
    few = {"a": draws["a"][:500]}
    with torch.no_grad():
        hidden = pyro.infer.Predictive(unnormalized(model), few)()["b"]
    swapped = fn.swapped()
    hidden_states = swapped.units.states(3, fn.bias)
    expected = swapped.unnormalized_log_prob(hidden_states).softmax(0)
    assert_frequencies(hidden.reshape(-1, 3), hidden_states, expected)


def test_parameters_are_read_at_every_run():
    rbm = RestrictedBoltzmannMachine(5, 3).double()
    kernel = BlockGibbs(rbm)
    for value in (-1.0, 2.0):
        torch.nn.init.constant_(rbm.bias, value)
        mcmc = MCMC(kernel, 1, 20, num_chains=CHAINS, disable_progbar=True)
        mcmc.run()
        exact = rbm.distribution().exact_sample((CHAINS,)).mean(0).detach()
        difference = mcmc.get_samples()["x"].squeeze(1) - exact
        assert_mean_close(difference, 0.0, failure_rate=1e-9)  # the mean has noise of its own


def test_pyro_s_own_driver_and_copies():
    kernel = pickle.loads(pickle.dumps(BlockGibbs(harmonium(CategoricalUnits(3), 2))))
    kernel.compile = False
    driver = pyro.infer.MCMC(kernel, num_samples=50, warmup_steps=2, disable_progbar=True)
    driver.run()
    drawn = driver.get_samples()["x"]
    assert drawn.dtype == torch.int64
    assert drawn.shape == (50, 2)
    assert {0, 1, 2}.issuperset(drawn.unique().tolist())
    assert (drawn != drawn[0]).any()


def test_short_runs_draw_models():
    sampler = ShortRun(BlockGibbs(), 30)
    rbm = RestrictedBoltzmannMachine(4, 3, units=CategoricalUnits(3), sampler=sampler).double()
    torch.nn.init.normal_(rbm.weights)
    drawn = rbm(None, num_samples=CHAINS)
    fn = rbm.distribution()
    states = fn.units.states(12, fn.bias)
    assert_frequencies(drawn, states, fn.unnormalized_log_prob(states).detach().softmax(0))
    ising = Ising((3, 3), coupling=0.3, field=0.1, sampler=ShortRun(Gibbs(), 30)).double()
    fn = ising.distribution()
    states = fn.units.states(9, fn.bias)
    drawn = ising(None, num_samples=CHAINS)
    assert_frequencies(drawn, states, fn.unnormalized_log_prob(states).detach().softmax(0))
    potts = Potts((2, 3), num_states=3, coupling=0.5, sampler=ShortRun(Gibbs(), 1))
    assert potts(None, num_samples=2).dtype == torch.int64


def test_what_cannot_be_sampled():
    def observed():
        pyro.sample("x", harmonium(BernoulliUnits(), 3), obs=torch.zeros(3).double())

    def late():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", harmonium(BernoulliUnits(), 3))

    for model, message in ((observed, r"observed \['x'\]"), (late, "first site 'z' of Normal")):
        with pytest.raises(ValueError, match=message):
            MCMC(BlockGibbs(model), 1, 0, disable_progbar=True).run()
    with pytest.raises(ValueError, match="something to sample"):
        MCMC(BlockGibbs(), 1, 0)
    other = EnergyBased(lambda x: x.sum(-1), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="expected a MarkovField, got EnergyBased"):
        Gibbs().target_of("x", other)
