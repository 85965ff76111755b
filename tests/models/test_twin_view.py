"""One law of paths, three readings: a ground state, a diffusion, optimal control.

The best drift of a ground state is the score of its amplitude; the same guide, steered by the score
of noised data, is the reverse diffusion; and the same loss is that of stochastic optimal control.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from pyrogen.distributions import Path, ScoreBased
from pyrogen.guides import PathDrift
from pyrogen.kernels import MCMC, ReverseDiffusion
from pyrogen.losses import PathELBO
from pyrogen.models import DoubleWell, FeynmanKac, Harmonic
from pyrogen.nn import MLP
from pyrogen.processes import Brownian, Process, VariancePreserving
from tests.statistics import assert_mean_close

# The ground state: optimal drift = grad log phi.


class Stationary(nn.Module):
    """A drift that does not look at the time."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, x, t):
        return self.field(x)


def trained(model, drift, steps, **optimizer):
    loss = PathELBO(sticking_the_landing=True, persistent=True)
    svi = SVI(model, PathDrift(model, drift=drift), pyro.optim.ClippedAdam(optimizer), loss=loss)
    for _ in range(steps):
        svi.step()
    return drift


def test_a_linear_drift_learns_the_score_of_the_oscillator():
    """``d/dx log exp(-x^2 / 2) = -x``, with an error of the order of the step, 0.025."""
    drift = Stationary(nn.Linear(1, 1))
    trained(FeynmanKac(Harmonic(), 1, 1.0, 40, 300), drift, 150, lr=0.05, lrd=0.98)
    weight, bias = float(drift.field.weight.detach()), float(drift.field.bias.detach())
    assert weight == pytest.approx(-1.0, abs=2 * 0.025)
    assert bias == pytest.approx(0.0, abs=2 * 0.025)


@pytest.mark.slow
def test_a_network_learns_the_score_of_the_ground_state_of_a_double_well():
    """Against the eigenvector of a grid of spacing 0.01, weighed by ``phi^2``.

    Steps of 0.02 in wells of frequency 4 shift the drift by a few percent, and what is left of the
    noise of 800 gradient steps as much: of its mean square less than 1 % may be missed.
    """
    h = 0.01
    grid = torch.arange(-3, 3 + h / 2, h, dtype=torch.float64)
    potential = DoubleWell(2.0)(grid.unsqueeze(-1)).numpy()
    matrix = np.diag(potential + 1 / h**2) - 0.5 / h**2 * (
        np.eye(len(grid), k=1) + np.eye(len(grid), k=-1)
    )
    energies, vectors = np.linalg.eigh(matrix)
    assert energies[0] == pytest.approx(1.400957265167, abs=1e-3)
    phi = torch.as_tensor(vectors[:, 0]).abs()
    score = torch.gradient(phi.clamp_min(1e-12).log(), spacing=h)[0]
    drift = Stationary(MLP(1, 1, hidden=(32, 32), activation=nn.Tanh))
    trained(FeynmanKac(DoubleWell(2.0), 1, 1.0, 50, 500), drift, 800, lr=1e-2, lrd=0.995)
    with torch.no_grad():
        learned = drift(grid.float().unsqueeze(-1), None).squeeze(-1).double()
    weight = phi.square() / phi.square().sum()
    missed = (weight * (learned - score).square()).sum() / (weight * score.square()).sum()
    assert float(missed) < 0.01


# The diffusion: the same guide, steered by a score, draws data.

NOISING = VariancePreserving(0.1, 4.0)
MEAN, STD = 1.5, 0.4


def score(x, t):
    """Of data N(1.5, 0.16), noised; ``t`` a scalar or ``[*, T]`` beside states ``[*, T, 1]``."""
    t = t.unsqueeze(-1) if t.dim() > 0 else t
    mean, variance = NOISING.mean_scale(t), NOISING.variance(t)
    return (MEAN * mean - x) / (STD**2 * mean**2 + variance)


def squared_diffusion(t):
    g = NOISING.diffusion(t).square()
    return g.unsqueeze(-1) if g.dim() > 0 else g


class Backwards(PyroModule):
    """The noising process run from its end, without the score: ``s = 1 - t`` grows from noise."""

    path_site, path_plate = "x", "data"

    def __init__(self, num_paths, num_steps, start=1e-3):
        super().__init__()
        self.num_paths = num_paths
        self.times = torch.linspace(0.0, 1.0 - start, num_steps + 1)
        self.process = Process(
            lambda x, s: -NOISING.drift(x, 1 - s), lambda s: NOISING.diffusion(1 - s)
        )

    def prior(self):
        end = torch.tensor(1.0)
        mean, variance = NOISING.mean_scale(end), NOISING.variance(end)
        std = (STD**2 * mean**2 + variance).sqrt()
        center = (MEAN * mean).expand(self.num_paths, 1)
        return Path(self.process, dist.Normal(center, std).to_event(1), self.times)

    def forward(self):
        with pyro.plate("data", self.num_paths, dim=-1):
            return pyro.sample("x", self.prior())


def steer(x, s):
    return squared_diffusion(1 - s) * score(x, 1 - s)


def test_a_guide_steered_by_the_score_draws_the_data():
    """As the reverse diffusion does: of both, mean and variance follow the recursion of Euler's
    steps."""
    model = Backwards(20_000, 100)
    path = PathDrift(model, drift=steer)()
    times = model.times.double()
    mean = MEAN * NOISING.mean_scale(1.0).double()
    variance = STD**2 * NOISING.mean_scale(1.0).double() ** 2 + NOISING.variance(1.0).double()
    for s, following in itertools.pairwise(times):
        h, t = following - s, 1 - s
        g2 = NOISING.diffusion(t).square()
        spread = STD**2 * NOISING.mean_scale(t) ** 2 + NOISING.variance(t)
        slope = g2 / 2 - g2 / spread  # of -f + g^2 score, as f = -g^2 x / 2
        mean = mean + h * (slope * mean + g2 * MEAN * NOISING.mean_scale(t) / spread)
        variance = (1 + h * slope) ** 2 * variance + h * g2
    end = path[:, -1, 0]
    assert_mean_close(end, mean)
    assert_mean_close((end - mean.float()).square(), variance)
    # Which is the law of the data, up to a step of 0.01.
    assert float(mean) == pytest.approx(MEAN, abs=0.01)
    assert float(variance.sqrt()) == pytest.approx(STD, abs=0.01)
    initial = model.prior().initial
    fn = ScoreBased(
        NOISING,
        lambda x, t: score(x.unsqueeze(-1), t).squeeze(-1),
        (),
        "score",
        min_time=1e-3,
        terminal=dist.Normal(initial.mean[0, 0], initial.stddev[0, 0]),
    )
    kernel = ReverseDiffusion(fn, 100, "euler-maruyama", denoise=False, compile=False)
    mcmc = MCMC(kernel, 1, num_chains=20_000, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples()["x"]
    assert_mean_close(drawn, mean)
    assert_mean_close((drawn - mean.float()).square(), variance)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_divergence_of_paths_is_the_error_of_the_score(share):
    """``KL(exact || share of the score) = 1/2 int g^2 E |(1 - share) score|^2 dt``, that is what
    denoising score matching minimises; ``E |score|^2`` is one over the variance."""
    steps = 200
    model = Backwards(2000, steps)
    exact = PathDrift(model, drift=steer).law()
    other = PathDrift(model, drift=lambda x, s: share * steer(x, s)).law()
    path = exact.rsample()
    times = 1 - model.times[:-1].double()
    g2, spread = NOISING.diffusion(times).square(), 0.0
    spread = STD**2 * NOISING.mean_scale(times) ** 2 + NOISING.variance(times)
    expected = float((0.5 * (1 - share) ** 2 * g2 / spread * model.times.diff()).sum())
    divergence = exact.log_ratio(path, other, martingale=False)
    # The variance of Euler's states is off by a few steps of 1/200 at most.
    allowed = 5 * float(divergence.std()) / 2000**0.5 + 0.02 * expected
    assert float(divergence.mean()) == pytest.approx(expected, abs=allowed)


# Optimal control: the linear-quadratic regulator.


class Regulator(PyroModule):
    """``dx = u dt + dW`` from ``x_0``; the cost is ``int u^2 / 2 + q x^2 / 2 dt + s x_T^2 / 2``."""

    path_site, path_plate = "x", "paths"

    def __init__(self, start, running, terminal, num_steps, num_paths):
        super().__init__()
        self.running, self.terminal, self.num_paths = running, terminal, num_paths
        self.start = torch.full((num_paths, 1), float(start))
        self.times = torch.linspace(0.0, 1.0, num_steps + 1)
        self.process = Brownian()

    def prior(self):
        return Path(self.process, self.start, self.times)

    def forward(self):
        with pyro.plate("paths", self.num_paths, dim=-1):
            x = pyro.sample("x", self.prior())
            states = x[..., 0].square()
            steps = self.times.diff()
            cost = 0.5 * self.running * (states[..., :-1] * steps).sum(-1)
            pyro.factor("cost", -cost - 0.5 * self.terminal * states[..., -1])


class Gains(nn.Module):
    """``u = -k(t) x``, with a number for each step."""

    def __init__(self, num_steps):
        super().__init__()
        self.num_steps = num_steps
        self.k = nn.Parameter(torch.zeros(num_steps))

    def forward(self, x, t):
        # Times come as a scalar, or as [*, T] beside states [*, T, 1].
        step = (t * self.num_steps).round().long()
        gain = self.k[step]
        return -(gain.unsqueeze(-1) if t.dim() > 0 else gain) * x


def regulated(gains, start, running, terminal):
    """The cost of gains, by the recursion of the second moment of Euler's steps."""
    h = 1 / len(gains)
    moment, cost = start**2, 0.0
    for k in gains:
        cost += 0.5 * h * (k**2 + running) * moment
        moment = (1 - k * h) ** 2 * moment + h
    return cost + 0.5 * terminal * moment


def riccati(steps, start, running, terminal):
    """The best gains of Euler's steps, and their cost."""
    h, weight, gains, noise = 1 / steps, terminal, [], 0.0
    for _ in range(steps):
        noise += 0.5 * h * weight
        gains.insert(0, weight / (1 + h * weight))
        weight = h * running + gains[0]
    return gains, 0.5 * weight * start**2 + noise


def test_the_same_loss_is_stochastic_optimal_control():
    """The learned gains against Riccati's equation, in discrete and in continuous time."""
    start, running, terminal, steps = 1.5, 4.0, 0.5, 10
    gains, value = riccati(steps, start, running, terminal)
    assert regulated(gains, start, running, terminal) == pytest.approx(value)
    # -P' = q - P^2 with P(T) = s: P = 2 tanh(2 (T - t) + atanh(s / 2)).
    fine, _ = riccati(10_000, start, running, terminal)
    assert fine[0] == pytest.approx(2 * math.tanh(2 + math.atanh(terminal / 2)), abs=1e-3)

    model, learned = Regulator(start, running, terminal, steps, 300), Gains(steps)
    guide = PathDrift(model, drift=learned)
    optim = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98})
    svi = SVI(model, guide, optim, loss=PathELBO(sticking_the_landing=True))
    for _ in range(250):
        svi.step()
    cost = regulated(learned.k.tolist(), start, running, terminal)
    # A cost is flat at its minimum: gains that are off by 5 % cost 0.1 % more.
    assert cost == pytest.approx(value, rel=2e-3)
    losses = torch.tensor([svi.evaluate_loss() / 300 for _ in range(50)])
    assert_mean_close(losses, cost)
