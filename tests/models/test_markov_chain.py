"""Markov chains and their posteriors, in both directions, where everything is known."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn

from pyrogen.checks import check_pair
from pyrogen.guides import ChainPosterior
from pyrogen.models import MarkovChain, Normal
from pyrogen.nn import MLP, GaussianStep, TimeMLP
from tests.statistics import assert_mean_close

STEPS, DECAY, NOISE, OBSERVATION = 3, 0.8, 0.5, 0.3


def linear_chain(transition=None):
    """z' = 0.8 z + 0.5 e three times, then x = z_0 + 0.3 e."""
    likelihood = Normal(torch.tensor(OBSERVATION, dtype=torch.float64), learned=False)
    transition = transition or (lambda z, k: (DECAY * z, torch.tensor(NOISE)))
    return MarkovChain(transition, nn.Identity(), 1, STEPS, likelihood).double()


def covariance():
    """Of (z_3, z_2, z_1, z_0, x), by the lower-triangular map from the noises."""
    size = STEPS + 2
    maps = torch.zeros(size, size, dtype=torch.float64)
    maps[0, 0] = 1.0
    for row in range(1, STEPS + 1):
        maps[row] = DECAY * maps[row - 1]
        maps[row, row] = NOISE
    maps[-1] = maps[-2]
    maps[-1, -1] = OBSERVATION
    return maps @ maps.T


def given(cov, i, others):
    """Coefficients and standard deviation of variable i given others."""
    inner = cov[others][:, others]
    weights = torch.linalg.solve(inner, cov[others, i])
    return weights, (cov[i, i] - weights @ cov[others, i]).sqrt()


class Reader(nn.Module):
    """The encoder of a known posterior: mean, raw scale and the datum itself."""

    def __init__(self, weight, std, context):
        super().__init__()
        self.weight, self.std, self.context = weight, std, context

    def forward(self, x):
        raw = torch.log(torch.expm1(self.std)).expand_as(x)
        return torch.cat([self.weight * x, raw, x][: 3 if self.context else 2], -1)


def exact_guide(direction):
    cov, along = covariance(), direction == "along"
    first = 0 if along else STEPS
    (weight,), std = given(cov, first, [STEPS + 1])

    def transition(z, k, *context):
        row = STEPS - k  # of z_k
        if along:
            weights, std = given(cov, row + 1, [row, STEPS + 1])
            return weights[0] * z + weights[1] * context[0], std
        weights, std = given(cov, row, [row + 1])
        return weights[0] * z, std

    reader = Reader(weight, std, along)
    return ChainPosterior(transition, reader, 1, STEPS, direction, context_dim=int(along))


def evidence(x):
    return dist.Normal(0.0, covariance()[-1, -1].sqrt()).log_prob(x).sum().item()


@pytest.mark.parametrize("direction", ["along", "against"])
def test_with_the_exact_posterior_every_path_has_the_log_evidence(direction):
    x = torch.randn(5, 1, dtype=torch.float64)
    loss = Trace_ELBO().loss(linear_chain(), exact_guide(direction), x)
    assert -loss == pytest.approx(evidence(x), rel=1e-10)


def test_the_law_of_draws():
    x = linear_chain()(None, num_samples=50_000)
    assert_mean_close(x, torch.zeros(1))
    assert_mean_close(x.square(), covariance()[-1, -1:])


def test_along_the_model_divergences_are_in_closed_form():
    """The mean-field bound has the expectation of the plain one."""
    model, x = linear_chain(), torch.full((2000, 1), 0.7, dtype=torch.float64)
    step = GaussianStep(lambda z, t: -t * z, STEPS, std=0.9)
    reader = Reader(torch.tensor(0.3), torch.tensor(0.8), False)
    guide = ChainPosterior(step, reader, 1, STEPS).double()

    def losses(loss):
        return torch.tensor([loss.loss(model, guide, x) / len(x) for _ in range(30)])

    closed, plain = losses(TraceMeanField_ELBO()), losses(Trace_ELBO())
    assert_mean_close(closed - plain, torch.zeros(()))


class AffineSteps(nn.Module):
    """Normal steps whose mean is affine in state and context, each step for itself."""

    def __init__(self, start=1.0):
        super().__init__()
        self.of_state = nn.Parameter(torch.full((STEPS,), start, dtype=torch.float64))
        self.of_context = nn.Parameter(torch.zeros(STEPS, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.zeros(STEPS, dtype=torch.float64))

    def forward(self, z, k, *context):
        mean = self.of_state[k - 1] * z
        for c in context:
            mean = mean + self.of_context[k - 1] * c
        return mean, self.log_std[k - 1].exp()


class AffineReader(nn.Module):
    """Mean, raw scale and perhaps the datum, learned."""

    def __init__(self, context):
        super().__init__()
        self.linear = nn.Linear(1, 2).double()
        self.context = context

    def forward(self, x):
        return torch.cat([self.linear(x), x], -1) if self.context else self.linear(x)


def trained(model, guide, x, loss, steps=250):
    svi = SVI(model, guide, Adam({"lr": 0.05, "betas": (0.9, 0.99)}), loss)
    for _ in range(steps):
        svi.step(x)
    plain = Trace_ELBO()
    return -sum(plain.loss(model, guide, x) for _ in range(20)) / 20 / len(x)


@pytest.mark.parametrize("direction", ["along", "against"])
def test_a_learned_chain_infers_a_known_one(direction):
    """The model is fixed and the guide learned: the bound comes to the evidence, from below.

    The gap is at most what is left of the optimisation, 0.02 nats per datum; the weights of a
    guide that near vary little, so that the noise of 20 evaluations of 200 data is far below that.
    """
    model, x = linear_chain(), linear_chain()(None, num_samples=200)
    along = direction == "along"
    guide = ChainPosterior(
        AffineSteps(), AffineReader(along), 1, STEPS, direction, context_dim=int(along)
    )
    bound = trained(model, guide, x, TraceMeanField_ELBO() if along else Trace_ELBO())
    assert -0.02 < bound - evidence(x) / len(x) < 0.005


def test_a_fixed_chain_teaches_a_learned_one():
    """The guide only adds noise, and the model learns to take it away: it finds the chain that the
    data came from, whose reversal the guide is."""
    x = linear_chain()(None, num_samples=4000)
    steps = AffineSteps(start=0.3)
    model = linear_chain(steps)
    trained(model, exact_guide("against"), x, Trace_ELBO())
    # Least squares on 4000 states: five standard errors of slope, 5 / sqrt(4000) * std ratio.
    error = 5 * NOISE / math.sqrt(len(x) * 0.6)
    torch.testing.assert_close(
        steps.of_state.detach(), torch.full_like(steps.of_state, DECAY), rtol=0, atol=error
    )
    torch.testing.assert_close(
        steps.log_std.detach().exp(), torch.full_like(steps.log_std, NOISE), rtol=0, atol=error
    )


def test_the_divergences_of_the_steps_tend_to_girsanovs_integral():
    r"""Steps z + f dt against z + (f + b) z dt, both with noise s sqrt(dt).

    The sum of the divergences of T steps is that of E b^2 z_k^2 dt / (2 s^2), with a recursion for
    the second moments; the integral over continuous time has a closed form, and is approached with
    order 1.
    """
    f, b, s, start = -1.0, 0.6, 0.7, 1.5
    rate = 2 * (f + b)
    stationary = -(s**2) / rate
    integral = (start**2 - stationary) * math.expm1(rate) / rate + stationary
    exact = b**2 / (2 * s**2) * integral
    errors = []
    for steps in (4, 8, 16, 32):
        moment, expected = start**2, 0.0
        for _ in range(steps):
            expected += b**2 * moment / (2 * s**2) / steps
            moment = (1 + (f + b) / steps) ** 2 * moment + s**2 / steps
        errors.append(abs(expected - exact))
        point = dist.Delta(torch.full((1,), start, dtype=torch.float64)).to_event(1)
        model = MarkovChain(
            GaussianStep(lambda z, t: f * z, steps, s), nn.Linear(1, 1), 1, steps, initial=point
        ).double()
        guide = ChainPosterior(
            GaussianStep(lambda z, t: (f + b) * z, steps, s), MLP(1, 2), 1, steps
        ).double()
        guide.begin = lambda data, point=point: (point.expand((len(data),)), ())
        model_trace, guide_trace = check_pair(model, guide, (torch.zeros(4000, 1).double(),))
        divergences = sum(
            torch.distributions.kl_divergence(
                guide_trace.nodes[f"z_{k}"]["fn"], model_trace.nodes[f"z_{k}"]["fn"]
            )
            for k in range(steps)
        )
        assert_mean_close(divergences, torch.tensor(expected))
    orders = [math.log2(one / two) for one, two in itertools.pairwise(errors)]
    # The next term of the error is of order 2, so that each halving brings the order nearer to 1.
    assert abs(orders[-1] - 1) < 0.05
    assert abs(orders[-1] - 1) < abs(orders[0] - 1)


def test_networks_train_in_both_programs():
    x = torch.randn(32, 3)
    for direction in ("along", "against"):
        step = GaussianStep(TimeMLP(2, hidden=(8,)), 4, learned=True)
        model = MarkovChain(step, MLP(2, 3, hidden=(8,)), 2, 4)
        own = GaussianStep(TimeMLP(2, hidden=(8,), context_dim=2), 4, learned=True)
        guide = ChainPosterior(own, MLP(3, 6, hidden=(8,)), 2, 4, direction, context_dim=2)
        check_pair(model, guide, (x,))
        Trace_ELBO().loss_and_grads(model, guide, x)
        silent = [
            name
            for program in (model, guide)
            for name, parameter in program.named_parameters()
            if parameter.grad is None or not parameter.grad.any()
        ]
        assert silent == []


def test_what_does_not_fit_is_refused():
    step = GaussianStep(TimeMLP(2), 4)
    with pytest.raises(TypeError, match="transition: expected a module or a function, got int"):
        MarkovChain(3, nn.Linear(2, 3), 2, 4)
    with pytest.raises(ValueError, match=r"initial: expected event shape \[2\], got \[3\]"):
        MarkovChain(step, nn.Linear(2, 3), 2, 4, initial=dist.Normal(torch.zeros(3), 1).to_event(1))
    with pytest.raises(ValueError, match="direction: expected one of along, against, got 'up'"):
        ChainPosterior(step, MLP(3, 4), 2, 4, direction="up")
    with pytest.raises(ValueError, match=r"encoder: expected output \[\*, 4\] .* got \[2, 5\]"):
        ChainPosterior(step, MLP(3, 5), 2, 4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected a pair \(mean, std\), got Tensor"):
        MarkovChain(lambda z, k: z, nn.Linear(2, 3), 2, 4)(None)
    with pytest.raises(ValueError, match=r"a mean of shape \[1, 2\], as the state, got \[1, 1\]"):
        MarkovChain(lambda z, k: (z[:, :1], 1.0), nn.Linear(2, 3), 2, 4)(None)
    with pytest.raises(ValueError, match="expected data to infer the chain from"):
        ChainPosterior(step, MLP(3, 4), 2, 4)(None)
    with pytest.raises(ValueError, match="std: expected positive finite numbers, got 0"):
        GaussianStep(TimeMLP(2), 4, std=0)
