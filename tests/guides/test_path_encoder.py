"""The amortised guide of latent paths: what it sees, where it begins, and how far it comes."""

from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrogen.checks import check_pair
from pyrogen.guides import PathEncoder
from pyrogen.losses import Compiled, PathELBO
from pyrogen.models import LatentSDE, Normal
from pyrogen.nn import TimeMLP
from pyrogen.processes import OrnsteinUhlenbeck, Process

GRID = torch.linspace(0, 2, 11)


def pair(initial=None):
    process = Process(TimeMLP(3, hidden=(8,)), 0.5)
    model = LatentSDE(process, nn.Linear(3, 2), 3, GRID, initial=initial)
    return model, PathEncoder(model, hidden=(8, 8))


def shaken(guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def irregular(n=5, observations=4):
    times = 1.5 * torch.rand(n, observations).sort(-1).values
    values = torch.randn(n, observations, 2)
    return values, times, torch.rand(n, observations, 2) > 0.3


@pytest.mark.parametrize("initial", [None, torch.zeros(3)])
def test_guide_and_prior_begin_as_one(initial):
    model, guide = pair(initial)
    model_trace, guide_trace = check_pair(model, guide, irregular())
    q, p = (trace.nodes["z"]["fn"] for trace in (guide_trace, model_trace))
    for exact in (False, True):
        ratio = q.log_ratio(guide_trace.nodes["z"]["value"], p, martingale=exact)
        torch.testing.assert_close(ratio, torch.zeros(5), rtol=0, atol=1e-5)


def test_what_is_masked_is_not_seen():
    _, guide = pair()
    shaken(guide)
    x, times, mask = irregular()
    other = torch.where(mask, x, torch.nan)
    paths = []
    for data in (x, other, x + 1):
        torch.manual_seed(1)
        paths.append(guide(data, times, mask))
    assert torch.equal(paths[0], paths[1])
    assert not torch.allclose(paths[0], paths[2], atol=1e-3)


def test_after_the_last_observation_the_posterior_is_the_prior():
    model, guide = pair()
    shaken(guide)
    x, times, mask = irregular()
    law = guide.law(x, times, mask)
    path = law.rsample()
    prior = model.prior(x)
    control = law._along(path[..., :-1, :]) - prior._along(path[..., :-1, :])
    for i in range(len(x)):
        last = times[i][mask[i].any(-1)].max()
        assert (control[i, GRID[:-1] >= last].abs() < 1e-5).all()
        assert (control[i, GRID[:-1] < last].abs().amax(-1) > 1e-3).all()


def test_a_path_depends_on_observations_in_the_past_through_its_beginning_only():
    """The control after a time is that of a series without the observations before it."""
    _, guide = pair()
    shaken(guide)
    x, times, mask = irregular()
    mask = torch.ones_like(mask)
    later = mask & (times >= 0.8).unsqueeze(-1)
    state = torch.randn(5, 10, 3)
    one, two = (guide.law(x, times, seen)._along(state) for seen in (mask, later))
    after = GRID[:-1] >= 0.8
    torch.testing.assert_close(one[:, after], two[:, after])
    assert not torch.allclose(one[:, ~after], two[:, ~after], atol=1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        PathELBO(),
        PathELBO(sticking_the_landing=True),
        PathELBO(elbo=Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
    ],
    ids=["plain", "mean_field", "path", "sticking", "vectorised"],
)
def test_gradients_reach_every_parameter(loss):
    model, guide = pair()
    shaken(guide)
    loss.loss_and_grads(model, guide, *irregular())
    silent = [
        name
        for program in (model, guide)
        for name, parameter in program.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_copies_and_graphs():
    model, guide = pair()
    shaken(guide)
    args = irregular()
    for clone in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.manual_seed(1)
        expected = guide(*args)
        torch.manual_seed(1)
        assert torch.equal(clone(*args), expected)
    other = PathEncoder(model, hidden=(8, 8))
    other.load_state_dict(guide.state_dict())
    losses = []
    for loss, one in ((PathELBO(), guide), (Compiled(PathELBO(), compile=False), other)):
        torch.manual_seed(1)
        losses.append(loss.loss(model, one, *args))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_does_not_fit_is_refused():
    model, guide = pair()
    with pytest.raises(TypeError, match="expected one with a latent path and observations"):
        PathEncoder(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"control: expected a function of .* got str"):
        PathEncoder(model, control="mlp")
    with pytest.raises(ValueError, match=r"expected series to infer paths from .* got no data"):
        guide(None)
    with pytest.raises(ValueError, match="got num_samples=3"):
        guide(*irregular(), num_samples=3)


RATE, SCALE, NOISE, START, STEPS = 1.0, 0.7, 0.5, 0.5, 20


def evidences(x, times, mask, grid):
    """Kalman's filter of Euler's steps, a series at a time; observations at times of the grid."""
    h = float(grid[1] - grid[0])
    decay, spread = 1 - RATE * h, SCALE**2 * h
    found = []
    for row, at, seen in zip(x[..., 0].tolist(), times, mask[..., 0], strict=True):
        mean, variance, k, total = 0.0, START, 0, 0.0
        for value, step, there in zip(row, (at / h).round().long().tolist(), seen, strict=True):
            for _ in range(step - k):
                mean, variance = decay * mean, decay**2 * variance + spread
            k = step
            if there:
                total += scipy.stats.norm.logpdf(value, mean, math.sqrt(variance + NOISE**2))
                gain = variance / (variance + NOISE**2)
                mean, variance = mean + gain * (value - mean), (1 - gain) * variance
        found.append(total)
    return torch.tensor(found)


def best_bounds(x, times, mask, grid, price):
    r"""The bound with the best of all drifts and beginnings, by dynamic programming.

    The least cost to go from z is P z^2 / 2 - p z + c. A step with noise of variance S that may be
    steered at the cost |shift|^2 / (2 S) leaves P / (1 + S P), and costs S P / 2 for the noise,
    which cannot be steered; the true posterior, whose noise is less, pays log(1 + S P) / 2 instead.
    ``price`` is one of the two, the identity or ``log1p``; with the second this is the evidence.
    """
    h = float(grid[1] - grid[0])
    decay, noise = 1 - RATE * h, SCALE**2 * h
    found = []
    for row, at, seen in zip(x[..., 0].tolist(), times, mask[..., 0], strict=True):
        steps = (at / h).round().long().tolist()
        values = {k: value for k, value, there in zip(steps, row, seen, strict=True) if there}
        precision = shift = cost = 0.0
        for k in range(STEPS, -1, -1):
            if k < STEPS:
                kept = 1 + noise * precision
                cost += 0.5 * (price(noise * precision) - noise * shift**2 / kept)
                precision, shift = decay**2 * precision / kept, decay * shift / kept
            if k in values:
                precision, shift = precision + NOISE**-2, shift + values[k] / NOISE**2
                cost -= scipy.stats.norm.logpdf(values[k], 0, NOISE)
        kept = 1 + START * precision
        found.append(-cost - 0.5 * (math.log(kept) - START * shift**2 / kept))
    return torch.tensor(found)


def linear_gaussian():
    """The model, and series of it with six times each, of which some saw nothing."""
    grid = torch.linspace(0, 2, STEPS + 1)
    initial = dist.Normal(torch.zeros(1), START**0.5).to_event(1)
    likelihood = Normal(NOISE, learned=False)
    process = OrnsteinUhlenbeck(RATE, SCALE)
    model = LatentSDE(process, nn.Identity(), 1, grid, likelihood, initial)

    def draw(n):
        index = torch.stack([torch.randperm(STEPS + 1)[:6].sort().values for _ in range(n)])
        with torch.no_grad():
            x = model(None, grid[index])
        return x, grid[index], torch.rand(n, 6, 1) < 0.85

    return model, draw


def test_the_two_oracles_agree():
    model, draw = linear_gaussian()
    series = *draw(20), model.times
    exact = best_bounds(*series, math.log1p)
    torch.testing.assert_close(exact, evidences(*series), rtol=1e-4, atol=1e-4)
    assert (best_bounds(*series, float) < exact).all()


@pytest.mark.slow
def test_a_learned_posterior_comes_to_the_best_bound():
    """Irregular series of a known linear-Gaussian model: the bound on fresh ones, with one network
    for all of them, against the best that drifts can do on this grid, series by series.

    500 series with ten paths each know the mean gap, whose log-weights vary by about 0.6, to 0.01.
    What amortisation may cost is set to 0.1 nats of a divergence of about 1.5.
    """
    model, draw = linear_gaussian()
    guide = PathEncoder(model, hidden=(32, 32))
    optimizer = torch.optim.Adam(guide.parameters(), lr=5e-3)
    loss = PathELBO(sticking_the_landing=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        loss.loss_and_grads(model, guide, *draw(128))
        optimizer.step()
        schedule.step()
    test = draw(500)
    best = float(best_bounds(*test, model.times, float).mean())
    bound = -sum(loss.loss(model, guide, *test) for _ in range(10)) / 5000
    start = -loss.loss(model, PathEncoder(model), *test) / 500
    assert best - 0.1 < bound < best + 0.04
    assert start < best - 1
