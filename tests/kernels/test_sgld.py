from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyrogen.kernels import MCMC, SGLD, PolynomialDecay
from tests.kernels.minibatch import (
    CONJUGATE,
    assert_law,
    assert_variance_close,
    repeated_draws,
    spaced_draws,
)
from tests.statistics import assert_mean_close


def variance_after(num_steps, step_size, precision, noise):
    """Exact variance of the linear recursion with Gaussian and gradient noise, from 0."""
    variance = 0.0
    for t in range(num_steps):
        h = step_size(t) if callable(step_size) else step_size
        variance = (1 - h * precision / 2) ** 2 * variance + h + h**2 * noise / 4
    return variance


def stationary_variance(h, precision, noise):
    return (1 + h * noise / 4) / (precision * (1 - h * precision / 4))


@pytest.mark.parametrize("batch", [None, 4, 20])
def test_stationary_law_with_and_without_minibatches(batch):
    target = CONJUGATE.minibatch(batch)
    h = 0.4 / target.precision
    expected = stationary_variance(h, target.precision, target.noise)
    # what is left of the start and of the draw before: 0.8^24 < 0.5 %
    draws, _ = spaced_draws(SGLD(target.model, step_size=h, compile=False), target, 40, 12)
    assert_law(draws, target.mean, expected)
    error = (draws - target.mean).square().mean(0).std() / draws.shape[1] ** 0.5
    assert expected - 1 / target.precision > 3 * error  # the bias that is tested for can be seen


def test_each_chain_has_its_own_minibatch():
    target = CONJUGATE.minibatch(4)
    kernel = SGLD(target.model, step_size=1e-9, compile=False)
    start = {"mu": torch.full((1000,), target.mean, dtype=torch.float64)}
    energies = kernel.start(1000, 0, (target.data,), {}, start).state.potential_energy
    assert len(energies.unique()) > 500


def test_gradient_noise_is_that_of_sampling_without_replacement_and_uncorrelated_between_chains():
    target = CONJUGATE.minibatch(20)
    kernel = SGLD(target.model, step_size=1e-12, compile=False)
    start = {"mu": torch.full((50,), target.mean, dtype=torch.float64)}
    chains = kernel.start(50, 0, (target.data,), {}, start)
    rows = []
    for _ in range(400):
        rows.append(chains.state.gradient[:, 0])
        chains.advance()
    noise = torch.stack(rows)  # [steps, chains]; the position hardly moves
    assert_mean_close(noise.mean(1), 0.0)
    assert_mean_close(noise.square().mean(1), target.noise)
    # the mean over chains has this variance only if the chains are uncorrelated
    assert_mean_close(noise.mean(1).square(), target.noise / 50)
    # steps are independent
    assert_mean_close((noise[1:] * noise[:-1]).mean(1)[::2], 0.0)


def test_a_decreasing_schedule_follows_its_exact_law_and_is_less_biased():
    target = CONJUGATE.minibatch(4)
    h, num_steps = 0.4 / target.precision, 60
    schedule = PolynomialDecay(a=h, b=1.0, gamma=0.6)
    kernel = SGLD(target.model, step_size=schedule, compile=False)
    draws, mcmc = repeated_draws(kernel, target, num_steps)
    assert_law(
        draws, target.mean, variance_after(num_steps, schedule, target.precision, target.noise)
    )
    assert mcmc.info["step_size"][0, 0] == pytest.approx(schedule(num_steps - 1))
    exact = 1 / target.precision
    constant = stationary_variance(h, target.precision, target.noise)
    assert abs(draws.var() - exact) < 0.4 * abs(constant - exact)


def test_preconditioner_is_learned_in_warm_up_and_then_held():
    target = CONJUGATE.minibatch(4)
    kernel = SGLD(target.model, step_size=0.3, preconditioned=True, decay=0.8, compile=False)
    draws, mcmc = spaced_draws(kernel, target, 100, 12)
    scale = float(mcmc._batches[0].tuning.scale)
    h = 0.3 * scale**2
    expected = stationary_variance(h, target.precision, target.noise)
    assert abs(1 - h * target.precision / 2) ** 24 < 0.01
    assert_law(draws, target.mean, expected)
    before = mcmc._batches[0].tuning.scale.clone()
    mcmc.extend(1)
    assert torch.equal(mcmc._batches[0].tuning.scale, before)
    # V is the mean square of the gradient of a minibatch
    square = target.precision**2 * expected + target.noise
    assert scale**2 == pytest.approx(square**-0.5, rel=0.1)


def test_preconditioner_makes_the_scales_alike():
    """G goes as the standard deviation, so steps h G a differ as the scales, not their squares."""
    precision = torch.tensor([100.0, 1.0], dtype=torch.float64)

    def energy(x):
        return 0.5 * (precision * x.square()).sum(-1)

    kernel = SGLD(energy=energy, event_shape=(2,), step_size=0.05, preconditioned=True)
    num_chains = 4000
    start = torch.randn(num_chains, 2, dtype=torch.float64) / precision.sqrt()
    mcmc = MCMC(
        kernel, 1, 300, num_chains=num_chains, initial_params={"x": start}, disable_progbar=True
    )
    mcmc.run()
    g = mcmc._batches[0].tuning.scale.square()
    assert float(g[1] / g[0]) == pytest.approx(10, rel=0.1)
    mcmc.extend(200)
    draws = mcmc.get_samples(group_by_chain=True)["x"][:, -1]
    assert_variance_close(draws[:, 0], stationary_variance(0.05 * float(g[0]), 100.0, 0))
    decay = (1 - 0.05 * float(g[1]) / 2) ** 400
    limit = stationary_variance(0.05 * float(g[1]), 1.0, 0)
    assert decay < 1e-3
    assert_variance_close(draws[:, 1], limit, slack=decay)


def test_compiled_draws_a_fresh_minibatch_at_every_step():
    target = CONJUGATE.minibatch(20)
    h = 0.4 / target.precision
    kernel = SGLD(target.model, step_size=h, compile=True)
    draws, _ = spaced_draws(kernel, target, 40, 12)
    assert_law(draws, target.mean, stationary_variance(h, target.precision, target.noise))


def test_a_step_out_of_the_domain_is_not_made():
    def energy(x):
        return torch.where(x > 0, x, torch.nan).sum(-1)

    kernel = SGLD(energy=energy, event_shape=(1,), step_size=1.0, compile=False)
    start = torch.full((1000, 1), 0.5)
    mcmc = MCMC(kernel, 1, 0, num_chains=1000, initial_params={"x": start}, disable_progbar=True)
    mcmc.run()
    draws, info = mcmc.get_samples()["x"][:, 0], mcmc.info
    # x' = 0.5 - 0.5 + z is negative for half of the chains, which stay
    stayed = draws == 0.5
    assert torch.equal(stayed, info["diverging"][:, 0])
    assert torch.equal(stayed, info["accept_prob"][:, 0] == 0)
    assert scipy.stats.binomtest(int(stayed.sum()), 1000, 0.5).pvalue > 2e-5
    assert (draws > 0).all()


def test_under_pyros_driver():
    target = CONJUGATE.minibatch(20)
    h = 0.2 / target.precision
    mcmc = pyro.infer.MCMC(SGLD(target.model, step_size=h, compile=False), 50, 5)
    mcmc.run(target.data)
    assert mcmc.get_samples()["mu"].unique().shape == (50,)
    assert mcmc.diagnostics()["acceptance rate"]["chain 0"] == 1


def test_several_and_nested_plates():
    rows, columns = torch.randn(30), torch.randn(10, 30)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 30, subsample_size=5, dim=-1) as i:
            pyro.sample("a", dist.Normal(mu, 1.0), obs=rows[i])
            with pyro.plate("columns", 10, subsample_size=2, dim=-2) as j:
                pyro.sample("b", dist.Normal(mu, 2.0), obs=columns[j][:, i])

    kernel = SGLD(model, step_size=1e-12, compile=False)
    start = {"mu": torch.zeros(20000)}
    gradient = kernel.start(20000, 0, initial_params=start).state.gradient[:, 0]
    assert_mean_close(gradient, float(-rows.sum() - columns.sum() / 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size: expected a finite number above 0, got 0.0"),
        ({"step_size": float("nan")}, "step_size"),
        ({"decay": 1.0}, "decay: expected a number between 0 and 1"),
        ({"floor": -1.0}, "floor"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGLD(CONJUGATE.minibatch(4).model, **arguments)


def test_a_schedule_that_ends():
    kernel = SGLD(CONJUGATE.minibatch(4).model, step_size=lambda t: 1e-3 * (2 - t), compile=False)
    mcmc = MCMC(kernel, 3, 0, disable_progbar=True)
    with pytest.raises(
        ValueError, match=r"step_size\(2\): expected a finite number above 0, got 0"
    ):
        mcmc.run(CONJUGATE.data)


def test_a_preconditioner_needs_warm_up():
    kernel = SGLD(CONJUGATE.minibatch(4).model, preconditioned=True, compile=False)
    with pytest.raises(ValueError, match="warmup_steps: expected at least 1"):
        MCMC(kernel, 1, 0, disable_progbar=True).run(CONJUGATE.data)


@pytest.mark.parametrize("arguments", [{"gamma": 1.5}, {"a": 0.0}, {"b": -1.0}, {"gamma": 0.0}])
def test_schedule_out_of_range(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: expected"):
        PolynomialDecay(**{"a": 1.0, **arguments})
