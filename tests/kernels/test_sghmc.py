from __future__ import annotations

import numpy as np
import pyro
import pytest
import scipy.linalg
import torch

from pyrogen.kernels import SGHMC, PolynomialDecay
from tests.kernels.minibatch import CONJUGATE, assert_law, repeated_draws, spaced_draws
from tests.statistics import assert_mean_close

FRICTION = 20.0
STEP = 0.02


def recursion(precision, noise, estimate, step_size=STEP, friction=FRICTION):
    """The linear recursion ``(x, r) <- A (x, r) + N(0, Q)`` that SGHMC is on a Gaussian."""
    e = step_size
    matrix = np.array([[1, e], [-e * precision, 1 - e * friction - e**2 * precision]])
    injected = 2 * e * (friction - 0.5 * e * estimate) + e**2 * noise
    return matrix, np.diag([0.0, injected])


def sghmc(target, **arguments):
    settings = {"step_size": STEP, "friction": FRICTION, "compile": False}
    return SGHMC(target.model, **{**settings, **arguments})


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("batch", [None, 10])
def test_stationary_law(batch, estimated):
    target = CONJUGATE.minibatch(batch)
    estimate = target.noise if estimated else 0.0
    matrix, noise = recursion(target.precision, target.noise, estimate)
    assert np.abs(np.linalg.eigvals(matrix)).max() ** 48 < 0.01  # left of the draw before
    covariance = scipy.linalg.solve_discrete_lyapunov(matrix, noise)
    draws, mcmc = spaced_draws(sghmc(target, noise_estimate=estimate), target, 60, 24)
    assert_law(draws, target.mean, covariance[0, 0])
    kinetic = (mcmc.info["energy"] - mcmc.info["potential_energy"]).double()
    assert_mean_close(2 * kinetic.mean(0), covariance[1, 1])


def test_the_estimate_takes_out_the_noise_of_the_gradient():
    target = CONJUGATE.minibatch(10)
    exact = 1 / target.precision
    without, with_estimate = (
        scipy.linalg.solve_discrete_lyapunov(*recursion(target.precision, target.noise, v))[0, 0]
        for v in (0.0, target.noise)
    )
    assert without > 1.2 * exact  # what the stationary law above was compared with
    assert with_estimate == pytest.approx(exact, rel=0.05)


def test_a_decreasing_schedule_follows_its_exact_law_and_is_less_biased():
    target = CONJUGATE.minibatch(10)
    schedule = PolynomialDecay(a=STEP, b=1.0, gamma=0.5)
    num_steps = 60
    draws, _ = repeated_draws(sghmc(target, step_size=schedule), target, num_steps)
    covariance = np.diag([0.0, 1.0])  # momentum starts as N(0, 1)
    for t in range(num_steps):
        matrix, noise = recursion(target.precision, target.noise, 0.0, schedule(t))
        covariance = matrix @ covariance @ matrix.T + noise
    assert_law(draws, target.mean, covariance[0, 0])
    constant = recursion(target.precision, target.noise, 0.0)
    bias = scipy.linalg.solve_discrete_lyapunov(*constant)[0, 0] - 1 / target.precision
    assert abs(draws.var() - 1 / target.precision) < 0.5 * bias


def test_compiled_follows_the_same_law():
    target = CONJUGATE.minibatch(10)
    covariance = scipy.linalg.solve_discrete_lyapunov(
        *recursion(target.precision, target.noise, target.noise)
    )
    kernel = sghmc(target, noise_estimate=target.noise, compile=True)
    draws, _ = spaced_draws(kernel, target, 60, 24)
    assert_law(draws, target.mean, covariance[0, 0])


def test_a_chain_turns_round_where_the_energy_is_not_finite():
    def energy(x):
        return torch.where(x > 0, 0.0 * x, torch.nan).sum(-1)

    kernel = SGHMC(energy=energy, event_shape=(1,), step_size=0.1, friction=1.0, compile=False)
    chains = kernel.start(500, 0, initial_params={"x": torch.full((500, 1), 0.01)})
    momentum = chains.state.momentum
    out = (0.01 + 0.1 * momentum < 0).flatten()
    info = chains.advance()
    assert torch.equal(info.diverging, out)
    assert torch.equal(chains.state.momentum[out], -momentum[out])
    assert (chains.position[out] == 0.01).all()
    assert (chains.position[~out] != 0.01).all()


def test_under_pyros_driver():
    target = CONJUGATE.minibatch(10)
    kernel = SGHMC(target.model, step_size=STEP, friction=FRICTION, compile=False)
    mcmc = pyro.infer.MCMC(kernel, 50, 5, disable_progbar=True)
    mcmc.run(target.data)
    assert mcmc.get_samples()["mu"].unique().shape == (50,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.1, "friction": 11.0}, "expected a product of at most 1, got 0.1"),
        ({"step_size": -0.1}, "step_size: expected a finite number"),
        ({"friction": 0.0}, "friction: expected a finite number"),
        ({"noise_estimate": -1.0}, "noise_estimate: expected a finite number"),
        (
            {"step_size": 0.1, "friction": 1.0, "noise_estimate": 21.0},
            r"friction: expected at least step_size \* noise_estimate / 2 = 1.05, got 1",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGHMC(CONJUGATE.model, **arguments)
