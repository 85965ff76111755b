"""The process through the levels of noise of given steps against the formulas of the steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyrogen.processes import DiscreteVariancePreserving

T = 1000
BETAS = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
LEFT = (1 - BETAS).cumprod(0)
STEPS = torch.arange(1, T + 1, dtype=torch.float64) / T
EPS = torch.finfo(torch.float32).eps
PROCESSES = {
    "linear": DiscreteVariancePreserving.linear,
    "cosine": DiscreteVariancePreserving.cosine,
}
usual = pytest.mark.parametrize("make", PROCESSES.values(), ids=PROCESSES.keys())


def test_linear_levels():
    process = DiscreteVariancePreserving.linear()
    alpha = process.mean_scale(STEPS)
    # The shares are rounded to single precision, each by eps/2; their sum is 10.
    torch.testing.assert_close(alpha.square(), LEFT, rtol=1e-12, atol=0)
    assert f"{float(alpha[-1].square()):.6e}" == "4.035830e-05"
    torch.testing.assert_close(process.variance(STEPS), 1 - LEFT, rtol=EPS, atol=0)


def test_cosine_levels():
    process = DiscreteVariancePreserving.cosine()

    def left(t):
        return ((t + 0.008) / 1.008 * torch.pi / 2).cos().square()

    expected = left(STEPS) / left(torch.zeros(()))
    # The last share is cut to 0.999, and the one before it is near 3/4.
    torch.testing.assert_close(
        process.mean_scale(STEPS[:-1]).square(), expected[:-1], rtol=100 * EPS, atol=0
    )
    assert float(process.betas[-1]) == pytest.approx(0.999)


def test_posteriors_of_a_step():
    """``q(x_{t-1} | x_t, x_0)`` with the coefficients of Ho et al., equations 6 and 7."""
    process = DiscreteVariancePreserving.linear()
    k = torch.tensor([2, 3, 500, 1000])
    beta, left, before = BETAS[k - 1], LEFT[k - 1], LEFT[k - 2]
    x0, x = torch.randn(2, 4, dtype=torch.float64)
    bridge = process.bridge(x0, x, (k - 1).double() / T, k.double() / T)
    of_data = before.sqrt() * beta / (1 - left)
    of_state = (1 - beta).sqrt() * (1 - before) / (1 - left)
    torch.testing.assert_close(bridge.mean, of_data * x0 + of_state * x, rtol=0, atol=20 * EPS)
    torch.testing.assert_close(
        bridge.variance, (1 - before) / (1 - left) * beta, rtol=20 * EPS, atol=0
    )


@usual
def test_transitions_in_single_precision(make):
    """From step to step, also where the sum of all before is 1000 times larger."""
    process = make()
    betas = process.betas.double()
    start, end = (STEPS - 1 / T).float(), STEPS.float()
    found = process.transition(torch.ones(T), start, end)
    # Times in single precision are off by up to half a unit in the last place of 1: of the length
    # 1/1000 of a step, that is T * eps.
    torch.testing.assert_close(found.variance.double(), betas, rtol=2 * T * EPS, atol=0)
    torch.testing.assert_close(found.mean.double(), (1 - betas).sqrt(), rtol=T * EPS, atol=0)


@usual
def test_the_rate_is_smooth_and_positive(make):
    """The derivative of the integral, without a jump, and never far from that of the steps."""
    process = make().double()
    t = torch.linspace(0, 1, 20 * T + 1, dtype=torch.float64)
    rate, steps = process.rate(t), -T * torch.log1p(-process.betas.double())
    middle = 0.5 * (t[1:] + t[:-1])
    area = (rate[1:] + rate[:-1] + 4 * process.rate(middle)) / 6 / (20 * T)  # exact for cubics
    torch.testing.assert_close(area, process.total(t).diff(), rtol=1e-7, atol=0)
    around = torch.stack([steps[:-1], steps[1:]])
    inner = rate.unfold(0, 21, 20)[1:-1]  # of steps 2 to T - 1, with both ends
    assert (inner.amin(1) > 0.5 * around[:, 1:].amin(0)).all()
    torch.testing.assert_close(process.rate(t - 1e-9)[20::20], rate[20::20], rtol=1e-4, atol=0)


def test_linear_shares_are_a_rate_linear_in_time():
    """Up to the curvature of the logarithm: that of step k is beta_k + beta_k^2 / 2."""
    process, k = (
        DiscreteVariancePreserving.linear(),
        torch.tensor([1.0, 10.0, 500.0, 999.0]).double(),
    )
    beta = 1e-4 + (0.02 - 1e-4) * (k - 0.5) / 999
    expected = T * (beta + beta.square() / 2)
    torch.testing.assert_close(process.rate(k / T), expected, rtol=2e-4, atol=0)


@usual
def test_functions_of_a_scalar_time_can_be_traced(make):
    process = make()

    def functions(t):
        return process.variance(t), process.rate(t), process.time_of(process.log_snr(t))

    t = torch.tensor(0.7)
    found = make_fx(functions)(torch.tensor(0.3))(t)
    torch.testing.assert_close(found, functions(t))
    torch.testing.assert_close(found[-1], t)


def test_conversions_keep_the_digits():
    process = DiscreteVariancePreserving.cosine(50)
    exact = process.total(STEPS)
    for twin in (copy.deepcopy(process).double(), copy.deepcopy(process).to(torch.bfloat16)):
        assert torch.equal(twin.total(STEPS), exact)
    assert process.state_dict() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteVariancePreserving(torch.tensor([0.1, 1.0])), "betas: expected one or"),
        (lambda: DiscreteVariancePreserving(torch.zeros(0)), "betas: expected one or more"),
        (lambda: DiscreteVariancePreserving.linear(10), r"last between 0 and 1, got 0.01 and 2"),
        (lambda: DiscreteVariancePreserving.cosine(0), "num_timesteps: expected a positive"),
    ],
)
def test_wrong_shares_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
