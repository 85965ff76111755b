"""Score matching against closed forms: Gaussians, a mixture, a network's Hessian."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrogen.distributions import EnergyBased
from pyrogen.guides import Empty
from pyrogen.losses import ScoreMatching
from pyrogen.nn import MLP
from tests.statistics import assert_mean_close

METHODS = {
    "exact": lambda: ScoreMatching("exact"),
    "sliced": lambda: ScoreMatching("sliced"),
    "sliced-vr": lambda: ScoreMatching("sliced-vr"),
    "denoising": lambda: ScoreMatching("denoising", sigma=0.5),
    "finite-difference": lambda: ScoreMatching("finite-difference", sigma=0.1),
}


def flat(size, dtype=torch.float64):
    return dist.ImproperUniform(dist.constraints.independent(dist.constraints.real, 1), (), (size,))


def quadratic(precision):
    """A Gaussian of mean 0; its energy is x A x / 2."""
    return EnergyBased(
        lambda x: 0.5 * torch.einsum("...i,ij,...j->...", x, precision, x), flat(len(precision))
    )


def estimates(loss, fn, x):
    """Values of the objective, one for each datum."""
    return -loss.score("x", fn, x)


def values(loss, fn, x):
    return estimates(loss, fn, x).detach()


def matrices():
    root = torch.randn(4, 4, dtype=torch.float64)
    data = torch.randn(4, 4, dtype=torch.float64)
    return root @ root.T / 4 + torch.eye(4), data @ data.T / 4 + 0.5 * torch.eye(4)


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_on_gaussian_data(method):
    r"""E[s²]/2 + ∇s = tr(A C A)/2 − tr A for data of covariance C, with σ² added for denoising.

    For quadratic energies differences are exact.
    """
    precision, covariance = matrices()
    x = dist.MultivariateNormal(torch.zeros(4).double(), covariance).sample((20_000,))
    if method == "denoising":
        covariance = covariance + 0.25 * torch.eye(4)
    exact = (precision @ covariance @ precision).trace() / 2 - precision.trace()
    assert_mean_close(estimates(METHODS[method](), quadratic(precision), x), exact)


def test_minus_half_the_dimension_on_its_own_data():
    """E = |x|²/2 on N(0, I) gives -d/2, in d = 5 to the error of the mean of |x|²/2."""
    x = torch.randn(50_000, 5).double()
    values = estimates(ScoreMatching("exact"), quadratic(torch.eye(5).double()), x)
    torch.testing.assert_close(values, x.square().sum(-1) / 2 - 5)
    assert_mean_close(values, -2.5)


@pytest.mark.parametrize("method", METHODS)
def test_the_minimum_on_gaussian_data_is_their_precision(method):
    """The gradient in A vanishes at A = C^-1, element by element, with the noise added to C."""
    _, covariance = matrices()
    noise = 0.25 * torch.eye(4) if method == "denoising" else 0.0
    precision = torch.linalg.inv(covariance + noise)
    x = dist.MultivariateNormal(torch.zeros(4).double(), covariance).sample((4_000,))
    gradient = _gradients_in_precision(METHODS[method](), precision, x)
    assert_mean_close(gradient, 0.0)
    elsewhere = 1.5 * precision
    with pytest.raises(AssertionError, match="off by"):
        assert_mean_close(_gradients_in_precision(METHODS[method](), elsewhere, x), 0.0)


def _gradients_in_precision(loss, precision, x):
    """One gradient for each datum: each has a matrix of its own, as context of the energy."""
    copies = precision.flatten().expand(len(x), -1).clone().requires_grad_()

    def energy(x, context):
        matrix = context.reshape(-1, *precision.shape)
        return 0.5 * torch.einsum("ni,nij,nj->n", x, matrix, x)

    fn = EnergyBased(energy, flat(len(precision)), context=copies)
    (gradient,) = torch.autograd.grad(estimates(loss, fn, x).sum(), copies)
    return gradient


MIXTURE = torch.tensor([[1.2, 0.0], [-1.2, 0.4], [0.2, -1.0]]).double()


def mixture(means, scale=0.6):
    def energy(x):
        square = (x.unsqueeze(-2) - means).square().sum(-1)
        return -(-square / (2 * scale**2)).logsumexp(-1)

    return EnergyBased(energy, flat(2))


@pytest.mark.parametrize("method", METHODS)
def test_the_minimum_on_a_mixture_is_the_mixture(method):
    """The gradient in the means vanishes at the truth: the smoothed one for denoising.

    Differences are off by O(sigma²), so sigma is small for them.
    """
    loss = METHODS[method]()
    if method == "finite-difference":
        loss = ScoreMatching(method, sigma=1e-3)
    x = MIXTURE[torch.randint(3, (6_000,))] + 0.6 * torch.randn(6_000, 2).double()
    scale = math.sqrt(0.6**2 + (0.25 if method == "denoising" else 0.0))
    direction = torch.randn(3, 2).double()
    moved = torch.zeros(len(x), 1).double().requires_grad_()

    def energy(x, context):
        means = MIXTURE + context.unsqueeze(-1) * direction
        square = (x.unsqueeze(-2) - means).square().sum(-1)
        return -(-square / (2 * scale**2)).logsumexp(-1)

    fn = EnergyBased(energy, flat(2), context=moved)
    (gradient,) = torch.autograd.grad(estimates(loss, fn, x).sum(), moved)
    assert_mean_close(gradient, 0.0)


def network():
    energy = MLP(5, 1, hidden=(16,), activation=torch.nn.Tanh).double()
    base = dist.Normal(torch.zeros(5).double(), 2.0).to_event(1)
    return EnergyBased(energy, base)


def test_exact_is_autograds_hessian():
    fn, x = network(), torch.randn(6, 5).double()
    got = values(ScoreMatching("exact"), fn, x)
    for value, row in zip(got, x, strict=True):
        point = row.clone().requires_grad_()
        (score,) = torch.autograd.grad(fn.unnormalized_log_prob(point), point)
        hessian = torch.autograd.functional.hessian(fn.unnormalized_log_prob, point)
        torch.testing.assert_close(value, score.square().sum() / 2 + hessian.trace())


@pytest.mark.parametrize("method", ["sliced", "sliced-vr"])
def test_slices_are_unbiased(method):
    fn, x = network(), torch.randn(1, 5).double()
    exact = values(ScoreMatching("exact"), fn, x)[0]
    draws = values(ScoreMatching(method), fn, x.expand(20_000, 5))
    assert_mean_close(draws, exact)
    averaged = values(ScoreMatching(method, num_projections=8), fn, x.expand(4_000, 5))
    assert_mean_close(averaged, exact)
    assert 6 < draws.var() / averaged.var() < 10.5  # 8, and both variances known to a few percent


def test_the_variance_of_slices():
    """For a diagonal Gaussian the vr form is exact; the other varies by the sum over pairs of
    axes of the products of squared scores."""
    precision = torch.tensor([0.5, 1.0, 2.0]).double()
    fn, x = quadratic(precision.diag()), torch.tensor([1.0, 2.0, -0.5]).double()
    many = x.expand(20_000, 3)
    exact = values(ScoreMatching("exact"), fn, x)
    torch.testing.assert_close(values(ScoreMatching("sliced-vr"), fn, many), exact.expand(20_000))
    squares = (precision * x).square()
    expected = (squares.sum().square() - squares.square().sum()) / 2
    assert_mean_close((values(ScoreMatching("sliced"), fn, many) - exact).square(), expected)


def test_denoising_is_unbiased_for_smoothed_data():
    """Against exact score matching at independent noisy copies; and small noise does no harm."""
    fn, x = network(), torch.randn(1, 5).double().expand(20_000, 5)
    exact = values(ScoreMatching("exact"), fn, x + 0.3 * torch.randn_like(x))
    noisy = values(ScoreMatching("denoising", sigma=0.3), fn, x)
    assert_mean_close(noisy - exact, 0.0)
    small = values(ScoreMatching("denoising", sigma=1e-4), fn, x)
    assert small.var() < 2 * values(ScoreMatching("denoising", sigma=1e-2), fn, x).var()


def test_differences_converge_to_slices_with_order_two():
    fn, x = network(), torch.randn(200, 5).double()

    def value(loss):
        torch.manual_seed(1)
        return values(loss, fn, x)

    sliced = value(ScoreMatching("sliced"))
    steps = [0.2, 0.1, 0.05]
    errors = [
        (value(ScoreMatching("finite-difference", sigma=h)) - sliced).abs().mean() for h in steps
    ]
    orders = [math.log2(float(a / b)) for a, b in itertools.pairwise(errors)]
    assert all(1.9 < order < 2.1 for order in orders), orders


def test_scalar_events_and_linear_energies():
    """Event shape []; and an energy whose second derivative is zero without a graph."""
    line = dist.ImproperUniform(dist.constraints.real, (), ())
    slope = torch.tensor(3.0, requires_grad=True)
    fn = EnergyBased(lambda x: slope * x, line).expand((4,))
    values = estimates(ScoreMatching("exact"), fn, torch.randn(4))
    torch.testing.assert_close(values.detach(), torch.full((4,), 4.5))
    values.sum().backward()
    torch.testing.assert_close(slope.grad, torch.tensor(12.0))


def test_the_draws_of_a_guide_follow_the_density_and_the_energy_the_objective():
    """d/dz of -log p(z) = a z², and d/da of J(z) = (2 a z)²/2 - 2 a, where a guide proposes z."""
    flat = dist.ImproperUniform(dist.constraints.real, (), ())
    loc = torch.tensor(0.7, requires_grad=True)
    curvature = torch.tensor(1.5, requires_grad=True)

    def model():
        pyro.sample("z", EnergyBased(lambda z: curvature * z.square(), flat))

    def guide():
        pyro.sample("z", dist.Delta(loc))

    loss = ScoreMatching("exact").differentiable_loss(model, guide)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(1.5 * 0.49))
    torch.testing.assert_close(loc.grad, torch.tensor(2 * 1.5 * 0.7))
    torch.testing.assert_close(curvature.grad, torch.tensor(4 * 1.5 * 0.49 - 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "hutchinson"}, "method: expected one of exact"),
        ({"method": "denoising"}, "sigma: expected a positive number"),
        ({"method": "denoising", "sigma": -1.0}, "sigma: expected a positive number"),
        ({"method": "sliced", "sigma": 0.1}, "sigma: method 'sliced' has none"),
        ({"method": "exact", "num_projections": 2}, "num_projections: method 'exact' has none"),
        ({"num_projections": 0}, "num_projections: expected a positive integer"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatching(**arguments)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (dist.Beta(1.0, 1.0).expand([2]).to_event(1), "whole space"),
        (dist.Bernoulli(0.5).expand([2]).to_event(1), "continuous site"),
    ],
)
def test_a_site_with_an_edge_is_refused(base, message):
    def model(x):
        with poutine.scale(scale=1.0):
            pyro.sample("x", EnergyBased(lambda x: x.sum(-1), base), obs=x)

    with pytest.raises(ValueError, match=f"site 'x': expected a .*{message}"):
        ScoreMatching().loss(model, Empty(), torch.ones(2) / 2)
