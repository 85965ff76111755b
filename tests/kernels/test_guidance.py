"""Guidance of samplers by what a model observes, against closed forms."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine

from pyrogen.distributions import ScoreBased
from pyrogen.kernels import DPS, HMC, MALA, MCMC, MMPS, PiGDM, ReverseDiffusion, TwistedSMC
from pyrogen.kernels._guidance import GuidedDenoising, solve
from pyrogen.kernels._inverse import InverseProblem
from pyrogen.processes import Exponential, Rectified, VarianceExploding, VariancePreserving
from tests.kernels.inverse_problems import (
    GAUSSIAN,
    MATRIX,
    MIXTURE,
    OBSERVED,
    SCALE,
    Mixture,
    covariance,
    observed_by,
)
from tests.statistics import assert_mean_close

DOUBLE = torch.float64
PROCESSES = {"VP": VariancePreserving(), "VE": VarianceExploding(0.01, 10.0)}
WHITE = Mixture(torch.ones(1), torch.zeros(1, 3), 0.3 * torch.eye(3).unsqueeze(0))


def double(law):
    return Mixture(*(x.double() for x in (law.weights, law.means, law.covariances)))


def problem_of(law, process=None, model=None):
    return InverseProblem((model or observed_by)(double(law).prior(process)), (OBSERVED.double(),))


def run(model, *args, num_chains=1000, num_samples=1, **options):
    kernel = ReverseDiffusion(model, compile=False, **options)
    mcmc = MCMC(kernel, num_samples, 0, num_chains=num_chains, disable_progbar=True)
    mcmc.run(*args)
    return mcmc


# The likelihood, as the model says it.


def weighted(prior):
    """Two plates, a mask within and one without, a scale, and a correlated site."""

    def model(y, z):
        x = pyro.sample("x", prior)
        pyro.deterministic("twice", 2 * x)
        with poutine.scale(scale=3.0), pyro.plate("seen", 2, dim=-1):
            some = torch.tensor([True, False])
            pyro.sample("y", dist.Normal(x[:2], 0.5).mask(some), obs=y)
        root = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=x.dtype)
        with poutine.mask(mask=torch.tensor(True)):
            pyro.sample("z", dist.MultivariateNormal(x[1:] ** 2, scale_tril=root), obs=z)

    return model


def test_the_likelihood_is_that_of_all_other_sites():
    model = weighted(double(GAUSSIAN).prior())
    y, z = torch.randn(2, dtype=DOUBLE), torch.randn(2, dtype=DOUBLE)
    problem, x = InverseProblem(model, (y, z)), torch.randn(5, 3, dtype=DOUBLE)
    problem.check(gaussian=True)
    root = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=DOUBLE)
    expected = 3 * dist.Normal(x[:, 0], 0.5).log_prob(y[0])
    expected += dist.MultivariateNormal(x[:, 1:] ** 2, scale_tril=root).log_prob(z)
    torch.testing.assert_close(problem.log_likelihood(x), expected)
    white = torch.linalg.solve(root, (z - x[:, 1:] ** 2).unsqueeze(-1)).squeeze(-1)
    first = math.sqrt(3) * (y[0] - x[:, :1]) / 0.5
    rows = [white, first, torch.zeros_like(first)]
    residual = problem.residual(x)
    torch.testing.assert_close(residual.sort(1).values, torch.cat(rows, 1).sort(1).values)


def test_the_residual_is_linearized_in_both_directions():
    model = weighted(double(GAUSSIAN).prior())
    y, z = torch.randn(2, dtype=DOUBLE), torch.randn(2, dtype=DOUBLE)
    problem, x = InverseProblem(model, (y, z)), torch.randn(5, 3, dtype=DOUBLE)
    one_by_one = InverseProblem(model, (y, z), vectorize=False)
    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x: one_by_one.residual(x[None])[0], row)
            for row in x
        ]
    )
    linear = problem.linearized(x)
    u, v = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    torch.testing.assert_close(linear.back(u), -torch.einsum("nij,ni->nj", jacobian, u))
    torch.testing.assert_close(linear.forth(v), -torch.einsum("nij,nj->ni", jacobian, v))


def test_conjugate_gradients_solve_and_stay_bounded():
    root = torch.randn(5, 5, dtype=DOUBLE)
    b = torch.randn(3, 5, dtype=DOUBLE)
    solved = solve(lambda u: u @ root @ root.T, b, 5)
    exact = torch.linalg.solve(torch.eye(5, dtype=DOUBLE) + root @ root.T, b.T).T
    torch.testing.assert_close(solved, exact)
    torch.testing.assert_close(solve(lambda u: 0 * u, b, 9), b)  # further steps do no harm
    assert (solve(lambda u: -5 * u, b, 1).norm() <= b.norm() + 1e-12).all()


# The scores.


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("guidance", "law"), [(MMPS(), GAUSSIAN), (PiGDM(0.3), WHITE), (MMPS(), WHITE)]
)
def test_where_it_is_exact_the_score_is_that_of_the_posterior(guidance, law, name, t):
    """Given a noisy state the data are normal, and y is too: log p(y | x_t) in closed form."""
    process, t = PROCESSES[name], torch.tensor(t, dtype=DOUBLE)
    problem, law = problem_of(law, process), double(law)
    x = torch.randn(4, 3, dtype=DOUBLE)

    def log_likelihood(x):
        alpha, variance = process.mean_scale(t), process.variance(t)
        gain = (
            alpha
            * law.covariances[0]
            @ torch.linalg.inv(alpha**2 * law.covariances[0] + variance * torch.eye(3))
        )
        mean = law.means[0] + (x - alpha * law.means[0]) @ gain.T
        left = law.covariances[0] - alpha * gain @ law.covariances[0]
        matrix = MATRIX.double()
        spread = matrix @ left @ matrix.T + SCALE**2 * torch.eye(2)
        seen = dist.MultivariateNormal(mean @ matrix.T, 0.5 * (spread + spread.T))
        return seen.log_prob(OBSERVED.double()).sum()

    score = guidance(problem, x, t, None).score
    torch.testing.assert_close(score, torch.func.grad(log_likelihood)(x))


@pytest.mark.parametrize("guidance", [DPS(), DPS(0.3), DPS(tempered=True), PiGDM(0.5)])
def test_a_twist_has_the_score_of_its_own_function(guidance):
    problem, x = problem_of(MIXTURE), torch.randn(4, 3, dtype=DOUBLE)
    t, until = torch.tensor(0.4, dtype=DOUBLE), torch.tensor(0.3, dtype=DOUBLE)
    seen = guidance.evaluate(problem, x, t, until)
    exact = torch.func.grad(lambda x: guidance.evaluate(problem, x, t, until).log_prob.sum())
    torch.testing.assert_close(seen.score, exact(x))
    if isinstance(guidance, DPS) and guidance.step_size is None:
        mean = problem.prior.denoise(x, t)
        share = problem.prior.process.mean_scale(t).square() if guidance.tempered else 1
        expected = dist.Normal(mean @ MATRIX.double().T, SCALE).log_prob(OBSERVED.double())
        torch.testing.assert_close(seen.log_prob, share * expected.sum(-1))


def test_the_published_step_of_dps():
    """An ancestral step moves by zeta times the gradient of the distance, and no more."""
    problem, x = problem_of(MIXTURE), torch.randn(4, 3, dtype=DOUBLE)
    t, s = torch.tensor(0.4, dtype=DOUBLE), torch.tensor(0.35, dtype=DOUBLE)
    solver, guided = Exponential(1.0), GuidedDenoising(problem, DPS(0.7))
    plain = GuidedDenoising(problem, DPS(1e-300))
    moved = [
        solver.step(problem.prior.process, known.predictor(s), x, t, s, 0 * x, ())[0]
        for known in (guided, plain)
    ]

    def distance(x):
        return problem.residual(problem.prior.denoise(x, t)).norm(dim=-1).sum()

    torch.testing.assert_close(moved[0] - moved[1], -0.7 * torch.func.grad(distance)(x))


# Draws.


def assert_moments(x, law):
    """Mean and covariance of independent draws."""
    error = x - law.mean()
    assert_mean_close(error, torch.zeros(x.shape[1]))
    products = error.unsqueeze(2) * error.unsqueeze(1)
    assert_mean_close(products, law.covariance())


@pytest.mark.parametrize("guidance", ["mmps", PiGDM(0.3)])
def test_exact_guidance_draws_from_the_posterior(guidance):
    law = GAUSSIAN if guidance == "mmps" else WHITE
    posterior, _ = law.posterior(MATRIX, SCALE, OBSERVED)
    options = {"num_steps": 100, "method": "multistep", "grid": "karras", "guidance": guidance}
    mcmc = run(observed_by(law.prior()), OBSERVED, **options)
    assert_moments(mcmc.get_samples()["x"], posterior)


@pytest.mark.parametrize("guidance", ["dps", "pigdm"])
def test_approximations_are_seen_to_be_off(guidance):
    """What is said to be approximate: too narrow, or away from the posterior."""
    posterior, _ = GAUSSIAN.posterior(MATRIX, SCALE, OBSERVED)
    options = {"num_steps": 100, "method": "multistep", "grid": "karras", "guidance": guidance}
    x = run(observed_by(GAUSSIAN.prior()), OBSERVED, **options).get_samples()["x"]
    with pytest.raises(AssertionError, match="mean"):
        assert_moments(x, posterior)
    assert (x.mean(0) - posterior.mean()).norm() < 0.5


@pytest.mark.parametrize("twist", [PiGDM(0.6), DPS(tempered=True)])
def test_particles_are_exact_for_the_chain_they_walk(twist):
    """On normal data ancestral steps are linear, so that even a coarse walk has a law that is
    known: the estimates of the evidence and all draws weighted by them are unbiased for it."""
    prior_mean, prior_variance, scale, y = 0.5, 0.6, 0.8, torch.tensor(1.4)
    law = Mixture(torch.ones(1), torch.tensor([[prior_mean]]), torch.tensor([[[prior_variance]]]))
    prior = law.prior(min_time=0.01)

    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x[0], scale), obs=y)

    smc = TwistedSMC(4, twist)
    mcmc = run(model, y, num_chains=6000, num_steps=9, grid="log-snr", guidance=smc)
    mean, variance = _walked(prior, prior_mean, prior_variance, 9)
    evidence = dist.Normal(mean, (variance + scale**2) ** 0.5).log_prob(y).exp()
    gain = variance / (variance + scale**2)
    weight = mcmc.info["log_evidence"][:, 0].exp()
    x = mcmc.get_samples()["x"][:, 0]
    assert_mean_close(weight, evidence)
    error = x - (mean + gain * (y - mean))
    assert_mean_close(weight * error, torch.tensor(0.0))
    assert_mean_close(weight * (error.square() - (1 - gain) * variance), torch.tensor(0.0))
    assert (mcmc.info["ess"] > 1).all()
    assert (mcmc.info["ess"] <= 4).all()


def _walked(prior, mean, variance, num_steps):
    """Mean and variance of what ancestral steps make of noise, on normal data in one dimension."""
    from pyrogen.processes import time_grid

    process, options = prior.process, {"dtype": DOUBLE, "min_time": prior.min_time}
    times = time_grid(process, num_steps, "log-snr", **options)
    m, v = torch.tensor(0.0, dtype=DOUBLE), process.variance(times[0])

    def denoised(m, v, t):
        alpha, noise = process.mean_scale(t), process.variance(t)
        gain = alpha * variance / (alpha**2 * variance + noise)
        return gain, mean - gain * alpha * mean

    for t, s in itertools.pairwise(times):
        one, zero = torch.ones((), dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)
        of_data, of_state = (
            process.bridge(*pair, s, t).mean for pair in ((one, zero), (zero, one))
        )
        gain, shift = denoised(m, v, t)
        slope = of_state + of_data * gain
        m, v = slope * m + of_data * shift, slope**2 * v + process.bridge(one, one, s, t).variance
    gain, shift = denoised(m, v, times[-1])
    return (gain * m + shift).float(), (gain**2 * v).float()


def test_particles_where_the_likelihood_is_zero():
    """A condition, not a density: half of the prior is left."""
    law = Mixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))

    def above(bound):
        x = pyro.sample("x", law.prior(min_time=0.01))
        pyro.factor("y", torch.where(x[0] > bound, 0.0, -torch.inf))

    options = {"num_steps": 9, "grid": "log-snr", "guidance": TwistedSMC(8, resample_below=0.0)}
    mcmc = run(above, torch.tensor(0.0), num_chains=2000, **options)
    weight, x = mcmc.info["log_evidence"][:, 0].exp(), mcmc.get_samples()["x"][:, 0]
    assert_mean_close(weight, torch.tensor(0.5))
    assert (x[weight > 0] > 0).all()
    for share in (0.0, 0.5):  # where nothing is possible, that is what comes out
        options["guidance"] = TwistedSMC(8, resample_below=share)
        nowhere = run(above, torch.tensor(1e3), num_chains=3, **options).info
        assert (nowhere["log_evidence"] == -torch.inf).all()
        assert (nowhere["ess"] == 0).all()
    options["guidance"] = TwistedSMC(8)
    mcmc = run(above, torch.tensor(0.0), num_chains=50, **options)
    assert mcmc.info["log_evidence"].isfinite().all()


def test_particles_need_no_normal_observation():
    """A threshold seen: y = 1 if x > 0, with a probability."""
    law = Mixture(torch.ones(1), torch.tensor([[0.3]]), torch.tensor([[[1.0]]]))
    prior = law.prior(min_time=1e-3)

    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Bernoulli(logits=4 * x[0]), obs=y)

    options = {"num_steps": 100, "grid": "log-snr", "guidance": TwistedSMC(16)}
    x = run(model, torch.tensor(1.0), num_chains=500, **options).get_samples()["x"][:, 0]
    grid = torch.linspace(-6, 6, 4001)
    density = torch.exp(-0.5 * (grid - 0.3) ** 2) * torch.sigmoid(4 * grid)
    mean = (density * grid).sum() / density.sum()
    assert_mean_close(x, mean)


def test_problems_in_a_plate_are_solved_side_by_side():
    prior = GAUSSIAN.prior()
    y = torch.tensor([[0.4, 0.6], [-1.0, 2.0]])

    def model(y):
        with pyro.plate("data", 2, dim=-1):
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x @ MATRIX.T, SCALE).to_event(1), obs=y)

    options = {"num_steps": 40, "method": "multistep", "grid": "karras", "guidance": "mmps"}
    x = run(model, y, num_chains=400, **options).get_samples()["x"]
    for i in range(2):
        assert_moments(x[:, i], GAUSSIAN.posterior(MATRIX, SCALE, y[i])[0])


def test_densities_under_vmap_are_those_of_the_batch():
    prior, x = double(GAUSSIAN).prior(min_time=1e-2), torch.randn(3, 3, dtype=DOUBLE)
    x.requires_grad_()
    batch, one_by_one = prior.log_prob(x), torch.func.vmap(prior.log_prob)(x)
    torch.testing.assert_close(one_by_one, batch)
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE)
    gradients = [torch.autograd.grad((weight * y).sum(), x)[0] for y in (batch, one_by_one)]
    torch.testing.assert_close(*gradients)
    fixed = double(GAUSSIAN).prior(min_time=1e-2, method="rk4", steps=30)
    torch.testing.assert_close(fixed.log_prob(x), batch, atol=1e-3, rtol=0)


def test_hamiltonian_chains_on_the_density_of_the_prior():
    """The exact check: the probability flow's density in an ordinary posterior."""
    law = Mixture(torch.ones(1), torch.tensor([[0.5, 0.0]]), covariance(1.0, 0.5).unsqueeze(0))
    matrix, y = torch.tensor([[1.0, 1.0]]), torch.tensor([1.2])
    prior = law.prior(min_time=1e-3, atol=1e-3, rtol=1e-3)

    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(matrix @ x, SCALE).to_event(1), obs=y)

    kernel = HMC(model, num_steps=3, step_size=0.5, mass_matrix=None, compile=False)
    start, _ = law.posterior(matrix, SCALE, y)
    initial = {"x": start.sample(400)}
    mcmc = MCMC(kernel, 6, 2, num_chains=400, initial_params=initial, disable_progbar=True)
    with pytest.warns(UserWarning, match="runs without a graph"):
        mcmc.run(y)
    drawn = mcmc.get_samples(group_by_chain=True)["x"]
    assert (mcmc.info["accept_prob"].mean() > 0.5) & ((drawn[:, 0] != initial["x"]).any())
    assert_moments(drawn[:, -1], start)


@pytest.mark.parametrize("guidance", ["mmps", TwistedSMC(4)])
def test_under_pyro_with_one_chain(guidance):
    kernel = ReverseDiffusion(observed_by(MIXTURE.prior()), 5, guidance=guidance, compile=False)
    mcmc = pyro.infer.MCMC(kernel, 4, 0, disable_progbar=True)
    mcmc.run(OBSERVED)
    drawn = mcmc.get_samples()["x"]
    assert drawn.shape == (4, 3)
    assert len(set(drawn[:, 0].tolist())) == 4
    info = mcmc.diagnostics()["info"]["chain 0"]
    assert ("log_evidence" in info) == (guidance != "mmps")


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["dps", DPS(0.1), "pigdm", "mmps", "twisted-smc"])
def test_as_one_graph_a_step(guidance):
    """Compiled and not: draws of the same law."""
    model, options = observed_by(MIXTURE.prior()), {"num_steps": 60, "grid": "karras"}
    plain = run(model, OBSERVED, guidance=guidance, **options).get_samples()["x"]
    kernel = ReverseDiffusion(model, guidance=guidance, **options)
    mcmc = MCMC(kernel, 1, 0, num_chains=1000, disable_progbar=True)
    mcmc.run(OBSERVED)
    compiled = mcmc.get_samples()["x"]
    assert_mean_close(compiled - plain, torch.zeros(3))
    assert_mean_close(compiled.square() - plain.square(), torch.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE])
def test_langevin_chains_find_the_posterior_of_a_mixture(law):
    posterior, _ = law.posterior(MATRIX, SCALE, OBSERVED)
    model = observed_by(law.prior(min_time=1e-3, atol=1e-3, rtol=1e-3))
    kernel = MALA(model, step_size=0.1, adapt_step_size=False, compile=False)
    initial = {"x": posterior.sample(1000)}
    mcmc = MCMC(kernel, 30, 0, num_chains=1000, initial_params=initial, disable_progbar=True)
    with pytest.warns(UserWarning, match="runs without a graph"):
        mcmc.run(OBSERVED)
    x = mcmc.get_samples(group_by_chain=True)["x"][:, -1]
    assert_moments(x, posterior)


# What is refused.


def refused(model, *args, guidance="mmps", **options):
    kernel = ReverseDiffusion(model, 4, compile=False, guidance=guidance, **options)
    MCMC(kernel, 1, 0, num_chains=2, disable_progbar=True).run(*args)


def poisson(prior):
    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Poisson(x.square()).to_event(1), obs=y)

    return model


def logarithm(prior):
    """Normal, but not what is observed."""

    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.LogNormal(x, 1.0).to_event(1), obs=y)

    return model


def growing_noise(prior):
    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, 1 + x.square()).to_event(1), obs=y)

    return model


def unknown_noise(prior):
    def model(y):
        scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    return model


def without_likelihood(prior):
    return lambda y: pyro.sample("x", prior)


def tempered(prior):
    def model(y):
        with poutine.scale(scale=0.5):
            x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (poisson, "site 'y': expected a Normal .* got Poisson"),
        (logarithm, "site 'y': expected a Normal .* got LogNormal"),
        (growing_noise, "site 'y': expected noise that is the same everywhere"),
        (unknown_noise, r"exactly one latent site.*\['scale', 'x'\]"),
        (without_likelihood, "a likelihood of site 'x', got no other site"),
        (tempered, "site 'x': expected a prior that counts once"),
    ],
)
def test_models_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        refused(make(GAUSSIAN.prior()), torch.ones(3))


def test_options_that_do_not_fit_are_refused():
    model = observed_by(GAUSSIAN.prior())
    with pytest.raises(ValueError, match="one of 'dps', 'pigdm', 'mmps', 'twisted-smc'"):
        ReverseDiffusion(model, guidance="magic")
    with pytest.raises(ValueError, match="expected method='ancestral'"):
        ReverseDiffusion(model, guidance="twisted-smc", method="heun")
    with pytest.raises(ValueError, match="corrector_steps=0"):
        ReverseDiffusion(model, guidance=DPS(0.1), corrector_steps=1)
    with pytest.raises(ValueError, match="another method than 'heun'"):
        ReverseDiffusion(model, guidance=DPS(0.1), method="heun")
    with pytest.raises(TypeError, match="twist: expected"):
        TwistedSMC(twist=MMPS())
    with pytest.raises(ValueError, match="step_size: expected a positive"):
        DPS(-1.0)
    with pytest.raises(ValueError, match="tempered: expected False"):
        DPS(1.0, tempered=True)
    with pytest.raises(ValueError, match="some signal at max_time"):
        refused(observed_by(GAUSSIAN.prior(Rectified())), OBSERVED)
    with pytest.raises(ValueError, match="guidance: expected none in a sampler"):
        ScoreBased(
            VariancePreserving(), lambda x, t: x, 2, sampler=ReverseDiffusion(guidance="dps")
        ).sample()
    with pytest.raises(ValueError, match='guidance="mmps"'):
        refused(model, OBSERVED, guidance=None)
