"""Linear processes against their own stochastic differential equation, and against each other."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrogen.processes import (
    Brownian,
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    LinearProcess,
    OrnsteinUhlenbeck,
    Process,
    Rectified,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    convert,
)
from pyrogen.processes.parametrization import PARAMETRIZATIONS, error_scale
from pyrogen.processes.parametrization import known as known_target

PROCESSES = {
    "brownian": Brownian(1.7),
    "ornstein_uhlenbeck": OrnsteinUhlenbeck(rate=1.3, scale=0.4),
    "variance_preserving": VariancePreserving(),
    "sub_variance_preserving": SubVariancePreserving(),
    "cosine": CosineVariancePreserving(),
    "discrete": DiscreteVariancePreserving.linear(1000),
    "variance_exploding": VarianceExploding(),
    "rectified": Rectified(),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=list(PROCESSES))
TIMES = torch.linspace(0.02, 0.97, 20, dtype=torch.float64)


def derivative(function, t):
    t = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(t).sum(), t)
    return slope


@every_process
def test_coefficients_are_those_of_the_equation(process: LinearProcess) -> None:
    """``alpha' = f alpha`` and ``(sigma^2)' = g^2 + 2 f sigma^2``, by autograd."""
    alpha, variance = process.mean_scale(TIMES), process.variance(TIMES)
    f, g = process.drift_scale(TIMES), process.diffusion(TIMES)
    close = {"rtol": 1e-10, "atol": 1e-12}
    if process.mean_scale(TIMES).std() > 0:
        torch.testing.assert_close(derivative(process.mean_scale, TIMES), f * alpha, **close)
    expected = g.square() + 2 * f * variance
    torch.testing.assert_close(derivative(process.variance, TIMES), expected, **close)
    torch.testing.assert_close(process.variance_rate(TIMES), expected, **close)
    torch.testing.assert_close(process.std(TIMES), variance.sqrt(), **close)
    torch.testing.assert_close(process.std_rate(TIMES), derivative(process.std, TIMES), **close)
    torch.testing.assert_close(
        process.log_snr(TIMES), (alpha.square() / variance).log(), rtol=1e-9, atol=1e-9
    )


@every_process
def test_signal_to_noise_falls_and_tells_the_time(process: LinearProcess) -> None:
    log_snr = process.log_snr(TIMES)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(process.time_of(log_snr), TIMES, rtol=1e-9, atol=1e-9)


@every_process
def test_transitions_compose(process: LinearProcess) -> None:
    """From r to s and from s to t is from r to t; from 0 it is the marginal."""
    r, s, t = (torch.tensor(x, dtype=torch.float64) for x in (0.2, 0.5, 0.9))
    x = torch.tensor([1.5, -0.5], dtype=torch.float64)
    first, second = process.transition(x, r, s), process.transition(x, s, t)
    through = process.transition(x, r, t)
    ratio = process.mean_scale(t) / process.mean_scale(s)
    torch.testing.assert_close(ratio * first.mean, through.mean)
    torch.testing.assert_close((ratio * first.stddev).square() + second.variance, through.variance)
    marginal = process.marginal(x, s)
    end = process.marginal(x, t)
    torch.testing.assert_close(ratio * marginal.mean, end.mean)
    torch.testing.assert_close((ratio * marginal.stddev).square() + second.variance, end.variance)


@every_process
def test_transitions_agree_with_the_equation_in_small_steps(process: LinearProcess) -> None:
    """A transition over ``h`` is the Euler step to first order, in single precision too."""
    x, t, h = torch.tensor([1.5]), torch.tensor(0.5), torch.tensor(1e-3)
    step = process.transition(x, t, t + h)
    mean = x + h * process.drift(x, t)
    spread = process.diffusion(t) * h.sqrt()
    # what is left is of second order: h^2 times rates of some tens, and their relative change
    assert bool((step.mean - mean).abs() < 100 * h**2 + 1e-6)
    assert bool((step.stddev / spread - 1).abs() < 0.02)


@every_process
def test_bridges_by_bayes(process: LinearProcess) -> None:
    """``p(x_s | x_0, x_t) = p(x_s | x_0) p(x_t | x_s) / p(x_t | x_0)`` at any ``x_s``."""
    s, t = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x0, x, between = torch.randn(3, 100, dtype=torch.float64)
    bridge = process.bridge(x0, x, s, t).log_prob(between)
    bayes = process.marginal(x0, s).log_prob(between)
    bayes = (
        bayes + process.transition(between, s, t).log_prob(x) - process.marginal(x0, t).log_prob(x)
    )
    torch.testing.assert_close(bridge, bayes, rtol=1e-8, atol=1e-8)


@every_process
def test_divergence_of_bridges(process: LinearProcess) -> None:
    s, t = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x0, other, x = torch.randn(3, 10, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        process.bridge(x0, x, s, t), process.bridge(other, x, s, t)
    )
    torch.testing.assert_close(process.bridge_kl(x0 - other, s, t), expected)


@every_process
@pytest.mark.parametrize("source", PARAMETRIZATIONS)
@pytest.mark.parametrize("target", PARAMETRIZATIONS)
def test_predictions_determine_each_other(process: LinearProcess, source: str, target: str) -> None:
    t = torch.rand(50, dtype=torch.float64) * 0.9 + 0.05
    x0, noise = torch.randn(2, 50, 3, dtype=torch.float64)
    alpha, sigma = process.mean_scale(t).unsqueeze(-1), process.std(t).unsqueeze(-1)
    x = alpha * x0 + sigma * noise
    flow = process.probability_flow(lambda x, t: -noise / sigma)
    known = {
        "data": x0,
        "noise": noise,
        "score": -noise / sigma,
        "velocity": flow(x, t),
        "v": alpha * noise - sigma * x0,
    }
    found = convert(process, known[source], x, t, source, target)
    torch.testing.assert_close(found, known[target], rtol=1e-6, atol=1e-6)


def test_velocity_of_the_straight_line_at_its_ends() -> None:
    x0, noise = torch.randn(2, 5)
    for end, x in ((torch.tensor(0.0), x0), (torch.tensor(1.0), noise)):
        for target, value in (("data", x0), ("noise", noise)):
            found = convert(Rectified(), noise - x0, x, end, "velocity", target)
            torch.testing.assert_close(found, value)
        velocity = known_target(Rectified(), x0, noise, end, "velocity")
        torch.testing.assert_close(velocity, noise - x0)
    found = error_scale(Rectified(), torch.tensor(0.0), "velocity", "noise")
    torch.testing.assert_close(found, torch.tensor(1.0))


@every_process
def test_where_there_is_no_noise_the_velocity_leaves_the_data(process: LinearProcess) -> None:
    x, start = torch.randn(5, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    if process.std(start) == 0:
        data = convert(process, torch.randn_like(x), x, start, "velocity", "data")
        torch.testing.assert_close(data, x)


@every_process
def test_reverse_and_flow_keep_the_law(process: LinearProcess) -> None:
    """For data ``N(0, v)`` the score is known: the flow carries the standard deviation of one time
    to that of another, and the reverse drift is that of the reverse-time linear process."""
    v, t = 0.7, torch.tensor(0.6, dtype=torch.float64)

    def total(t: torch.Tensor) -> torch.Tensor:
        return process.mean_scale(t).square() * v + process.variance(t)

    x = torch.ones(1, dtype=torch.float64)
    velocity = process.probability_flow(lambda x, t: -x / total(t))(x, t)
    growth = derivative(lambda t: total(t).sqrt().log(), t)
    torch.testing.assert_close(velocity, growth.reshape(1))
    back = process.reverse(lambda x, t: -x / total(t))
    g2 = process.diffusion(t).square()
    torch.testing.assert_close(back.drift(x, t), velocity + 0.5 * g2 / total(t) * x)
    torch.testing.assert_close(back.diffusion(t), process.diffusion(t))


@every_process
def test_times_of_a_batch_stand_beside_events(process: LinearProcess) -> None:
    t, x = torch.tensor([0.2, 0.6]), torch.randn(2, 3, 4)
    drift = process.drift(x, t)
    for i in range(2):
        torch.testing.assert_close(drift[i], process.drift(x[i], t[i]))
        torch.testing.assert_close(
            process.marginal(x, t).stddev[i], process.marginal(x[i], t[i]).stddev
        )


@every_process
def test_processes_can_be_pickled(process: LinearProcess) -> None:
    twin = pickle.loads(pickle.dumps(process))
    assert torch.equal(twin.std(TIMES), process.std(TIMES))


def test_published_values() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    end = VariancePreserving().mean_scale(one).square(), VariancePreserving().std(one)
    torch.testing.assert_close(
        torch.stack(end),
        torch.tensor([4.3186e-5, 0.99997841], dtype=torch.float64),
        rtol=1e-5,
        atol=0.0,
    )
    variance = OrnsteinUhlenbeck(rate=1.0, scale=0.2).variance(one)
    torch.testing.assert_close(
        variance, torch.tensor(0.01729329, dtype=torch.float64), rtol=1e-6, atol=0.0
    )


@given(rate=st.floats(0.01, 10), scale=st.floats(0.01, 10), t=st.floats(1e-3, 3))
def test_ornstein_uhlenbeck_tells_the_time(rate: float, scale: float, t: float) -> None:
    process = OrnsteinUhlenbeck(rate, scale)
    time = torch.tensor(t, dtype=torch.float64)
    found = process.time_of(process.log_snr(time))
    torch.testing.assert_close(found, time, rtol=1e-6, atol=1e-9)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="scale: expected a finite number above 0, got -1"):
        Brownian(-1.0)
    with pytest.raises(ValueError, match="expected finite numbers beta_min < beta_max, got 2"):
        VariancePreserving(2.0, 1.0)
    with pytest.raises(ValueError, match="sigma_min: expected a finite number above 0"):
        VarianceExploding(0.0, 1.0)
    with pytest.raises(TypeError, match=r"drift: expected a function of \(x, t\), got float"):
        Process(1.0, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source: expected one of data, noise, score"):
        convert(Rectified(), torch.ones(1), torch.ones(1), torch.tensor(0.5), "epsilon", "data")
    with pytest.raises(ValueError, match="t: expected a shape that broadcasts"):
        Rectified().drift(torch.ones(2), torch.zeros(2, 1))


@every_process
def test_times_may_be_numbers(process: LinearProcess) -> None:
    x, half = torch.randn(2, 3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    for name in ("mean_scale", "mean_scale_rate", "variance", "variance_rate", "std", "std_rate"):
        function = getattr(process, name)
        torch.testing.assert_close(function(0.5), function(half.float()))
        torch.testing.assert_close(function(torch.tensor(1)), function(torch.tensor(1.0)))
    torch.testing.assert_close(process.marginal(x, 0.5).stddev, process.marginal(x, half).stddev)
    torch.testing.assert_close(process.drift(x, 0.7), process.drift(x, torch.tensor(0.7).to(x)))
    score = torch.neg
    for number, time in ((0.5, half), (0.7, torch.tensor(0.7, dtype=torch.float64))):
        back = process.reverse(lambda x, t: score(x))
        torch.testing.assert_close(back.drift(x, number), back.drift(x, time))
        flow = process.probability_flow(lambda x, t: score(x))
        torch.testing.assert_close(flow(x, number), flow(x, time))


@every_process
@pytest.mark.parametrize("start", [0.0, 0.001, 0.5, 0.75])
def test_short_transitions_keep_their_digits(process: LinearProcess, start: float) -> None:
    s = torch.tensor(start)
    for step in (1e-3, 1e-5):
        t, one = s + step, torch.ones(1)
        exact = process.transition(one.double(), s.double(), t.double()).stddev
        found = process.transition(one, s, t).stddev.double()
        # rounding of a handful of operations; the process of constant angular speed rounds angles
        torch.testing.assert_close(found, exact, rtol=16 * torch.finfo(torch.float32).eps, atol=0.0)
    assert float(process.transition(one, s, s).stddev) == 0.0


def test_the_standard_deviation_of_sub_vp_has_a_slope_at_zero() -> None:
    t = torch.zeros((), requires_grad=True)
    SubVariancePreserving(0.1, 20.0).std(t).backward()
    torch.testing.assert_close(t.grad, torch.tensor(0.1))


@pytest.mark.parametrize("batch", [2, 5])
def test_a_diffusion_of_each_coordinate_stands_beside_events(batch: int) -> None:
    scales = torch.tensor([1.0, 2.0])
    process = Process(lambda x, t: torch.zeros_like(x), scales)
    x, t = torch.zeros(batch, 2), torch.tensor(0.5)
    score = torch.ones_like
    back = process.reverse(lambda x, t: score(x))
    for _ in range(2):
        torch.testing.assert_close(back.drift(x, t), -scales.square().expand(batch, 2))
        back = back.reverse(lambda x, t: torch.zeros_like(x))
    flow = process.probability_flow(lambda x, t: score(x))
    torch.testing.assert_close(flow(x, t), -0.5 * scales.square().expand(batch, 2))
    with pytest.raises(TypeError, match="diffusion: expected a number, a tensor, a function"):
        Process(lambda x, t: x, "one")  # type: ignore[arg-type]
