"""Latent SDEs: likelihoods by hand, and a linear-Gaussian one whose posterior is known."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyrogen.checks import check_pair
from pyrogen.distributions import Path
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, PathELBO
from pyrogen.models import LatentSDE, MarkovChain, Normal
from pyrogen.nn import MLP, TimeMLP
from pyrogen.processes import OrnsteinUhlenbeck, Process
from tests.statistics import assert_mean_close

GRID = torch.linspace(0, 1, 11)


def small(likelihood="normal", width=2):
    decoder = MLP(3, (width,) if likelihood != "categorical" else (width, 4), hidden=(8,))
    process = Process(TimeMLP(3, hidden=(8,)), 0.5)
    return LatentSDE(process, decoder, 3, GRID, likelihood)


def irregular(n=5, observations=4, width=2):
    times = torch.rand(n, observations).sort(-1).values
    return torch.randn(n, observations, width), times, torch.rand(n, observations, width) > 0.3


def log_likelihoods(model, *args, **kwargs):
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace.nodes["z"]["value"], trace.nodes["x"]["log_prob"].detach()


@pytest.mark.parametrize("shared", [False, True])
def test_the_likelihood_of_an_irregular_series_by_hand(shared):
    model = small()
    x, times, mask = irregular()
    times = times[0] if shared else times
    z, got = log_likelihoods(model, x, times, mask)
    scale = float(model.likelihood.scale.detach())
    for i, row in enumerate(x):
        total = 0.0
        for j in range(x.shape[1]):
            now = float(times[j] if shared else times[i, j])
            state = [np.interp(now, GRID.numpy(), z[i, :, d].detach().numpy()) for d in range(3)]
            mean = model.decoder(torch.tensor(state, dtype=torch.float32)).detach()
            each = scipy.stats.norm.logpdf(row[j].numpy(), mean.numpy(), scale)
            total += float(each[mask[i, j].numpy()].sum())
        assert got[i].item() == pytest.approx(total, rel=1e-4)


def test_at_times_of_the_grid_the_state_is_that_of_the_path():
    model = small()
    z = torch.randn(4, 11, 3)
    assert torch.equal(model.states_at(z, GRID), z)
    index = torch.tensor([[0, 3], [10, 10], [4, 9], [1, 2]])
    got = model.states_at(z, GRID[index])
    assert torch.equal(got, torch.stack([row[i] for row, i in zip(z, index, strict=True)]))
    particles = torch.stack([z, 2 * z])
    assert torch.equal(model.states_at(particles, GRID[index])[1], 2 * got)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "categorical"])
def test_what_is_masked_does_not_matter(likelihood):
    model = small(likelihood)
    x, times, mask = irregular()
    x = {"normal": x, "bernoulli": (x > 0).float(), "categorical": (x > 0).long()}[likelihood]
    junk = x.new_full((), 99) if likelihood == "categorical" else x.new_full((), torch.nan)
    other = torch.where(mask, x, junk)
    results = []
    for data in (x, other):
        torch.manual_seed(1)
        model.zero_grad()
        loss = -poutine.trace(model).get_trace(data, times, mask).log_prob_sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    changed = torch.where(mask, 1 - x if likelihood != "normal" else x + 1, x)
    torch.manual_seed(1)
    assert poutine.trace(model).get_trace(changed, times, mask).log_prob_sum() != -results[0][0]


def test_draws():
    process = OrnsteinUhlenbeck(rate=1.0, scale=0.5)
    start = torch.tensor([2.0])
    model = LatentSDE(process, nn.Identity(), 1, GRID, Normal(0.1), start, solver="exact")
    x = model(None, times=torch.tensor([0.0, 0.5, 1.0]), num_samples=20_000)
    t = torch.tensor([0.0, 0.5, 1.0]).unsqueeze(-1)
    assert_mean_close(x, 2 * (-t).exp())
    assert_mean_close((x - 2 * (-t).exp()).square(), process.variance(t) + 0.01)
    assert model(None, times=torch.rand(7, 4).sort(-1).values).shape == (7, 4, 1)
    assert model(None).shape == (1, 11, 1)


def test_the_chain_of_eulers_steps_is_the_path():
    """The same states have the same density as sites of a chain and as one path."""
    field, steps, scale = TimeMLP(2, hidden=(8,)).double(), 6, 0.7
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    h, normal = 1 / steps, dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)

    def transition(z, k):  # the chain counts down, time runs on
        return z + h * field(z, times[steps - k]), torch.tensor(
            scale * math.sqrt(h), dtype=torch.float64
        )

    chain = MarkovChain(transition, nn.Linear(2, 1), 2, steps, initial=normal).double()
    trace = poutine.trace(chain).get_trace(None, num_samples=4)
    trace.compute_log_prob()
    sites = [trace.nodes[f"z_{k}"] for k in range(steps, -1, -1)]
    path = torch.stack([site["value"] for site in sites], -2)
    law = Path(Process(field, scale), normal, times)
    expected = torch.stack([site["log_prob"] for site in sites]).sum(0)
    torch.testing.assert_close(law.log_prob(path), expected, rtol=1e-10, atol=1e-10)


# A linear-Gaussian model: dz = -z dt + 0.8 dW, z_0 ~ N(0.5, 0.6^2), x = z + 0.3 e.
RATE, SCALE, MEAN, STD, NOISE = 1.0, 0.8, 0.5, 0.6, 0.3


def kalman(values, steps, decay, spread):
    """The log evidence by Kalman's filter; ``values[k]`` is a number or None, after k steps."""
    mean, variance, total = MEAN, STD**2, 0.0
    for k in range(steps + 1):
        if k:
            mean, variance = decay * mean, decay**2 * variance + spread
        if values[k] is not None:
            total += scipy.stats.norm.logpdf(values[k], mean, math.sqrt(variance + NOISE**2))
            gain = variance / (variance + NOISE**2)
            mean, variance = mean + gain * (values[k] - mean), (1 - gain) * variance
    return total


class Smoother:
    """What a path at (z, t) leads to: exp(-precision z^2 / 2 + shift z), by a filter that runs
    backwards in continuous time, at the beginning of each step."""

    def __init__(self, values, times):
        precision, shift = 0.0, 0.0
        found = []
        for k in reversed(range(len(times))):
            if k < len(times) - 1:
                h = float(times[k + 1] - times[k])
                decay = math.exp(-RATE * h)
                spread = SCALE**2 * (1 - decay**2) / (2 * RATE)
                shrunk = 1 + spread * precision
                precision, shift = decay**2 * precision / shrunk, decay * shift / shrunk
            found.append((precision, shift))
            if values[k] is not None:
                precision, shift = precision + NOISE**-2, shift + values[k] / NOISE**2
        self.first = precision, shift
        self.times = times
        self.table = torch.tensor(found[::-1], dtype=times.dtype)

    def __call__(self, z, t):
        row = torch.searchsorted(self.times, t.contiguous())
        precision, shift = self.table[row].unbind(-1)
        return SCALE**2 * (shift.unsqueeze(-1) - precision.unsqueeze(-1) * z)

    def beginning(self):
        variance = 1 / (STD**-2 + self.first[0])
        mean = variance * (MEAN / STD**2 + self.first[1])
        return dist.Normal(torch.full((1,), mean, dtype=torch.float64), variance**0.5).to_event(1)


class Begin(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self):
        return self.fn


def linear_gaussian(steps):
    """The model on a grid, its posterior as a guide, data, and Kalman's evidence of the grid."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    initial = dist.Normal(torch.full((1,), MEAN, dtype=torch.float64), STD).to_event(1)
    model = LatentSDE(
        OrnsteinUhlenbeck(RATE, SCALE), nn.Identity(), 1, times,
        Normal(torch.tensor(NOISE, dtype=torch.float64), learned=False), initial,
    )  # fmt: skip
    observed = {0.0: 0.2, 0.25: 1.1, 0.5: -0.4, 1.0: 0.9}
    values = [observed.get(float(t)) for t in times]
    smoother = Smoother(values, times)
    guide = PathDrift(model, smoother, Begin(smoother.beginning()))
    data = torch.tensor(list(observed.values()), dtype=torch.float64).unsqueeze(-1)
    evidence = kalman(values, steps, 1 - RATE / steps, SCALE**2 / steps)
    return model, guide, data, torch.tensor(list(observed), dtype=torch.float64), evidence


def log_weights(model, guide, data, times, n=4000):
    """``log p - log q`` by Girsanov, with the martingale and without."""
    args = data.expand(n, *data.shape), times
    model_trace, guide_trace = check_pair(model, guide, args)
    q, p = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
    z, x = guide_trace.nodes["z"]["value"], model_trace.nodes["x"]
    likelihood = x["fn"].log_prob(x["value"])
    return [likelihood - q.log_ratio(z, p, martingale=exact) for exact in (True, False)]


def test_the_exact_posterior_drift_reaches_the_evidence_with_the_step_and_no_noise():
    """The variance of the log-weights and the gap of the bound vanish in proportion to the step.

    Of a step what is left is the second derivative of what is to come times (dW^2 - h), of variance
    h^2: order 1 in the sum. 4000 paths know a variance to 3 percent, so its order in one halving to
    0.06; the other 0.14 are for the next term.
    """
    variances = []
    for steps in (64, 128, 256):
        model, guide, data, times, evidence = linear_gaussian(steps)
        exact, plain = log_weights(model, guide, data, times)
        assert_mean_close(exact.exp(), torch.tensor(math.exp(evidence)))
        assert_mean_close(exact - plain, torch.zeros(()))
        variances.append(float(exact.var()))
        gap, error = evidence - float(exact.mean()), 5 * math.sqrt(variances[-1] / len(exact))
        assert -error < gap < variances[-1] + error
        assert variances[-1] < 0.03 * float(plain.var())
    orders = [math.log2(one / two) for one, two in itertools.pairwise(variances)]
    assert all(abs(order - 1) < 0.2 for order in orders), orders


def test_kalman_agrees_with_the_joint_normal_law():
    """The oracle against another: the covariance of all observations."""
    _, _, data, times, evidence = linear_gaussian(16)
    decay, spread = 1 - RATE / 16, SCALE**2 / 16
    steps = (16 * times).long().tolist()

    def variance(k):
        return decay ** (2 * k) * STD**2 + spread * sum(decay ** (2 * i) for i in range(k))

    covariance = [[decay ** abs(i - j) * variance(min(i, j)) for j in steps] for i in steps]
    covariance = torch.tensor(covariance, dtype=torch.float64) + NOISE**2 * torch.eye(
        4, dtype=torch.float64
    )
    mean = torch.tensor([decay**k * MEAN for k in steps], dtype=torch.float64)
    joint = dist.MultivariateNormal(mean, covariance).log_prob(data.squeeze(-1))
    assert float(joint) == pytest.approx(evidence, rel=1e-10)


def test_plain_elbo_and_path_elbo_are_one_bound():
    model, guide, data, times, _ = linear_gaussian(16)
    args = data.expand(500, *data.shape), times
    losses = [
        torch.tensor([loss.loss(model, guide, *args) / 500 for _ in range(20)])
        for loss in (Trace_ELBO(), PathELBO(), PathELBO(martingale=True))
    ]
    assert_mean_close(losses[0] - losses[1], torch.zeros(()))
    assert_mean_close(losses[0] - losses[2], torch.zeros(()))


def test_it_can_be_part_of_another_program():
    class Outer(PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = small()

    outer = Outer()
    assert outer.inner(None, num_samples=2).shape == (2, 11, 2)
    assert {name for name, _ in outer.named_parameters()} >= {"inner._beginning.mean"}


def test_times_may_be_of_another_precision():
    double = torch.linspace(0, 0.7, 8, dtype=torch.float64)
    model = LatentSDE(OrnsteinUhlenbeck(), nn.Linear(3, 2), 3, double)
    assert model.times.dtype == torch.float32
    assert double[-1] > model.times[-1].double()
    z = torch.randn(4, 8, 3)
    torch.testing.assert_close(model.states_at(z, double), z)
    assert model(None, times=double, num_samples=2).shape == (2, 8, 2)


def test_copies_and_graphs():
    model = small().double()
    guide = PathDrift(model).double()
    x, times, mask = irregular()
    args = x.double(), times.double(), mask
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        expected = log_likelihoods(model, *args)[1]
        torch.manual_seed(1)
        assert torch.equal(log_likelihoods(clone, *args)[1], expected)
        with torch.no_grad():
            for parameter in clone.parameters():
                parameter.mul_(2)
        torch.manual_seed(1)
        assert not torch.allclose(log_likelihoods(clone, *args)[1], expected)
    losses = []
    for loss in (PathELBO(), Compiled(PathELBO(), compile=False)):
        torch.manual_seed(1)
        losses.append(loss.loss(model, guide, *args))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_what_does_not_fit_is_refused():
    model = small()
    x, times, mask = irregular()
    with pytest.raises(ValueError, match=r"data: expected shape \[\*, 4, 2\]"):
        model(torch.zeros(5, 4, 3), times)
    with pytest.raises(ValueError, match=r"times: expected shape \[K\] or \[5, K\], got \[3, 4\]"):
        model(x, times[:3])
    with pytest.raises(ValueError, match=r"within the grid, from 0 to 1, got some from .* to 2"):
        model(x, times + (times == times.max()) * (2 - times.max()))
    with pytest.raises(ValueError, match="times that do not decrease"):
        model(x, times.flip(-1))
    with pytest.raises(ValueError, match=r"mask: expected booleans .* \[5, 4, 2\], got .*float32"):
        model(x, times, mask.float())
    with pytest.raises(ValueError, match="data: expected finite values"):
        model(torch.where(mask, x, torch.nan), times)
    with pytest.raises(TypeError, match="process: expected a Process, got TimeMLP"):
        LatentSDE(TimeMLP(3), nn.Linear(3, 2), 3, GRID)
    with pytest.raises(ValueError, match="initial: expected 3 dimensions, got 2"):
        LatentSDE(OrnsteinUhlenbeck(), nn.Linear(3, 2), 3, GRID, initial=torch.zeros(2))
    with pytest.raises(ValueError, match=r"decoder: expected output \[2, F\] .* got \[2, 2, 2\]"):
        LatentSDE(OrnsteinUhlenbeck(), MLP(3, (2, 2)), 3, GRID)
    with pytest.raises(ValueError, match="times: expected increasing times"):
        LatentSDE(OrnsteinUhlenbeck(), nn.Linear(3, 2), 3, GRID.flip(0))
