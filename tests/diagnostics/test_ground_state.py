"""The evaluation of drifts, against costs and energies in closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.diagnostics import Estimate, ground_state_energy
from pyrogen.diagnostics.ground_state import _estimate
from pyrogen.errors import NonFiniteError
from pyrogen.guides import PathDrift
from pyrogen.models import (
    DoubleWell,
    FeynmanKac,
    Harmonic,
    HookesAtom,
    Molecule,
    PoschlTeller,
    TrappedBosons,
)
from pyrogen.processes import OrnsteinUhlenbeck
from tests.diagnostics.trial import gaussian, hookes_wave, screened
from tests.models.test_feynman_kac import stationary_cost, stationary_variance
from tests.two_processes import ends_of_two_processes

MANY = 5  # standard errors: 6e-7 of the estimates that are right lie further off


def evaluated(potential, drift, dim=1, dt=0.05, **options):
    model = FeynmanKac(potential, dim, 1.0, round(1 / dt))
    settings = {"duration": 10.0, "equilibration": 5.0, "window": None, "compile": False}
    return ground_state_energy(model, PathDrift(model, drift=drift), **{**settings, **options})


def assert_near(estimate, expected):
    assert abs(estimate.value - expected) < MANY * estimate.error, f"{estimate}, not {expected}"


@pytest.mark.parametrize("a", [0.6, 1.0, 1.6])
def test_costs_of_the_oscillator_at_both_steps(a):
    """Of a drift that is not known as a gradient: the costs of Euler's steps, exactly."""
    found = evaluated(Harmonic(2), lambda x, t: -a * x, dim=2, dt=0.1)
    coarse, fine = (2 * stationary_cost(a, dt) for dt in (0.1, 0.05))
    assert_near(found.cost, coarse)
    assert_near(found.cost_half, fine)
    assert_near(found.extrapolated, 2 * fine - coarse)
    # What is left of the step, of second order.
    limit = 2 * (a / 4 + 1 / (4 * a))
    assert found.energy == pytest.approx(limit, abs=0.01 * a**2 + MANY * found.error)
    # E_L = x^2 (1 - a^2) / 2 + a / 2 in each dimension, where x^2 has the variance 2 / (2 a)^2.
    expected = 2 * (1 - a**2) ** 2 / 4 * 2 / (4 * a**2)
    assert found.variance == pytest.approx(expected, rel=0.2)  # the step widens the law by 10 %
    assert found.variational is None
    assert found.error == found.extrapolated.error


def test_steps_with_the_same_noise_tell_their_difference():
    """The extrapolation has about the error of a single cost; of independent ones it has 2.2."""
    found = evaluated(Harmonic(), lambda x, t: -0.6 * x, dt=0.1)
    assert found.extrapolated.error < 1.3 * found.cost_half.error


@pytest.mark.parametrize("a", [0.6, 1.6])
def test_a_trial_function_is_evaluated_without_a_bias_of_the_step(a):
    found = evaluated(Harmonic(), gaussian(a), dt=0.25)
    assert_near(found.variational, a / 4 + 1 / (4 * a))
    assert found.best is found.variational
    assert found.accept_prob > 0.9
    assert found.variance == pytest.approx((1 - a**2) ** 2 / (8 * a**2), rel=0.15)


@pytest.mark.parametrize("charge", [0.8, 1.0, 1.3])
def test_hydrogen(charge):
    found = evaluated(Molecule.atom(1.0), screened(charge, 1), dim=3, num_walkers=500)
    exact = charge**2 / 2 - charge
    if charge == 1.0:
        assert found.energy == pytest.approx(exact, abs=1e-5)  # of single precision, near 0
        assert found.variance < 1e-8
    else:
        assert_near(found.variational, exact)


@pytest.mark.parametrize("charge", [27 / 16, 2.0])
def test_helium(charge):
    """``Z^2 - 4 Z + 5 Z / 8``, with the minimum -2.84765625 at 27/16."""
    found = evaluated(Molecule.atom(2.0, 2), screened(charge, 2), dim=6, num_walkers=500)
    assert_near(found.variational, charge**2 - 4 * charge + 5 * charge / 8)


@pytest.mark.parametrize(("number", "a"), [(2, 1.0), (3, 1.3)])
def test_bosons(number, a):
    """``2 N (a / 4 + 1 / (4 a)) + N (N - 1) / 2 g / (pi (s^2 + 2 / a))``; by Euler's steps, which
    keep a Gaussian law of another variance, the same in its terms."""
    coupling, width = 3.0, 0.5
    bosons = TrappedBosons(number, coupling, width)

    def cost(variance):
        repulsion = coupling / (math.pi * (width**2 + 4 * variance))
        return number * (a**2 + 1) * variance + number * (number - 1) / 2 * repulsion

    known = evaluated(bosons, gaussian(a), dim=2 * number)
    repulsion = coupling / (math.pi * (width**2 + 2 / a))
    exact = 2 * number * (a / 4 + 1 / (4 * a)) + number * (number - 1) / 2 * repulsion
    assert cost(1 / (2 * a)) == pytest.approx(exact)
    assert_near(known.variational, exact)
    coarse, fine = (cost(stationary_variance(a, dt)) for dt in (0.1, 0.05))
    unknown = evaluated(bosons, lambda x, t: -a * x, dim=2 * number, dt=0.1)
    assert_near(unknown.cost, coarse)
    assert_near(unknown.cost_half, fine)
    assert_near(unknown.extrapolated, 2 * fine - coarse)


@pytest.mark.parametrize(
    ("potential", "drift", "exact"),
    [
        (Harmonic(), gaussian(1.0), 0.5),
        (Harmonic(2, frequency=2.0), gaussian(2.0), 2.0),
        (HookesAtom(), hookes_wave(), 2.0),
        (PoschlTeller(2.0), lambda x, t: -2 * x.tanh(), -2.0),
        (Harmonic(), lambda x, t: -x, 0.5),
    ],
)
def test_exact_drifts_have_no_variance(potential, drift, exact):
    found = evaluated(potential, drift, dim=potential.dim, num_walkers=200)
    assert found.variance < 1e-8
    if found.variational is not None:
        assert found.energy == pytest.approx(exact, abs=1e-5)
    else:
        assert found.energy == pytest.approx(exact, abs=0.05**2 + MANY * found.error)


def test_importance_weights_find_the_ground_state_behind_a_poor_drift():
    """The rest of the excited states is exp(-2 * 4) of an overlap of 0.06; the energy of this drift
    is 0.567."""
    options = {"duration": 40.0, "window": 8.0, "dt": 0.1}
    known = evaluated(Harmonic(), gaussian(0.6), **options)
    assert_near(known.projected, 0.5)
    assert known.num_windows == 5000
    assert 1000 < known.ess < 4900
    assert known.projected.value < known.energy - 10 * known.projected.error
    unknown = evaluated(Harmonic(), lambda x, t: -0.8 * x, **options)
    assert_near(unknown.projected, 0.5)
    assert 3000 < unknown.num_windows < 4500  # those that begin where the potential is high are not
    assert 100 < unknown.ess < unknown.num_windows


def test_weights_of_a_shifted_trial_function():
    """A trial function that is wrong by a shift has weights in closed form.

    ``E_L = 1/2 + c x - c^2 / 2`` along an Ornstein-Uhlenbeck process at ``c``: the integral is
    Gaussian, and its cumulants give the estimate with the remainder ``c^2 exp(-window / 2)``.
    """
    c, window = 0.5, 4.0

    def log_psi(x):
        return -0.5 * (x - c).square().sum(-1)

    drift = gaussian(1.0)
    drift.log_amplitude = log_psi
    found = evaluated(Harmonic(), drift, duration=24.0, window=window)

    def log_mean(t):  # var of int x dt is t - 1 + exp(-t)
        return -(0.5 + c**2 / 2) * t + c**2 * (t - 1 + math.exp(-t)) / 2

    expected = -(log_mean(window) - log_mean(window / 2)) / (window / 2)
    assert_near(found.variational, 0.5 + c**2 / 2)
    assert_near(found.projected, expected)


def test_the_error_is_that_of_independent_replicates():
    """The spread of 30 values is known to 13 %; five times that is allowed."""
    runs = [
        evaluated(
            Harmonic(), lambda x, t: -0.6 * x, num_walkers=100, dt=0.2, window=2.0, duration=8.0
        )
        for _ in range(30)
    ]
    for name in ("cost", "cost_half", "extrapolated", "projected"):
        estimates = [getattr(run, name) for run in runs]
        spread = float(torch.tensor([each.value for each in estimates]).std())
        error = math.sqrt(sum(each.error**2 for each in estimates) / len(estimates))
        assert error == pytest.approx(spread, rel=5 * 0.13), name


def test_errors_are_those_of_blocks_as_long_as_their_number_allows():
    """16 blocks of 4 walkers are 64 of their own; of 64 walkers each is one."""
    errors = [_estimate(torch.randn(16, 4)).error for _ in range(400)]
    # A standard deviation of 64 numbers is known to 9 %, their root mean square to 0.5 %.
    assert math.sqrt(sum(e**2 for e in errors) / 400) == pytest.approx(1 / 8, rel=5 * 0.005)
    apart = torch.randn(64).expand(16, 64)
    assert _estimate(apart).error == pytest.approx(float(apart[0].std()) / 8)
    of_pairs = torch.randn(8, 1, 8).expand(8, 2, 8).reshape(16, 8)
    assert _estimate(of_pairs).error == pytest.approx(float(of_pairs[::2].std()) / 8)


def test_scaled_paths():
    """``-s^2 psi'' / 2 + x^2 / 2`` with s = 1/2, and the drift that is wrong by a factor."""
    scale, a = 0.5, 0.7
    model = FeynmanKac(Harmonic(), 1, 1.0, 20, scale=scale)
    guide = PathDrift(model, drift=gaussian(a))
    found = ground_state_energy(model, guide, duration=20.0, window=None, compile=False)
    variance = scale**2 / (2 * a)
    assert_near(found.variational, (a**2 / scale**2 + 1) * variance / 2)
    assert found.extrapolated.value == pytest.approx(
        found.energy, abs=MANY * math.hypot(found.error, found.extrapolated.error) + 1e-3
    )


def test_a_drift_that_depends_on_time_is_repeated():
    """Period 1, between a = 0.5 and 1.5; the variance solves a linear equation, step by step."""
    steps, dt = 10, 0.1
    rates = [0.5 + k * dt for k in range(steps)]
    variance = 1.0
    for _ in range(100):
        for rate in rates:
            variance = (1 - rate * dt) ** 2 * variance + dt
    costs = []
    for rate in rates:
        costs.append((rate**2 + 1) / 2 * variance)
        variance = (1 - rate * dt) ** 2 * variance + dt
    found = evaluated(Harmonic(), lambda x, t: -(0.5 + t) * x, dt=dt)
    assert_near(found.cost, sum(costs) / steps)


def test_walkers_start_where_they_are_told():
    far = torch.full((300, 1), 40.0)
    with pytest.warns(UserWarning, match="second half of the run differs"):
        found = evaluated(
            Harmonic(), lambda x, t: -x, num_walkers=300, initial=far, equilibration=0.0
        )
    assert found.energy > 10
    assert found.equilibration == 0.0


@pytest.mark.parametrize(
    "drift", [lambda x, t: -x, pytest.param(gaussian(1.0), marks=pytest.mark.slow)]
)
def test_compiled_is_the_same(drift):
    found = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        options = {"duration": 4.0, "equilibration": 1.0, "num_walkers": 50, "compile": compiled}
        found.append(evaluated(DoubleWell(), drift, **options))
    for name in ("cost", "cost_half", "best"):
        first, second = (getattr(each, name) for each in found)
        assert second.value == pytest.approx(first.value, rel=1e-4)
        assert second.error == pytest.approx(first.error, rel=1e-3)


def test_the_model_is_as_it_was():
    """Neither the guide's mode nor its gradients change, nor does validation."""
    model = FeynmanKac(Harmonic(), 1, 1.0, 10)
    guide = PathDrift(model).train()
    ground_state_energy(model, guide, duration=8.0, num_walkers=20, window=None, compile=False)
    assert guide.training
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_it_prints():
    found = evaluated(Harmonic(), gaussian(0.9), window=4.0, num_walkers=100)
    text = str(found)
    assert text.startswith(f"ground-state energy {found.variational}")
    for part in ("cost, steps of 0.05", "steps of 0.025", "extrapolated", "accepted", "effective"):
        assert part in text
    assert "100 walkers for a time of 10, after 5 that is discarded" in text
    assert str(Estimate(1.23456, 0.00123)) == "1.2346 ± 0.0012"
    assert str(Estimate(123.456, 20.0)) == "123 ± 20"
    assert str(Estimate(0.5, 0.0)) == "0.5 ± 0"


def test_two_processes_find_the_same(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ends = ends_of_two_processes("tests.diagnostics.two_processes", tmp_path, launcher=launcher)
    assert ends[0]["found"] == ends[1]["found"]  # both know the whole
    assert ends[0]["num_windows"] == 5 * 301
    alone = evaluated(Harmonic(), gaussian(0.6), num_walkers=301, duration=20.0, window=4.0)
    for name, (value, error) in ends[0]["found"].items():
        own = getattr(alone, name)
        assert abs(value - own.value) < MANY * math.hypot(error, own.error), name
        assert error == pytest.approx(own.error, rel=0.3), name
    assert ends[1]["failed"] == "NonFiniteError"
    assert ends[0]["failed"] == "RuntimeError"
    assert torch.equal(ends[0]["noise after"], ends[1]["noise after"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_walkers": 3}, "num_walkers: expected an integer of at least 4, got 3"),
        ({"duration": math.inf}, "duration: expected a finite number above 0, got inf"),
        ({"duration": 0.5}, r"duration: expected 16 steps of 0\.05 at least, got 0\.5"),
        ({"equilibration": -1.0}, "equilibration: expected a number of at least 0"),
        ({"window": 6.0}, "window: expected two steps of 0.05 at least and half the duration of"),
        ({"initial": torch.zeros(3, 1)}, r"initial: expected places \[1000, 1\], got \[3, 1\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluated(Harmonic(), lambda x, t: -x, dt=0.05, **options)


def test_a_step_of_zero_is_refused():
    model = FeynmanKac(Harmonic(), 1)
    with pytest.raises(ValueError, match=r"dt: expected a finite number above 0, got 0\.0"):
        ground_state_energy(model, PathDrift(model), dt=0.0)


def test_what_is_not_a_ground_state_is_refused():
    model = FeynmanKac(Harmonic(), 1)
    with pytest.raises(ValueError, match="model: expected one with a potential"):
        ground_state_energy(lambda: None, PathDrift(model))
    with pytest.raises(ValueError, match="guide: expected a law of paths at site 'x'"):
        ground_state_energy(model, lambda: pyro.sample("y", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match=r"drift: expected shape \[2, 1\] .* got \[2, 2\]"):
        evaluated(Harmonic(), lambda x, t: -x.squeeze(-1).expand(x.shape[:-1]))
    model.process = OrnsteinUhlenbeck()
    with pytest.raises(ValueError, match="expected paths that are Brownian, got OrnsteinUhlenbeck"):
        ground_state_energy(model, PathDrift(model))


def test_exploding_walkers_are_named_with_the_step():
    with pytest.raises(NonFiniteError, match=r"site 'x': .* not finite after step 8") as caught:
        evaluated(Harmonic(), lambda x, t: torch.where(t > 0.42, torch.inf, -x))
    assert caught.value.site == "x"
    assert caught.value.step == 8  # from 0.4, of which the second half begins at 0.425
