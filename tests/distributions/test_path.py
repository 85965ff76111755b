"""Laws of paths: densities, Girsanov's log-ratio, gradients, refusals."""

from __future__ import annotations

import math
import weakref

import pyro.distributions as dist
import pytest
import torch
import torchsde
from torch import nn
from torch.distributions import kl_divergence

from pyrogen.distributions import Path
from pyrogen.processes import Bridge, Brownian, OrnsteinUhlenbeck, Process
from tests.statistics import assert_mean_close

DOUBLE = torch.float64
SOLVERS = ("euler", "heun", "exact", "torchsde:euler", "torchsde:srk", "torchsde:reversible_heun")


def grid(steps=20, end=1.0, dtype=None):
    return torch.linspace(0.0, end, steps + 1, dtype=dtype)


def network(size=2, dtype=None):
    net = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, size))
    return net.to(dtype)


def on_state(net):
    return lambda x, t: net(x)


def test_log_prob_is_the_product_of_eulers_steps():
    process = Process(lambda x, t: t.unsqueeze(-1) * x.sin(), lambda x, t: 0.5 + x.square())
    times = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=DOUBLE)
    initial = dist.Normal(torch.zeros(5, 2, dtype=DOUBLE), 2.0).to_event(1)
    law = Path(process, initial, times)
    path = law.sample()
    expected = initial.log_prob(path[:, 0])
    for k, h in enumerate(times.diff()):
        x = path[:, k]
        mean, std = x + h * process.drift(x, times[k]), process.diffusion_at(x, times[k]) * h.sqrt()
        expected = expected + dist.Normal(mean, std).to_event(1).log_prob(path[:, k + 1])
    torch.testing.assert_close(law.log_prob(path), expected)


def test_exact_law_of_an_ornstein_uhlenbeck_path_is_its_gaussian():
    process, times = OrnsteinUhlenbeck(1.5, 0.7), grid(4, dtype=DOUBLE)
    law = Path(process, torch.ones(1, dtype=DOUBLE), times, solver="exact")
    s, t = times[1:, None], times[None, 1:]
    covariance = process.mean_scale((t - s).abs()) * process.variance(torch.minimum(s, t))
    gaussian = dist.MultivariateNormal(process.mean_scale(times[1:]), covariance)
    path = law.sample((7,))
    torch.testing.assert_close(law.log_prob(path), gaussian.log_prob(path[:, 1:, 0]))


def test_moments_of_an_ornstein_uhlenbeck_path():
    law = Path(OrnsteinUhlenbeck(1.0, 0.2), torch.zeros(1), grid(100))
    end = law.sample((50_000,))[:, -1, 0]
    assert_mean_close(end, 0.0)
    # Euler's variance in 100 steps is above that of the process, 0.01729329, by
    # h / 2 + h e^-2 / (1 - e^-2) = 0.66 %.
    h = 0.01
    euler = 0.04 * h * sum((1 - h) ** (2 * k) for k in range(100))
    assert euler / 0.01729329 == pytest.approx(1.0066, abs=2e-4)
    assert_mean_close(end.square(), euler)
    exact = Path(OrnsteinUhlenbeck(1.0, 0.2), torch.zeros(1), grid(3), solver="exact")
    assert_mean_close(exact.sample((50_000,))[:, -1, 0].square(), 0.01729329)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_the_process(solver):
    law = Path(OrnsteinUhlenbeck(1.0, 0.5), torch.full((20_000, 1), 2.0), grid(50), solver=solver)
    end = law.sample()[:, -1, 0]
    # The worst, Euler's, is off by h / 2 relative to the mean's exponent: 2 e^-1 * 0.01.
    allowed = 0.0075
    error = float(end.mean()) - 2 * math.exp(-1)
    assert abs(error) < allowed + 5 * float(end.std()) / 20_000**0.5
    variance = 0.125 * (1 - math.exp(-2))
    assert float(end.var()) == pytest.approx(variance, rel=0.015 + 5 * (2 / 20_000) ** 0.5)


@pytest.mark.parametrize("solver", ["euler", "torchsde:milstein", "torchsde:srk"])
def test_noise_that_depends_on_the_state(solver):
    process = Process(lambda x, t: 0.1 * x, lambda x, t: 0.3 * x)
    law = Path(process, torch.ones(20_000, 1), grid(20), solver=solver)
    end = law.sample()[:, -1, 0]
    allowed = 0.0003 + 5 * float(end.std()) / 20_000**0.5  # Euler's (1 + 0.1 h)^20 and e^0.1
    assert float(end.mean()) == pytest.approx(math.exp(0.1), abs=allowed)


def test_divergence_of_a_constant_control():
    prior = Path(OrnsteinUhlenbeck(1.0, 0.2), torch.zeros(4, 1), grid(50))
    posterior = prior.steered(lambda x, t: torch.full_like(x, 0.3))
    path = posterior.rsample()
    expected = torch.full((4,), 1.125)  # c^2 T / (2 sigma^2)
    torch.testing.assert_close(posterior.log_ratio(path, prior, martingale=False), expected)
    torch.testing.assert_close(kl_divergence(posterior, prior), expected)
    whole = posterior.log_ratio(posterior.rsample((10_000,)), prior)
    assert_mean_close(whole, expected)
    assert float(whole.var()) == pytest.approx(2 * 1.125, rel=0.1)  # of u . W, |u|^2 T


@pytest.mark.parametrize("steered", [True, False])
def test_log_ratio_is_the_difference_of_log_densities(steered):
    process, net = OrnsteinUhlenbeck(1.0, 0.4), network(dtype=DOUBLE)
    prior = Path(process, torch.zeros(3, 2, dtype=DOUBLE), grid(dtype=DOUBLE))
    if steered:
        posterior = prior.steered(on_state(net))
    else:
        other = Process(lambda x, t: process.drift(x, t) + net(x), process.diffusion)
        posterior = Path(other, prior.initial, prior.times)
    path = posterior.rsample()
    ratios = []
    for ratio in (
        posterior.log_ratio(path, prior),
        posterior.log_prob(path) - prior.log_prob(path),
    ):
        ratios.append(
            [ratio, *torch.autograd.grad(ratio.sum(), net.parameters(), retain_graph=True)]
        )
    torch.testing.assert_close(*ratios)


def test_log_ratio_of_a_random_beginning():
    process, times = Brownian(), grid(3, dtype=DOUBLE)
    prior = Path(process, dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1), times)
    narrow = dist.Normal(torch.ones(2, dtype=DOUBLE), 0.5).to_event(1)
    posterior = prior.started_at(narrow)
    path = posterior.sample((5,))
    expected = posterior.log_prob(path) - prior.log_prob(path)
    torch.testing.assert_close(posterior.log_ratio(path, prior), expected)
    without = posterior.log_ratio(path, prior, martingale=False)
    torch.testing.assert_close(without, kl_divergence(narrow, prior.initial).expand(5))


def test_divergence_is_that_of_torchsde():
    net, process = network(dtype=DOUBLE), OrnsteinUhlenbeck(1.0, 0.4)

    class SDE(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return process.drift(y, t) + net(y)

        def h(self, t, y):
            return process.drift(y, t)

        def g(self, t, y):
            return torch.full_like(y, 0.4)

    start, times = torch.zeros(5, 2, dtype=DOUBLE), grid(dtype=DOUBLE)
    path, ratio = torchsde.sdeint(SDE(), start, times, method="euler", dt=0.05, logqp=True)
    prior = Path(process, start, times)
    ours = prior.steered(on_state(net)).log_ratio(path.movedim(0, 1), prior, martingale=False)
    torch.testing.assert_close(ours, ratio.sum(0))


def test_divergence_of_another_solver_is_an_integral():
    # Along a path that is straight, x = t, the control u = x has the integral 1/2 int t^2 = 1/6,
    # and the trapezoidal rule is off by h^2 / 12.
    prior = Path(Brownian(), torch.zeros(1, dtype=DOUBLE), grid(10, dtype=DOUBLE), solver="heun")
    posterior = prior.steered(lambda x, t: x)
    straight = grid(10, dtype=DOUBLE).unsqueeze(-1)
    ratio = posterior.log_ratio(straight, prior, martingale=False)
    assert float(ratio) == pytest.approx(1 / 6 + 0.01 / 12, rel=1e-9)


def controlled(steps):
    """A Brownian path, and its posterior given its end, measured as 1 with deviation 1."""
    prior = Path(Brownian(), torch.zeros(1, dtype=DOUBLE), grid(steps, dtype=DOUBLE))
    return prior, prior.steered(lambda x, t: (1 - x) / (2 - t.unsqueeze(-1)))


def test_log_ratio_of_the_posterior_does_not_vary():
    spread = []
    for steps in (50, 200):
        prior, posterior = controlled(steps)
        path = posterior.sample((2000,))
        likelihood = dist.Normal(path[:, -1, 0], 1.0).log_prob(torch.ones((), dtype=DOUBLE))
        bound = likelihood - posterior.log_ratio(path, prior)
        evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0))
        assert float(bound.mean()) == pytest.approx(float(evidence), abs=1 / steps)
        spread.append(float(bound.std()))
    assert spread[1] < 0.55 * spread[0]  # it is of the order of the square root of the step
    without = likelihood - posterior.log_ratio(path, prior, martingale=False)
    assert float(without.std()) > 10 * spread[1]


def test_sticking_the_landing_keeps_the_mean_of_the_gradient():
    theta = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    prior = Path(OrnsteinUhlenbeck(1.0, 0.5), torch.ones(1, dtype=DOUBLE), grid(5, dtype=DOUBLE))
    posterior = prior.steered(lambda x, t: theta * x.sin())
    gradients = {}
    for sticking in (False, True):
        found = []
        for _ in range(1500):
            path = posterior.rsample()
            ratio = posterior.log_ratio(path, prior, True, sticking)
            found.append(torch.autograd.grad(ratio, theta)[0])
        gradients[sticking] = torch.stack(found)
    assert not torch.allclose(gradients[False][:10], gradients[True][:10])
    difference = gradients[True] - gradients[False].mean()
    error = math.hypot(*(float(g.std()) / len(g) ** 0.5 for g in gradients.values()))
    assert abs(float(difference.mean())) < 4.5 * error


class Told(nn.Module):
    """A drift that is told a context."""

    def __init__(self):
        super().__init__()
        self.net = network(dtype=DOUBLE)

    def forward(self, x, t, c):
        return self.net(x) + c


def test_the_adjoint_is_the_gradient():
    """That of the reversible method, up to rounding."""
    start = torch.zeros(3, 2, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(3, 20, 2, dtype=DOUBLE, requires_grad=True)
    drift, solver, found = Told(), "torchsde:reversible_heun", []
    for gradient in ("direct", "adjoint"):
        law = Path(Process(drift, 0.3), start, grid(dtype=DOUBLE), context, solver, gradient)
        torch.manual_seed(0)
        path = law.rsample()
        wanted = [start, context, *drift.parameters()]
        found.append([path, *torch.autograd.grad(path.square().sum(), wanted)])
    for direct, adjoint in zip(*found, strict=True):
        torch.testing.assert_close(direct, adjoint, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [100, 800])
def test_torchsde_makes_as_many_steps_as_the_grid_has(steps):
    """Differences of times in single precision have few digits."""
    calls = []

    class Counted(nn.Module):
        def forward(self, x, t):
            calls.append(float(t))
            return -x

    times = torch.linspace(0.0, 1.0, steps + 1)
    law = Path(
        Process(Counted(), 0.3),
        torch.zeros(2, 1),
        times,
        solver="torchsde:reversible_heun",
        gradient="adjoint",
    )
    law.rsample()
    # At the end of each step, and at the beginning once for the solver's state, once for the first.
    torch.testing.assert_close(torch.tensor(calls[1:]), times)


@pytest.mark.parametrize("martingale", [True, False])
def test_what_steered_a_path_is_not_computed_again(martingale):
    network, shapes = Told().double(), []
    prior = Path(OrnsteinUhlenbeck(1.0, 0.5), torch.ones(3, 2, dtype=DOUBLE), grid(7, dtype=DOUBLE))

    def control(x, t):
        shapes.append(list(x.shape))
        return network(x, t, 0.0)

    law = prior.steered(control)
    path = law.rsample()
    found = law.log_ratio(path, prior, martingale)
    assert shapes == 7 * [[3, 2]]
    expected = law.log_ratio(path.view_as(path), prior, martingale)
    assert shapes[7:] == [[3, 7, 2]]
    torch.testing.assert_close(found, expected)
    wanted = list(network.parameters())
    both = (
        torch.autograd.grad(each.sum(), wanted, retain_graph=True) for each in (found, expected)
    )
    for got, again in zip(*both, strict=True):
        torch.testing.assert_close(got, again)


def test_what_steered_a_path_without_gradient_has_one_all_the_same():
    pull = torch.tensor(0.3, requires_grad=True)
    prior = Path(OrnsteinUhlenbeck(1.0, 0.2), torch.zeros(4, 1), grid(50))
    posterior = prior.steered(lambda x, t: pull.expand_as(x))
    ratio = posterior.log_ratio(posterior.sample(), prior, martingale=False)
    (slope,) = torch.autograd.grad(ratio.mean(), pull)
    torch.testing.assert_close(slope, torch.tensor(2 * 1.125 / 0.3))


def test_a_path_does_not_outlive_its_use():
    law = Path(OrnsteinUhlenbeck(), torch.zeros(1), grid(5))
    path = law.rsample()
    kept = weakref.ref(path)
    del path
    assert kept() is None
    assert float(kl_divergence(law, law)) == 0.0  # of a new one


def test_expanding_keeps_context_and_beginning():
    context = torch.randn(3, 5, 2)
    law = Path(
        Process(lambda x, t, c: c.sum(-1, keepdim=True) + 0 * x, 1.0),
        torch.zeros(1),
        grid(5),
        context,
    )
    assert law.batch_shape == (3,)
    wide = law.expand((4, 3))
    path = wide.rsample((2,))
    assert path.shape == (2, 4, 3, 6, 1)
    assert wide.log_prob(path).shape == (2, 4, 3)
    torch.testing.assert_close(wide.log_prob(path)[1, 2], law.log_prob(path[1, 2]))


def test_a_bridge_has_the_density_of_its_interior():
    process, times = Brownian(), grid(2, dtype=DOUBLE)
    bridge = Path(
        Bridge(process, torch.ones(1, dtype=DOUBLE), 1.0),
        torch.zeros(1, dtype=DOUBLE),
        times,
        solver="exact",
    )
    path = torch.tensor([[0.0], [0.8], [1.0]], dtype=DOUBLE)
    expected = dist.Normal(0.5, 0.5).log_prob(torch.tensor(0.8, dtype=DOUBLE))
    torch.testing.assert_close(bridge.log_prob(path), expected)


def test_shapes_and_times_are_checked():
    process, start = Brownian(), torch.zeros(2)
    with pytest.raises(TypeError, match="process: expected a Process"):
        Path(lambda x, t: x, start, grid())
    with pytest.raises(ValueError, match="times: expected increasing times"):
        Path(process, start, torch.tensor([0.0, 0.5, 0.5]))
    with pytest.raises(ValueError, match="times: expected shape"):
        Path(process, start, torch.tensor([0.0]))
    with pytest.raises(ValueError, match="initial: expected a point"):
        Path(process, dist.Normal(0.0, 1.0), grid())
    with pytest.raises(TypeError, match="initial: expected a tensor or a distribution"):
        Path(process, 0.0, grid())
    with pytest.raises(ValueError, match=r"context: expected \[\*batch, 20, C\]"):
        Path(process, start, grid(), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="gradient 'adjoint': expected a solver of torchsde"):
        Path(process, start, grid(), gradient="adjoint")
    unknown = Process(lambda x, t: x, 1.0)
    with pytest.raises(ValueError, match=r"that is a torch\.nn\.Module"):
        Path(unknown, start, grid(), solver="torchsde:srk", gradient="adjoint")
    with pytest.raises(ValueError, match="torchsde has"):
        Path(process, start, grid(), solver="torchsde:rk4")
    with pytest.raises(ValueError, match="expected one of torchsde's for"):
        Path(Process(lambda x, t: x, lambda x, t: x), start, grid(), solver="torchsde:heun")
    with pytest.raises(ValueError, match="gradient: expected one of"):
        Path(process, start, grid(), gradient="none")


def test_laws_that_share_no_paths_are_refused():
    start, path = torch.zeros(2), torch.zeros(21, 2)
    prior = Path(Brownian(), start, grid())
    with pytest.raises(ValueError, match="divergence would be infinite"):
        Path(Brownian(2.0), start, grid()).log_ratio(path, prior)
    with pytest.raises(ValueError, match="times: expected the same grid"):
        Path(Brownian(), start, grid(10)).log_ratio(path[:11], prior)
    with pytest.raises(ValueError, match="times: expected the same grid"):
        Path(Brownian(), start, grid(20, 2.0)).log_ratio(path, prior)
    with pytest.raises(ValueError, match="starts, got another"):
        prior.started_at(torch.ones(2)).log_ratio(path, prior)
    with pytest.raises(ValueError, match="starts, got a distribution"):
        prior.started_at(dist.Normal(start, 1.0).to_event(1)).log_ratio(path, prior)
    with pytest.raises(ValueError, match="one shape"):
        Path(Brownian(), torch.zeros(3), grid()).log_ratio(torch.zeros(21, 3), prior)
    with pytest.raises(TypeError, match="other: expected a Path"):
        prior.log_ratio(path, dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("size", [1, 20])
def test_a_time_that_does_not_stand_beside_the_state_is_found(size):
    prior = Path(Brownian(), torch.zeros(3, size), grid())
    posterior = prior.steered(lambda x, t: x / (2 - t))
    with pytest.raises(ValueError, match="unsqueeze"):
        posterior.log_ratio(posterior.sample(), prior)


def test_densities_that_are_not_known_are_refused():
    prior = Path(Brownian(), torch.zeros(2), grid(), solver="heun")
    path = prior.sample()
    with pytest.raises(ValueError, match="log_prob: expected solver 'euler' or 'exact'"):
        prior.log_prob(path)
    with pytest.raises(ValueError, match="the martingale of log_ratio: expected solver"):
        prior.steered(lambda x, t: x).log_ratio(path, prior)
    with pytest.raises(ValueError, match="starts at the initial state"):
        Path(Brownian(), torch.zeros(2), grid()).log_prob(1 + path)
