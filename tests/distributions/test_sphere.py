"""The uniform distribution on the sphere."""

from __future__ import annotations

import math

import pytest
import torch

from pyrogen.distributions import UniformSphere
from tests.statistics import assert_mean_close


@pytest.mark.parametrize(
    ("size", "area"), [(2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)]
)
def test_the_density_is_one_over_the_area(size, area):
    fn = UniformSphere(torch.zeros(size, dtype=torch.float64))
    x = fn.sample((7, 2))
    expected = torch.full((7, 2), -math.log(area), dtype=torch.float64)
    torch.testing.assert_close(fn.log_prob(x), expected, rtol=1e-14, atol=0)


def test_draws_are_isotropic_unit_vectors():
    x = UniformSphere(torch.zeros(3, dtype=torch.float64)).sample((20_000,))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20_000, dtype=torch.float64))
    assert_mean_close(x, torch.zeros(3))
    assert_mean_close(x.unsqueeze(-1) * x.unsqueeze(-2), torch.eye(3) / 3)
    # On S² each coordinate is uniform between -1 and 1 (Archimedes).
    assert_mean_close(x**4, torch.full((3,), 1 / 5))


def test_expand_and_errors():
    fn = UniformSphere(torch.zeros(3), validate_args=True).expand((4,))
    assert fn.sample().shape == (4, 3)
    assert fn.log_prob(fn.sample()).shape == (4,)
    with pytest.raises(ValueError, match="support"):
        fn.log_prob(torch.ones(3))
    for like in (torch.zeros(1), torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"like: expected shape \[D \+ 1\]"):
            UniformSphere(like)
