"""Solvers on Gaussian data, where every step is affine and the law of its end follows exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrogen.processes import (
    CosineVariancePreserving,
    Euler,
    Exponential,
    FrozenNoise,
    LinearProcess,
    OrnsteinUhlenbeck,
    Prediction,
    Rectified,
    Solver,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    convert,
    integrate,
    langevin_step,
    time_grid,
)
from pyrogen.processes.grids import GRIDS

MEAN, VARIANCE = 1.5, 0.25
DOUBLE = torch.float64
PROCESSES = {
    "variance_preserving": VariancePreserving(),
    "sub_variance_preserving": SubVariancePreserving(),
    "cosine": CosineVariancePreserving(),
    "variance_exploding": VarianceExploding(0.01, 10.0),
    "rectified": Rectified(),
    "ornstein_uhlenbeck": OrnsteinUhlenbeck(2.0, 2.0),
}
# the order in law of each solver
SOLVERS: dict[str, tuple[Solver, int]] = {
    "euler": (Euler(0.0), 1),
    "euler-maruyama": (Euler(1.0), 1),
    "euler half": (Euler(0.5), 1),
    "ddim": (Exponential(0.0), 1),
    "ddim half": (Exponential(0.5), 1),
    "ancestral": (Exponential(1.0), 1),
    "frozen noise": (FrozenNoise(), 1),
    "heun": (Exponential(0.0, "heun"), 2),
    "stochastic heun": (Exponential(1.0, "heun"), 2),
    "multistep": (Exponential(0.0, "multistep"), 2),
    "stochastic multistep": (Exponential(1.0, "multistep"), 2),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=list(PROCESSES))
every_solver = pytest.mark.parametrize("name", SOLVERS)


def total(process, t):
    return process.mean_scale(t).square() * VARIANCE + process.variance(t)


def predict_with(process, mean=MEAN):
    def predict(x, t):
        away = (x - process.mean_scale(t) * mean) / total(process, t)
        data = mean + process.mean_scale(t) * VARIANCE * away
        return Prediction(data, process.std(t) * away)

    return predict


def moments(process, solver, times):
    """Mean and variance at the last time, of a start with the exact law of the first.

    Rows of a batch: the mean; then the end of what enters once, at the start or as the noise of one
    step, since the end is a sum of these.
    """
    steps = len(times) - 1
    first, t = total(process, times[0]).sqrt(), times[0]
    x = (process.mean_scale(t) * MEAN).expand(steps + 2).clone()
    x[1] += first
    carry, predict = solver.init(x), predict_with(process)
    for i in range(steps):
        noise = torch.zeros_like(x)
        noise[i + 2] = 1
        x, carry = solver.step(process, predict, x, times[i], times[i + 1], noise, carry)
    return x[0], (x[1:] - x[0]).square().sum()


def is_infinite_at_no_signal(solver):
    return isinstance(solver, FrozenNoise) or (isinstance(solver, Euler) and solver.stochastic)


def errors(process, solver, num_steps, grid, max_time=1.0, min_time=1e-2):
    times = time_grid(process, num_steps + 1, grid, max_time, min_time, dtype=DOUBLE)
    mean, variance = moments(process, solver, times)
    exact = total(process, times[-1])
    return torch.stack(
        [(mean - process.mean_scale(times[-1]) * MEAN) / exact.sqrt(), variance / exact - 1]
    )


@every_solver
@pytest.mark.parametrize("process", ["variance_preserving", "sub_variance_preserving"])
def test_fitted_order_in_law(name, process):
    """Doubling the steps halves the error of the variance, or quarters it: the slope between 128
    and 256 steps is the order, up to the next one's share of some percent."""
    solver, order = SOLVERS[name]
    few, many = (errors(PROCESSES[process], solver, n, "quadratic") for n in (128, 256))
    slope = math.log2(abs(few[1] / many[1]))
    assert abs(slope - order) < 0.15
    assert abs(many[1]) < (0.05 if order == 1 else 0.002)
    assert (many[0].abs() <= few[0].abs() / 2 ** (order - 0.5) + 1e-9).all()


@every_solver
@every_process
def test_limit_in_law(name, process):
    """The law of the data, from time 1 to nearly 0."""
    solver, order = SOLVERS[name]
    end = 0.99 if isinstance(process, Rectified) and is_infinite_at_no_signal(solver) else 1.0
    mean, variance = errors(process, solver, 100, "karras", end)
    largest = 0.25 if order == 1 else 0.03  # Euler's steps in time are long where the noise grows
    assert abs(variance) < largest
    assert abs(mean) < largest


def test_the_orders_are_in_order():
    """At equal steps, the second order is at least ten times nearer."""
    process = PROCESSES["variance_preserving"]
    found = {name: errors(process, s, 100, "log-snr")[1].abs() for name, (s, _) in SOLVERS.items()}
    assert 10 * found["multistep"] < found["ddim"]
    assert 10 * found["heun"] < found["ddim"]
    assert 10 * found["stochastic multistep"] < found["ancestral"]
    assert 10 * found["stochastic heun"] < found["ancestral"]


@every_process
def test_ancestral_steps_are_draws_of_the_bridge(process: LinearProcess) -> None:
    t, s = torch.tensor(0.8, dtype=DOUBLE), torch.tensor(0.3, dtype=DOUBLE)
    x, data, noise = torch.randn(3, 50, dtype=DOUBLE)

    def predict(x, t):
        return Prediction.of(process, data, x, t, "data")

    bridge = process.bridge(data, x, s, t)
    found, _ = Exponential(1.0).step(process, predict, x, t, s, noise, ())
    torch.testing.assert_close(found, bridge.mean + bridge.stddev * noise)
    found, _ = Exponential(0.0).step(process, predict, x, t, s, noise, ())
    eps = convert(process, data, x, t, "data", "noise")
    torch.testing.assert_close(found, process.mean_scale(s) * data + process.std(s) * eps)
    # half of the standard deviation drawn anew
    found, _ = Exponential(0.5).step(process, predict, x, t, s, noise, ())
    kept = (process.variance(s) - 0.25 * bridge.variance).sqrt()
    expected = process.mean_scale(s) * data + kept * eps + 0.5 * bridge.stddev * noise
    torch.testing.assert_close(found, expected)


@every_process
@pytest.mark.parametrize("name", [n for n, (s, _) in SOLVERS.items() if isinstance(s, Exponential)])
def test_one_datum_is_found_in_any_number_of_steps(process: LinearProcess, name: str) -> None:
    """With the right data predicted, exponential steps are exact, however few."""
    solver, _ = SOLVERS[name]
    datum = torch.tensor([2.0, -1.0], dtype=DOUBLE)

    def predict(x, t):
        return Prediction.of(process, datum, x, t, "data")

    times = time_grid(process, 3, "uniform", min_time=1e-5, dtype=DOUBLE)
    x = process.marginal(datum, times[0]).sample((4000,))
    end = integrate(process, solver, predict, x, times)
    standard = (end - process.mean_scale(times[-1]) * datum) / process.std(times[-1])
    assert abs(float(standard.mean())) < 4.3 / 8000**0.5  # 2e-5, two-sided
    assert abs(float(standard.var()) - 1) < 4.3 * (2 / 8000) ** 0.5


@every_process
@every_solver
def test_steps_are_finite_at_both_ends(process: LinearProcess, name: str) -> None:
    solver, _ = SOLVERS[name]
    start = 0.999 if isinstance(process, Rectified) and is_infinite_at_no_signal(solver) else 1.0
    for grid in GRIDS:
        times = time_grid(process, 6, grid, start, 1e-5)
        assert bool((times.diff() < 0).all())
        assert (float(times[0]), float(times[-1])) == pytest.approx((start, 1e-5))
        end = integrate(process, solver, predict_with(process), torch.ones(3), times)
        assert end.dtype == torch.float32
        assert bool(end.isfinite().all())


@every_process
def test_langevin_leaves_almost_the_level_it_is_at(process: LinearProcess) -> None:
    """A step of Langevin's equation on a normal of variance ``v``: ``(1 - h/2v)^2 v + h``, whose
    fixed point is ``v / (1 - h/4v)``."""
    t = torch.tensor(0.4, dtype=DOUBLE)
    v, h = total(process, t), 0.3 * process.variance(t)
    fixed = v / (1 - h / (4 * v))
    x = torch.stack([fixed.sqrt(), torch.zeros_like(v)])
    noise = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    moved = langevin_step(process, predict_with(process, 0.0), x, t, 0.3, noise)
    torch.testing.assert_close(moved.square().sum(), fixed)


@every_process
@pytest.mark.parametrize("kind", GRIDS)
def test_grids_are_even_in_what_they_say(process: LinearProcess, kind: str) -> None:
    times = time_grid(process, 30, kind, 0.9, 1e-3, dtype=DOUBLE)
    quantity = {
        "uniform": lambda: times,
        "quadratic": times.sqrt,
        "log-snr": lambda: process.log_snr(times),
        "karras": (-process.log_snr(times) / 14).exp,
    }[kind]()
    steps = quantity.diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=0.0)


@given(
    kind=st.sampled_from(sorted(GRIDS)),
    process=st.sampled_from(list(PROCESSES.values())),
    num_times=st.integers(2, 40),
    start=st.floats(0.1, 1.0),
    share=st.floats(1e-3, 0.9),
)
def test_grids_fall_from_end_to_end(kind, process, num_times, start, share) -> None:
    times = time_grid(process, num_times, kind, start, share * start, dtype=DOUBLE)
    assert times.shape == (num_times,)
    assert bool((times.diff() < 0).all())
    ends = torch.tensor([start, share * start], dtype=DOUBLE)
    assert torch.equal(times[[0, -1]], ends)


def test_bad_options() -> None:
    process = VariancePreserving()
    with pytest.raises(ValueError, match="kind: expected one of uniform, quadratic, log-snr"):
        time_grid(process, 5, "cosine")
    with pytest.raises(ValueError, match="num_times: expected at least 2, for both ends, got 1"):
        time_grid(process, 1)
    with pytest.raises(ValueError, match=r"expected 0 <= min_time < max_time, got 1\.0 and 0\.5"):
        time_grid(process, 5, "uniform", 0.5, 1.0)
    for kind in ("log-snr", "karras"):
        with pytest.raises(ValueError, match="min_time: expected some noise there"):
            time_grid(VariancePreserving(), 5, kind, min_time=0.0)
    with pytest.raises(ValueError, match=r"eta: expected a number from 0 to 1, got 1\.5"):
        Exponential(1.5)
    with pytest.raises(ValueError, match="eta: expected a number at least 0, got -1"):
        Euler(-1)
    with pytest.raises(ValueError, match="correction: expected None, 'heun' or 'multistep'"):
        Exponential(1.0, "rk4")
    with pytest.raises(ValueError, match="times: expected one dimension"):
        integrate(process, Euler(), predict_with(process), torch.ones(1), torch.zeros(2, 2))
