"""The restricted Boltzmann machine as a program: scores, gradients and what training finds."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyrogen.distributions import CategoricalUnits, GaussianUnits, unnormalized
from pyrogen.guides import Empty
from pyrogen.kernels import BlockGibbs
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import RestrictedBoltzmannMachine
from tests.statistics import assert_mean_close


def machine(visible=12, hidden=8, std=0.5):
    rbm = RestrictedBoltzmannMachine(visible, hidden).double()
    torch.nn.init.normal_(rbm.weights, std=std)
    torch.nn.init.normal_(rbm.bias, std=0.5)
    return rbm


def bits(*shape):
    return torch.bernoulli(torch.full(shape, 0.5, dtype=torch.float64))


def flat(tensors):
    return torch.cat([x.flatten() for x in tensors])


def exact_gradient(rbm, data):
    """Of the log-likelihood, with the normaliser by enumeration."""
    fn = rbm.distribution()
    objective = (fn.unnormalized_log_prob(data) - fn.exact_log_z()).sum()
    return flat(torch.autograd.grad(objective, list(rbm.parameters()))).detach()


def gradients(rbm, data, loss, repeats):
    """Of the objective, ``[repeats, parameters]``, with the sign of a log-likelihood."""
    rows, guide = [], Empty()
    for _ in range(repeats):
        rbm.zero_grad()
        loss.loss_and_grads(rbm, guide, data)
        rows.append(-flat([p.grad for p in rbm.parameters()]))
    return torch.stack(rows)


def test_exact_negatives_make_the_gradient_unbiased():
    rbm, data = machine(), bits(20, 12)
    loss = ContrastiveDivergence(
        BlockGibbs(), 0, sampler=lambda n: rbm.distribution().exact_sample((n,))
    )
    assert_mean_close(gradients(rbm, data, loss, 300), exact_gradient(rbm, data))


def test_steps_of_the_chain_keep_exact_negatives_exact():
    rbm, data = machine(), bits(20, 12)
    loss = Compiled(
        ContrastiveDivergence(
            BlockGibbs(), 3, sampler=lambda n: rbm.distribution().exact_sample((n,))
        ),
        compile=False,
    )
    assert_mean_close(gradients(rbm, data, loss, 300), exact_gradient(rbm, data))


def test_the_bias_of_short_chains_shrinks_with_their_length():
    rbm, data = machine(std=1.0), bits(1, 12).expand(2000, -1)
    exact = exact_gradient(rbm, data) / 2000
    bias = {}
    for steps in (1, 3, 40):
        loss = ContrastiveDivergence(BlockGibbs(), steps)
        estimate = gradients(rbm, data, loss, 10) / 2000
        bias[steps] = float((estimate.mean(0) - exact).norm())
        noise = float(estimate.var(0).sum().div(10).sqrt())
    assert bias[1] > 5 * noise
    assert bias[3] < 0.5 * bias[1]
    assert bias[40] < 2 * noise  # the norm of noise is near the root of its summed variances


def test_scores_are_minus_the_free_energy():
    for units, data in (
        ("bernoulli", bits(6, 5)),
        ("gaussian", torch.randn(6, 5).double()),
        (CategoricalUnits(4), torch.randint(4, (6, 5))),
    ):
        rbm = RestrictedBoltzmannMachine(5, 3, units=units).double()
        trace = pyro.poutine.trace(unnormalized(rbm)).get_trace(data)
        torch.testing.assert_close(trace.log_prob_sum(), -rbm.free_energy(data).sum())
        assert rbm.features(data).shape == (6, 3)


def test_initialize_sets_the_means():
    data = (torch.rand(500, 6) < torch.linspace(0, 1, 6)).double()
    rbm = RestrictedBoltzmannMachine(6, 3).double()
    rbm.initialize(data)
    mean = torch.sigmoid(rbm.bias)
    torch.testing.assert_close(mean, (data.sum(0) + 0.5) / 501)
    rbm = RestrictedBoltzmannMachine(6, 3, units=CategoricalUnits(2)).double()
    rbm.initialize(data.long())
    torch.testing.assert_close(rbm.bias.exp().unflatten(0, (6, 2))[:, 1], mean)
    rbm = RestrictedBoltzmannMachine(6, 3, units=GaussianUnits(0.5)).double()
    rbm.initialize(data)
    torch.testing.assert_close(rbm.units.mean(rbm.bias), data.mean(0))


@pytest.mark.slow
def test_bars_and_stripes():
    """Persistent chains find all 14 patterns of 3 x 3, evenly (entropy 2.63906 = log 14)."""
    rows = torch.cartesian_prod(*[torch.arange(2.0)] * 3)
    stripes = rows.repeat_interleave(3, 1)
    patterns = torch.cat([stripes, rows.repeat(1, 3)]).unique(dim=0)
    assert len(patterns) == 14
    rbm = RestrictedBoltzmannMachine(9, 16)
    torch.nn.init.normal_(rbm.weights, std=0.1)
    loss = Compiled(ContrastiveDivergence(BlockGibbs(), 5, persistent=True, num_chains=1000))
    steps = 6000
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1 / len(patterns), momentum=0.5)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    guide = Empty()
    for _ in range(steps):
        optimizer.zero_grad()
        loss.loss_and_grads(rbm, guide, patterns)
        optimizer.step()
        decay.step()
    fn = rbm.distribution()
    with torch.no_grad():
        surprise = float((rbm.free_energy(patterns) + fn.exact_log_z()).mean())
    assert 2.63906 <= surprise < 2.63906 + 0.1


def test_an_ordinary_elbo_is_refused():
    rbm = machine(4, 2)
    svi = SVI(rbm, Empty(), pyro.optim.Adam({}), loss=Trace_ELBO())
    with pytest.raises(ValueError, match="known up to a constant"):
        svi.step(bits(3, 4))


def test_copies_and_state():
    rbm, data = machine(4, 2), bits(3, 4)
    again = copy.deepcopy(rbm)
    torch.testing.assert_close(again.free_energy(data), rbm.free_energy(data))
    fresh = RestrictedBoltzmannMachine(4, 2).double()
    fresh.load_state_dict(rbm.state_dict())
    torch.testing.assert_close(fresh.free_energy(data), rbm.free_energy(data))


def test_wrong_data_and_sizes():
    rbm = RestrictedBoltzmannMachine(4, 2)
    with pytest.raises(ValueError, match=r"expected values of BernoulliUnits"):
        rbm(torch.full((3, 4), 1.5))
    with pytest.raises(ValueError, match=r"expected shape \[\*, 4\]"):
        rbm(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"dtype torch\.int64"):
        RestrictedBoltzmannMachine(4, 2, units=CategoricalUnits(3))(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="hidden: expected a positive integer"):
        RestrictedBoltzmannMachine(4, 0)
    with pytest.raises(ValueError, match="expected a sampler"):
        rbm(None)
