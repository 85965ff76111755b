"""What holds for every kernel of the registry, on targets that are known exactly."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import scipy.stats
import torch

from pyrogen.kernels import MCMC
from tests.kernels.registry import (
    ACCEPTING_KERNELS,
    EXACT_KERNELS,
    KERNELS,
    ONE_OF_EACH_CLASS,
    REVERSIBLE_KERNELS,
)
from tests.kernels.targets import EXACT, GAUSSIAN, SKEWED
from tests.statistics import TEST_FAILURE_RATE, assert_mean_close

NUM_CHAINS = 5000
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_class = pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)


def normal_energy(x):
    return 0.5 * x.square().sum(-1)


def moved(kernel, start, num_steps):
    """Positions and ``info`` after each of so many steps without warm-up, from ``start``."""
    with torch.no_grad():
        chains = kernel.start(len(start), 0, initial_params={"x": start})
        return [(info, chains.position) for info in (chains.advance() for _ in range(num_steps))]


def gaussian_model(scale=1.0):
    b = pyro.sample("b", dist.Normal(0.0, scale).expand([2]).to_event(1))
    pyro.sample("a", dist.Normal(b.sum(), 1.0))


def run_pyro(kernel, num_samples=5, warmup_steps=5, **arguments):
    mcmc = pyro.infer.MCMC(kernel, num_samples, warmup_steps, disable_progbar=True, **arguments)
    mcmc.run()
    return mcmc


@pytest.mark.parametrize("target", EXACT)
@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_the_target_is_invariant(name, target):
    exact = EXACT[target]
    kernel = KERNELS[name](energy=exact.energy, event_shape=(2,))
    start = exact.draw(NUM_CHAINS)
    steps = moved(kernel, start, 3)
    assert (steps[0][1] != start).any(1).float().mean() > 0.2  # chains do move
    exact.assert_follows(steps[0][1])
    exact.assert_follows(steps[-1][1])


@pytest.mark.parametrize("name", REVERSIBLE_KERNELS)
def test_detailed_balance(name):
    """A step forth and back have the same law: antisymmetric functions of both have mean zero."""
    start = SKEWED.draw(10_000)
    kernel = KERNELS[name](energy=SKEWED.energy, event_shape=(2,))
    ((_, end),) = moved(kernel, start, 1)
    before, after = _features(start), _features(end)
    pairs = before.unsqueeze(2) * after.unsqueeze(1)
    row, column = torch.triu_indices(4, 4, 1)
    antisymmetric = (pairs - pairs.transpose(1, 2))[:, row, column]
    assert_mean_close(antisymmetric, torch.zeros(6))


def _features(x):
    """Bounded functions that weigh tails, skewness and both coordinates."""
    bounded = torch.tanh(torch.cat([x, x.square()], 1) / 2)
    return torch.cat([bounded[:, :3], torch.ones(len(x), 1)], 1)


@pytest.mark.parametrize("name", ACCEPTING_KERNELS)
@pytest.mark.parametrize(("step_size", "low", "high"), [(1e-3, 0.9, 1.0), (50.0, 0.0, 0.5)])
def test_acceptance_falls_with_the_step_size(name, step_size, low, high):
    kernel = KERNELS[name](energy=GAUSSIAN.energy, event_shape=(2,), step_size=step_size)
    ((info, _),) = moved(kernel, GAUSSIAN.draw(500), 1)
    assert low <= info.accept_prob.mean() <= high


@every_kernel
def test_a_region_of_nan_is_never_entered_and_counted(name):
    def energy(x):
        return torch.where(x[:, 0] > 0.5, torch.nan, normal_energy(x))

    start = torch.zeros(200, 2)
    steps = moved(KERNELS[name](energy=energy, event_shape=(2,)), start, 30)
    positions = torch.stack([position for _, position in steps])
    diverging = torch.stack([info.diverging for info, _ in steps])
    accepted = torch.stack([info.accept_prob for info, _ in steps])
    assert torch.isfinite(positions).all()
    assert (positions[..., 0] <= 0.5).all()
    assert torch.isfinite(accepted).all()
    assert 0.01 < diverging.float().mean() < 0.9
    assert ((positions[-1] - start).abs().sum(1) > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_rejection_at_a_wall_leaves_the_truncated_law(name):
    """Starting from exact draws of a normal cut off at 0.5."""
    cut = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5))
    start = torch.distributions.Normal(0.0, 1.0).icdf(torch.rand(NUM_CHAINS, 1) * cut)

    def energy(x):
        return torch.where(x[:, 0] > 0.5, torch.nan, normal_energy(x))

    steps = moved(KERNELS[name](energy=energy, event_shape=(1,)), start, 2)
    uniform = torch.special.ndtr(steps[-1][1][:, 0]) / cut
    assert scipy.stats.kstest(uniform.numpy(), "uniform").pvalue > TEST_FAILURE_RATE


@every_kernel
def test_an_initial_energy_that_is_not_finite_is_an_error(name):
    kernel = KERNELS[name](energy=lambda x: normal_energy(x) / 0.0, event_shape=(2,))
    mcmc = MCMC(kernel, 1, 0, num_chains=3, disable_progbar=True)
    with pytest.raises(ValueError, match="initial points of finite energy"):
        mcmc.run()
    mcmc.initial_params = {"x": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"finite energy and gradient.*3 of 3 chains"):
        mcmc.run()


@every_kernel
def test_chains_start_at_initial_params_and_keep_their_order(name):
    start = 1000.0 * torch.arange(12.0).unsqueeze(1).expand(12, 2)
    kernel = KERNELS[name](energy=lambda x: 1e-6 * normal_energy(x), event_shape=(2,))
    for size in (None, 5):
        mcmc = MCMC(
            kernel,
            2,
            0,
            num_chains=12,
            chain_batch_size=size,
            initial_params={"x": start},
            disable_progbar=True,
        )
        mcmc.run()
        drawn = mcmc.get_samples(group_by_chain=True)["x"]
        assert ((drawn - start.unsqueeze(1)).abs() < 100).all()


@every_class
def test_under_pyro_initial_params_are_honoured(name):
    start = {"a": torch.tensor(500.0), "b": torch.tensor([-500.0, 500.0])}

    def model():
        pyro.sample("a", dist.Normal(0.0, 1e4))
        pyro.sample("b", dist.Normal(0.0, 1e4).expand([2]).to_event(1))

    drawn = run_pyro(KERNELS[name](model=model), 1, 0, initial_params=start).get_samples()
    for site, value in start.items():
        assert ((drawn[site][0] - value).abs() < 50).all()
        assert (drawn[site][0] != value).all() or not KERNELS[name].exact


@every_class
def test_under_pyro_with_hooks_and_without_warm_up(name):
    calls = []

    def hook(kernel, params, stage, i):
        calls.append((stage, i, sorted(params)))

    mcmc = run_pyro(KERNELS[name](model=gaussian_model), 4, 2, hook_fn=hook)
    assert [call[:2] for call in calls] == [
        *(("Warmup", i) for i in range(2)),
        *(("Sample", i) for i in range(4)),
    ]
    assert calls[0][2] == ["a", "b"]
    assert mcmc.get_samples()["b"].shape == (4, 2)
    diagnostics = mcmc.diagnostics()
    assert 0 <= diagnostics["acceptance rate"]["chain 0"] <= 1
    mcmc = run_pyro(KERNELS[name](model=gaussian_model), 3, 0)
    assert mcmc.get_samples()["a"].shape == (3,)


@every_class
def test_under_pyro_several_chains_reuse_the_kernel(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_chains=")
        mcmc = run_pyro(KERNELS[name](model=gaussian_model), 4, 3, num_chains=3)
    drawn = mcmc.get_samples(group_by_chain=True)["b"]
    assert len({tuple(chain.flatten().tolist()) for chain in drawn}) == 3
    assert len(mcmc.diagnostics()["divergences"]) == 3


@every_class
def test_save_params_need_not_be_sorted(name):
    def model():
        pyro.sample("a", dist.Normal(1000.0, 1.0))
        pyro.sample("b", dist.Normal(-1000.0, 1.0))
        pyro.sample("c", dist.Normal(0.0, 1.0))

    start = {"a": torch.tensor(1000.0), "b": torch.tensor(-1000.0), "c": torch.tensor(0.0)}
    mcmc = run_pyro(KERNELS[name](model=model), 3, 0, initial_params=start, save_params=["b", "a"])
    drawn = mcmc.get_samples()
    assert sorted(drawn) == ["a", "b"]
    assert (drawn["a"] > 900).all()
    assert (drawn["b"] < -900).all()


@every_class
def test_setup_twice_forgets_the_first_run(name):
    kernel = KERNELS[name](model=gaussian_model)
    for _ in range(2):
        kernel.setup(2)
        params = kernel.initial_params
        for _ in range(4):
            params = kernel.sample(params)
        assert len(kernel._shell.infos) == 2  # the draws after warm-up
    kernel.cleanup()
    kernel.cleanup()
    assert kernel.initial_params is None
    kernel.setup(0)
    assert kernel.initial_params.keys() == {"a", "b"}


@every_class
def test_sample_leaves_the_callers_tensors_alone_and_goes_on_from_them(name):
    kernel = KERNELS[name](model=gaussian_model)
    kernel.setup(0)
    given = {"a": torch.tensor(0.5), "b": torch.tensor([0.25, 0.75])}
    kept = {site: value.clone() for site, value in given.items()}
    drawn = kernel.sample(given)
    assert all(torch.equal(given[site], kept[site]) for site in kept)
    again = kernel.sample(drawn)
    assert drawn is not again
    assert all((drawn[site] - kept[site]).abs().max() < 10 for site in kept)


@every_class
def test_pickled_and_copied_kernels_draw_the_same(name):
    kernel = KERNELS[name](model=gaussian_model)
    drawn = []
    run_pyro(kernel)  # a kernel that has run before
    for twin in (kernel, copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        pyro.set_rng_seed(3)
        drawn.append(run_pyro(twin).get_samples()["b"])
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@every_class
def test_logging_is_json(name):
    kernel = KERNELS[name](model=gaussian_model)
    kernel.setup(1)
    kernel.sample(kernel.initial_params)
    json.dump(kernel.logging(), io.StringIO())
    pickle.dumps(kernel.diagnostics())


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_models_dtype(name, dtype):
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))

    mcmc = MCMC(KERNELS[name](model=model), 2, 2, num_chains=3, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].dtype == dtype
    assert mcmc.info["accept_prob"].dtype == dtype


@every_class
def test_no_latent_site_is_an_error(name):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="expected a model with a continuous latent site"):
        MCMC(KERNELS[name](model=model), 1, 0, disable_progbar=True).run()


@every_class
def test_a_seed_reproduces_a_run(name):
    drawn = []
    for _ in range(2):
        pyro.set_rng_seed(7)
        kernel = KERNELS[name](model=gaussian_model)
        mcmc = MCMC(kernel, 5, 25, num_chains=4, disable_progbar=True)
        mcmc.run()
        drawn.append(mcmc.get_samples()["b"])
    assert torch.equal(*drawn)
