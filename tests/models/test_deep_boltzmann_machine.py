"""Deep Boltzmann machines and their mean-field guide, against sums over all states."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch

from pyrogen.diagnostics import ais, log_likelihood
from pyrogen.distributions import CategoricalUnits, unnormalized
from pyrogen.guides import MeanField
from pyrogen.kernels import MCMC, BlockGibbs
from pyrogen.losses import ContrastiveDivergence
from pyrogen.models import DeepBoltzmannMachine, RestrictedBoltzmannMachine
from tests.statistics import TEST_FAILURE_RATE, assert_frequencies, assert_mean_close


def deep(hidden=(3, 2, 2), units="bernoulli", visible=3):
    model = DeepBoltzmannMachine(visible, hidden, units=units).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def bits(size):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def minus_energy(model, x, layers):
    """Written out, layer by layer."""
    below = model.units.features(x, model.biases[0])
    total = below @ model.biases[0]
    for weights, bias, layer in zip(model.weights, model.biases[1:], layers, strict=True):
        total = total + layer @ bias + ((below @ weights) * layer).sum(-1)
        below = layer
    return total


def split(model, odd, even):
    """Hidden layers, of the values of the two sites."""
    sizes = model.hidden
    odds, evens = odd.split(sizes[0::2], -1), even.split(sizes[1::2], -1) if sizes[1:] else ()
    pairs = itertools.zip_longest(odds, evens)
    return [layer for pair in pairs for layer in pair if layer is not None]


def enumerated_log_p(model, x):
    """log p(x) of data, and log Z, over all hidden states."""
    sizes = model.hidden
    hidden = bits(sum(sizes)).split(sizes, -1)
    with torch.no_grad():
        states = model.units.states(len(model.biases[0]), model.biases[0])
        every = torch.stack(
            [minus_energy(model, row.expand(len(hidden[0]), -1), hidden) for row in states]
        )
        log_z = every.flatten().logsumexp(0)
        index = (x[:, None] == states).all(-1).double().argmax(1)
        return every.logsumexp(1)[index] - log_z, log_z


@pytest.mark.parametrize("hidden", [(4,), (3, 2), (3, 2, 2), (2, 2, 1, 2)])
@pytest.mark.parametrize("units", ["bernoulli", "spin", CategoricalUnits(3)], ids=str)
def test_the_product_of_the_sites_is_the_law(hidden, units):
    model = deep(hidden, units)
    x = model.units.draw(torch.zeros(6, len(model.biases[0]), dtype=torch.float64))
    odd = torch.bernoulli(torch.full((6, sum(hidden[0::2])), 0.5).double())
    even = torch.bernoulli(torch.full((6, sum(hidden[1::2])), 0.5).double())
    given = {"odd": odd, "even": even}
    program = pyro.poutine.condition(unnormalized(model), given)
    density = pyro.poutine.trace(program).get_trace(x).log_prob_sum()
    expected = minus_energy(model, x, split(model, odd, even)).sum()
    torch.testing.assert_close(density, expected)
    torch.testing.assert_close(
        model.distribution().exact_log_z().detach(), enumerated_log_p(model, x)[1]
    )


def test_block_gibbs_draws_the_odd_layers_and_the_program_the_rest():
    model = deep()
    mcmc = MCMC(BlockGibbs(model, compile=False), 1, 50, num_chains=4000, disable_progbar=True)
    mcmc.run()
    given = {"odd": mcmc.get_samples()["odd"].squeeze(1)}
    x = pyro.poutine.condition(unnormalized(model), given)(None, num_samples=4000).detach()
    states = bits(3)
    assert_frequencies(x, states, enumerated_log_p(model, states)[0].exp())


def test_mean_field_is_a_fixed_point_that_bounds_the_evidence():
    model, states = deep(), bits(3)
    log_p, log_z = enumerated_log_p(model, states)
    bounds = []
    for iterations in (1, 3, 10, 200):
        guide = MeanField(model, iterations)
        odd, even = guide.means(states)
        layers = split(model, odd, even)
        entropy = sum(
            torch.special.entr(m).sum(-1) + torch.special.entr(1 - m).sum(-1) for m in layers
        )
        bounds.append(minus_energy(model, states, layers).detach() + entropy - log_z)
    for worse, better in itertools.pairwise(bounds):
        assert (better >= worse - 1e-12).all()
    assert (bounds[-1] <= log_p).all()
    h1, h2, h3 = layers
    expected = torch.sigmoid(h1 @ model.weights[1] + h3 @ model.weights[2].T + model.biases[2])
    torch.testing.assert_close(h2, expected.detach())
    trace = pyro.poutine.trace(guide).get_trace(states[:1].expand(5000, -1))
    assert_mean_close(trace.nodes["odd"]["value"], odd[0])


def test_the_gradient_is_that_of_the_bound():
    """With exact negatives, that of E_q[-E] - log Z, whose first term is bilinear in the means."""
    model, x = deep((3, 2)), bits(3)
    guide = MeanField(model)
    machine = model.distribution()
    objective = minus_energy(model, x, split(model, *guide.means(x))).sum()
    objective = objective - len(x) * machine.exact_log_z()
    parameters = list(model.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(objective, parameters)])
    loss = ContrastiveDivergence(
        BlockGibbs(), 0, sampler=lambda n: model.distribution().exact_sample((n,))
    )
    rows = []
    for _ in range(400):
        model.zero_grad()
        loss.loss_and_grads(model, guide, x)
        rows.append(-torch.cat([p.grad.flatten() for p in parameters]))
    assert_mean_close(torch.stack(rows), exact)


def test_the_log_likelihood_is_bounded_and_nearly_met():
    model, x = deep(), bits(3)
    exact = float(enumerated_log_p(model, x)[0].mean())
    estimate = ais(
        model, num_chains=300, num_temperatures=100, prob=1 - TEST_FAILURE_RATE, compile=False
    )
    result = log_likelihood(model, x, log_z=estimate, guide=MeanField(model), num_particles=200)
    assert result.interval[0] - 0.02 < exact < result.interval[1] + 0.02
    with pytest.raises(ValueError, match="latent sites"):
        log_likelihood(model, x, log_z=0.0)


def test_a_stack_starts_it():
    stack = [RestrictedBoltzmannMachine(5, 4), RestrictedBoltzmannMachine(4, 3)]
    for rbm in stack:
        torch.nn.init.normal_(rbm.weights)
        torch.nn.init.normal_(rbm.hidden_bias)
    model = DeepBoltzmannMachine.from_stack(stack)
    assert model.hidden == (4, 3)
    torch.testing.assert_close(model.weights[0], stack[0].weights)
    torch.testing.assert_close(model.weights[1], 0.5 * stack[1].weights)
    torch.testing.assert_close(model.biases[2], stack[1].hidden_bias)
    with pytest.raises(ValueError, match="expected 4 visible Bernoulli units"):
        DeepBoltzmannMachine.from_stack([stack[0], stack[0]])
    with pytest.raises(ValueError, match="restricted Boltzmann machines"):
        DeepBoltzmannMachine.from_stack([])


def test_initialize_and_wrong_arguments():
    model = DeepBoltzmannMachine(3, (2, 2))
    model.initialize(torch.ones(9, 3))
    torch.testing.assert_close(torch.sigmoid(model.biases[0]), torch.full((3,), 0.95))
    with pytest.raises(ValueError, match="at least one layer"):
        DeepBoltzmannMachine(3, ())
    with pytest.raises(ValueError, match=r"expected shape \[\*, 3\]"):
        model(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="num_iterations"):
        MeanField(model, 0)
    with pytest.raises(ValueError, match="no data"):
        MeanField(model)(None)
