"""The normal law cut into levels against differences of its distribution function."""

from __future__ import annotations

import pytest
import torch

from pyrogen.distributions import DiscretizedNormal
from tests.statistics import assert_frequencies


def fn(dtype=torch.float64, levels=6):
    loc = torch.tensor([0.3, -1.4, 0.9], dtype=dtype)
    return DiscretizedNormal(loc, torch.tensor([0.2, 0.5, 0.05], dtype=dtype), levels)


def test_probabilities_are_differences_of_the_distribution_function():
    law, x = fn(), torch.arange(6).unsqueeze(-1)
    edges = torch.linspace(-1, 1, 6, dtype=torch.float64)[:-1] + 0.2
    below = torch.special.ndtr((edges[:, None] - law.loc) / law.scale)
    padded = torch.cat([torch.zeros(1, 3), below, torch.ones(1, 3)]).double()
    torch.testing.assert_close(law.log_prob(x).exp(), padded.diff(dim=0), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(law.log_prob(x).exp().sum(0), torch.ones(3).double())


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
def test_the_tails_are_exact_in_single_precision(scale):
    x = torch.arange(17)
    single = DiscretizedNormal(torch.tensor(0.2), torch.tensor(scale), 17).log_prob(x)
    # the same number, in double precision
    loc, scale = torch.tensor(0.2).double(), torch.tensor(scale).double()
    double = DiscretizedNormal(loc, scale, 17).log_prob(x)
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-5)
    assert single.isfinite().all()


def test_draws_have_the_probabilities():
    law = fn()
    for i in range(3):
        one = DiscretizedNormal(law.loc[i], law.scale[i], 6)
        table = torch.arange(6)
        draws = one.sample((20_000,))
        assert_frequencies(draws.reshape(-1, 1), table.reshape(-1, 1), one.log_prob(table).exp())


def test_gradients():
    loc = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    for x in (0, 2, 5):
        value = torch.tensor(x)
        assert torch.autograd.gradcheck(
            lambda loc, scale, value=value: DiscretizedNormal(loc, scale, 6).log_prob(value),
            (loc, scale),
        )


def test_shapes_and_checks():
    law = fn().expand((4, 3))
    assert law.sample((2,)).shape == (2, 4, 3)
    assert law.sample().dtype == torch.int64
    assert law.to_event(1).log_prob(law.sample()).shape == (4,)
    with pytest.raises(ValueError, match="levels: expected an integer above 1, got 1"):
        fn(levels=1)
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor(6))
