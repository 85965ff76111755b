"""The level of a value: certain inside of a bin, and at its edges within rounding."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import Quantized


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_a_dequantised_level_is_in_its_bin(levels, dtype):
    x = torch.randint(levels, (20_000,))
    u = torch.rand(20_000, dtype=dtype)
    u[:5000], u[5000:10_000] = 0, 1
    v = (x.to(dtype) + u) / levels
    assert (Quantized(v, levels).log_prob(x) == 0).all()
    inside = (u > 0.01) & (u < 0.99)
    if levels < 1000:
        assert torch.equal(Quantized(v, levels).sample()[inside], x[inside])


def test_other_levels_are_impossible():
    log_prob = Quantized(torch.tensor([[0.3], [-2.0], [7.0]]), 4).log_prob(torch.arange(4))
    assert torch.equal(log_prob == 0, torch.eye(4, dtype=torch.bool)[[1, 0, 3]])
    assert (log_prob[log_prob != 0] == -torch.inf).all()


def test_sampling_and_expanding():
    fn = Quantized(torch.tensor([-1.0, 0.26, 1.0]), 4)
    assert fn.sample((2,)).tolist() == [[0, 1, 3]] * 2
    wide = fn.expand((5, 3))
    assert wide.batch_shape == (5, 3)
    assert torch.equal(wide.sample(), fn.sample().expand(5, 3))
    assert wide.to_event(1).log_prob(fn.sample()).shape == (5,)
    assert not fn.has_rsample


def test_values_that_are_no_levels_are_refused():
    fn = Quantized(torch.zeros(2), 4, validate_args=True)
    for value in (torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0.5, 0.0])):
        with pytest.raises(ValueError, match="support"):
            fn.log_prob(value)
    with pytest.raises(ValueError, match="levels: expected an integer above 1, got 1"):
        Quantized(torch.zeros(2), 1)
    with pytest.raises(ValueError, match=r"value: expected floating point, got torch\.int64"):
        Quantized(torch.zeros(2, dtype=torch.int64), 4)
    assert isinstance(fn, dist.TorchDistribution)
