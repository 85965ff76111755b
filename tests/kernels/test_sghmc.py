from __future__ import annotations

import numpy as np
import pyro
import pytest
import scipy.linalg
import torch

from pyrogen.kernels._schedule import PolynomialDecay
from pyrogen.kernels.mcmc import MCMC
from pyrogen.kernels.sghmc import SGHMC
from tests.kernels.minibatch import CONJUGATE, assert_variance_close
from tests.statistics import assert_mean_close

NUM_CHAINS = 4000
FRICTION = 20.0
STEP = 0.02


def recursion(precision, noise, estimate, step_size=STEP, friction=FRICTION):
    """The linear recursion ``(x, r) <- A (x, r) + N(0, Q)`` that SGHMC is on a Gaussian."""
    e = step_size
    matrix = np.array([[1, e], [-e * precision, 1 - e * friction - e**2 * precision]])
    injected = 2 * e * (friction - 0.5 * e * estimate) + e**2 * noise
    return matrix, np.diag([0.0, injected])


def last_draws(target, num_steps, **arguments):
    arguments = {"step_size": STEP, "friction": FRICTION, "compile": False, **arguments}
    start = torch.full((NUM_CHAINS,), target.mean, dtype=torch.float64)
    mcmc = MCMC(
        SGHMC(target.model, **arguments),
        1,
        num_steps - 1,
        num_chains=NUM_CHAINS,
        initial_params={"mu": start},
        disable_progbar=True,
    )
    mcmc.run(target.data)
    return mcmc.get_samples()["mu"], mcmc


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("batch", [None, 10])
def test_stationary_law(batch, estimated):
    target = CONJUGATE.minibatch(batch)
    estimate = target.noise if estimated else 0.0
    matrix, noise = recursion(target.precision, target.noise, estimate)
    num_steps = 100
    assert np.abs(np.linalg.eigvals(matrix)).max() ** (2 * num_steps) < 1e-6
    covariance = scipy.linalg.solve_discrete_lyapunov(matrix, noise)
    draws, mcmc = last_draws(target, num_steps, noise_estimate=estimate)
    assert_mean_close(draws, target.mean)
    assert_variance_close(draws, covariance[0, 0])
    momentum = mcmc._batches[0].state.momentum[:, 0]
    assert_mean_close(momentum, 0.0)
    assert_variance_close(momentum, covariance[1, 1])


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
    num_steps = 150
    draws, _ = last_draws(target, num_steps, step_size=schedule)
    covariance = np.diag([0.0, 1.0])  # momentum starts as N(0, 1)
    for t in range(num_steps):
        matrix, noise = recursion(target.precision, target.noise, 0.0, schedule(t))
        covariance = matrix @ covariance @ matrix.T + noise
    assert_variance_close(draws, covariance[0, 0])
    constant = recursion(target.precision, target.noise, 0.0)
    bias = scipy.linalg.solve_discrete_lyapunov(*constant)[0, 0] - 1 / target.precision
    assert abs(draws.var() - 1 / target.precision) < 0.3 * bias


def test_compiled_follows_the_same_law():
    target = CONJUGATE.minibatch(10)
    covariance = scipy.linalg.solve_discrete_lyapunov(
        *recursion(target.precision, target.noise, target.noise)
    )
    draws, _ = last_draws(target, 100, noise_estimate=target.noise, compile=True)
    assert_variance_close(draws, covariance[0, 0])


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
