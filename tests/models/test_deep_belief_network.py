"""Deep belief networks and their recognition guide, against sums over all states."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from pyro.infer import ReweightedWakeSleep

from pyrogen.diagnostics import log_likelihood
from pyrogen.distributions import CategoricalUnits, unnormalized
from pyrogen.guides import Recognition
from pyrogen.kernels import BlockGibbs, ShortRun
from pyrogen.losses import ContrastiveDivergence
from pyrogen.models import DeepBeliefNetwork, RestrictedBoltzmannMachine
from tests.statistics import assert_frequencies


def bits(size):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def deep(hidden=(3, 2, 2), units="bernoulli", visible=3):
    model = DeepBeliefNetwork(visible, hidden, units=units).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def enumerated_log_p(model, x):
    """log p(x), over all hidden states."""
    layers = bits(sum(model.hidden[:-1])).split(model.hidden[:-1], -1)
    given = {f"h{i + 1}": layer[:, None] for i, layer in enumerate(layers)}
    log_p = []
    with torch.no_grad():
        for row in x:
            program = pyro.poutine.condition(unnormalized(model), given)
            data = row.expand(len(layers[0]), 1, -1)
            trace = pyro.poutine.trace(program).get_trace(data)
            trace.compute_log_prob()
            sites = [*given, "x"]
            log_p.append(sum(trace.nodes[s]["log_prob"] for s in sites).logsumexp(0))
        return torch.cat(log_p) - model.distribution().exact_log_z()


@pytest.mark.parametrize("units", ["bernoulli", CategoricalUnits(3)], ids=str)
def test_probabilities_sum_to_one_and_are_drawn(units):
    model = deep(units=units)
    states = model.units.states(len(model.biases[0]), model.biases[0])
    log_p = enumerated_log_p(model, states)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros((), dtype=torch.float64))
    model.sampler = ShortRun(BlockGibbs(), 50)
    assert_frequencies(model(None, num_samples=5000), states, log_p.exp())


def test_the_log_likelihood_is_bounded_and_nearly_met():
    model, x = deep(), bits(3)
    guide = Recognition(3, (3, 2)).double()
    exact = float(enumerated_log_p(model, x).mean())
    log_z = float(model.distribution().exact_log_z().detach())
    result = log_likelihood(model, x, log_z=log_z, guide=guide, num_particles=400)
    assert exact - 0.1 < result.value < exact + 0.05


def test_reweighted_wake_sleep_raises_the_likelihood():
    """From a stack whose top was left untrained, with the recognition guide trained along."""
    x = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]] * 20, dtype=torch.float64)
    model = deep((4, 3), visible=6)
    guide = Recognition(6, (4,)).double()
    before = float(enumerated_log_p(model, x[:2]).mean())
    elbo = ReweightedWakeSleep(num_particles=5, insomnia=1.0)
    loss = ContrastiveDivergence(BlockGibbs(), persistent=True, elbo=elbo)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        loss.loss_and_grads(model, guide, x)
        optimizer.step()
    after = float(enumerated_log_p(model, x[:2]).mean())
    assert before < -4
    assert after > -1.5  # the entropy is log 2 = 0.69


def test_a_stack_makes_it():
    stack = [
        RestrictedBoltzmannMachine(5, 4, units="gaussian"),
        RestrictedBoltzmannMachine(4, 3),
        RestrictedBoltzmannMachine(3, 2),
    ]
    for rbm in stack:
        torch.nn.init.normal_(rbm.weights)
        torch.nn.init.normal_(rbm.hidden_bias)
    model, guide = DeepBeliefNetwork.from_stack(stack), Recognition.from_stack(stack)
    assert model.hidden == (4, 3, 2)
    torch.testing.assert_close(model.weights[1], stack[1].weights)
    torch.testing.assert_close(model.top.weights, stack[2].weights)
    x = torch.randn(2, 5)
    node = pyro.poutine.trace(guide).get_trace(x).nodes["h1"]
    torch.testing.assert_close(node["fn"].mean, stack[0].features(x))
    names = pyro.poutine.trace(unnormalized(model)).get_trace(x).stochastic_nodes
    assert [name for name in names if name != "data"] == ["h2", "h1"]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least two layers"):
        DeepBeliefNetwork(3, (2,))
    with pytest.raises(ValueError, match=r"expected shape \[\*, 3\]"):
        DeepBeliefNetwork(3, (2, 2))(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="positive numbers"):
        Recognition(3, ())
    with pytest.raises(ValueError, match="no data"):
        Recognition(3, (2,))(None)
