"""Toy densities: mass and entropy by quadrature, draws, and the definitions by other means."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from sklearn.datasets import make_moons
from torch.autograd import gradcheck

from pyrogen.distributions import Checkerboard, EightGaussians, TwoMoons
from tests.statistics import TEST_FAILURE_RATE, assert_mean_close

DOUBLE = torch.zeros(2, dtype=torch.float64)
TOYS = {"eight Gaussians": EightGaussians, "checkerboard": Checkerboard, "two moons": TwoMoons}
ENTROPY = {"eight Gaussians": 2.831880, "checkerboard": 3.465736, "two moons": 2.39388}

every_toy = pytest.mark.parametrize("name", TOYS)


def grid(bound, cells):
    """Midpoints of cells that cover a square, and the area of one."""
    side = 2 * bound / cells
    middle = -bound + side * (torch.arange(cells, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(middle, middle), side**2


@every_toy
def test_mass_and_entropy_by_quadrature(name):
    # The midpoint rule is exact for the board, and for smooth densities once cells are smaller
    # than their scale: its error is exp(-2 (pi scale / side)²).
    toy = TOYS[name](DOUBLE)
    points, area = grid(6.0, 240)
    log_prob = torch.cat([toy.log_prob(part) for part in points.split(10_000)])
    assert math.isclose(log_prob.exp().sum().item() * area, 1.0, rel_tol=1e-12)
    entropy = torch.special.entr(log_prob.exp()).sum().item() * area
    assert math.isclose(entropy, toy.entropy().item(), rel_tol=1e-10)
    assert abs(entropy - ENTROPY[name]) < 5e-6


def assert_histogram_follows(samples, toy):
    """Chi-square test on squares of side 1/2, their probabilities by quadrature."""
    points, area = grid(6.0, 240)
    probability = torch.cat([toy.log_prob(part) for part in points.split(10_000)]).exp() * area
    probability = probability.reshape(24, 10, 24, 10).sum((1, 3)).flatten()
    cell = ((samples + 6) * 2).floor().clamp(0, 23).long() @ torch.tensor([24, 1])
    count = cell.bincount(minlength=24**2)
    expected = probability * len(samples)
    often = expected > 10
    rest = (count[~often].sum(), expected[~often].sum())
    assert rest[0] <= scipy.stats.poisson.isf(TEST_FAILURE_RATE, rest[1].item())
    statistic = (count[often] - expected[often]).square().div(expected[often]).sum()
    assert scipy.stats.chi2.sf(statistic.item(), int(often.sum()) - 1) > TEST_FAILURE_RATE


@every_toy
def test_draws_follow_the_density(name):
    toy = TOYS[name](DOUBLE)
    x = toy.sample((50_000,))
    assert_histogram_follows(x, toy)
    if name != "checkerboard":  # whose density is constant
        assert_mean_close(-toy.log_prob(x), toy.entropy())


def test_draws_of_the_board_are_black_in_single_precision():
    assert (Checkerboard().log_prob(Checkerboard().sample((1 << 20,))) == -math.log(32)).all()


def test_eight_gaussians_are_a_mixture():
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centre = torch.stack([angle.cos(), angle.sin()], dim=-1) * 4 / 1.414
    part = torch.distributions.Independent(torch.distributions.Normal(centre, 0.5 / 1.414), 1)
    weights = torch.distributions.Categorical(torch.ones(8, dtype=torch.float64))
    mixture = torch.distributions.MixtureSameFamily(weights, part)
    x = 4 * torch.randn(100, 2, dtype=torch.float64)
    torch.testing.assert_close(EightGaussians(DOUBLE).log_prob(x), mixture.log_prob(x))


def test_two_moons_are_those_of_scikit_learn():
    points, _ = make_moons(20_000, noise=0.1, random_state=0)
    x = torch.as_tensor(points * 2 + [-1.0, -0.2])
    toy = TwoMoons(DOUBLE)
    assert_histogram_follows(x, toy)
    assert_mean_close(-toy.log_prob(x), toy.entropy())


@every_toy
def test_shapes_types_and_gradient(name):
    toy = TOYS[name](torch.zeros(2), validate_args=True).expand((4,))
    x = toy.sample((3,))
    assert x.shape == (3, 4, 2)
    assert x.dtype == torch.float32
    assert toy.log_prob(x).shape == (3, 4)
    assert toy.entropy().shape == (4,)
    assert toy.log_prob(x[0, 0]).shape == (4,)
    double = TOYS[name](DOUBLE)
    assert double.sample().dtype == torch.float64
    torch.testing.assert_close(double.log_prob(x.double()), toy.log_prob(x).double())
    assert gradcheck(double.log_prob, double.sample((5,)).requires_grad_())
    with pytest.raises(ValueError, match="support"):
        toy.log_prob(torch.full((2,), math.nan))


@every_toy
def test_errors(name):
    for like in (torch.zeros(3), torch.zeros(1, 2), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"like: expected shape \[2\] in floating point"):
            TOYS[name](like)
