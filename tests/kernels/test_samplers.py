"""What holds for every sampler of score-based sites, on laws that are known exactly."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import warnings
import weakref

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import scipy.stats
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyrogen.diagnostics import from_mcmc
from pyrogen.distributions import ScoreBased
from pyrogen.errors import GraphError, NonFiniteError
from pyrogen.graph import Captured
from pyrogen.kernels import DDIM, DDPM, MCMC, ProbabilityFlow, ReverseDiffusion
from pyrogen.kernels._phase import Direct
from pyrogen.kernels._progress import Progress
from pyrogen.kernels._score_site import Denoising
from pyrogen.models import ScoreModel
from pyrogen.processes import (
    CosineVariancePreserving,
    Exponential,
    Rectified,
    VarianceExploding,
    VariancePreserving,
    integrate,
    time_grid,
)
from tests.kernels.registry import SAMPLERS, sampler
from tests.kernels.scores import GaussianData, MixtureData, gaussian, mixture
from tests.statistics import TEST_FAILURE_RATE, assert_mean_close

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_kind = pytest.mark.parametrize("name", ["ancestral", "annealed langevin", "flow adaptive"])
FIXED = [name for name in SAMPLERS if name != "flow adaptive"]


def model():
    pyro.sample("x", gaussian(event_shape=2).to_event(0))


def quick(name, *args, **options):
    """A sampler of few steps, where it does not matter where they lead."""
    few = {"num_levels": 2, "steps_per_level": 2} if name == "annealed langevin" else {}
    few = {"num_steps": 4} if name == "ancestral" else few
    return sampler(name, *args, **few, **options)


def drawn(kernel, num_chains=5, num_samples=1, *args, **kwargs):
    mcmc = MCMC(kernel, num_samples, num_chains=num_chains, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    return mcmc.get_samples(group_by_chain=True)["x"]


def affine_law(name, fn):
    """Mean and variance of the draws of a sampler on Gaussian data of no dimensions, to all digits.

    A run is an affine function of its noise, of as many normal variables as are drawn: with all
    but one of them zero, rows of a batch show what each contributes.
    """
    double = ScoreBased(fn.process, fn.denoiser, (), fn.prediction, terminal=Unit())
    kernel = sampler(name, double)
    run = Direct(kernel.target((), {}, {}).potential())
    with Impulses(), torch.no_grad():
        walk, _ = kernel.walk(run, torch.zeros(1000, 0))
    scale = fn.process.std(1.0).double()
    rows = walk.x - walk.x[0]
    return walk.x[0], (rows[1] * scale).square() + rows[2:].square().sum()


class Unit(dist.TorchDistribution):
    """The start: 0, but 1 in the second row."""

    arg_constraints = {}
    support = dist.constraints.real

    def sample(self, shape=()):
        start = torch.zeros(shape, dtype=torch.float64)
        if len(shape) == 1:
            start[1] = 1
        return start


class Impulses(TorchDispatchMode):
    """Noise that is 1 in one row after another, and else 0."""

    def __init__(self):
        super().__init__()
        self.count = 2

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.randn_like.default:
            result.zero_()
            result[self.count] = 1
            self.count += 1
        return result


@pytest.mark.parametrize("name", FIXED)
def test_draws_of_gaussian_data_follow_the_exact_law_of_their_steps(name):
    """Whatever the steps leave of an error is known to all digits, and draws have just that law."""
    fn = gaussian()
    mean, variance = affine_law(name, fn)
    kernel = sampler(name, fn)
    with torch.no_grad():
        walk, _ = kernel.walk(Direct(kernel.target((), {}, {}).potential()), torch.zeros(10_000, 0))
    x = walk.x.double()
    standard = (x - mean) / variance.sqrt()
    p_value = scipy.stats.kstest(standard.numpy(), "norm").pvalue
    assert p_value > TEST_FAILURE_RATE
    assert abs(float(variance) / 0.25 - 1) < 0.5  # coarse steps, but of this law
    assert abs(float(mean) - 1.5) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding(0.01, 10.0)])
@every_sampler
def test_a_skewed_mixture_is_recovered(name, process):
    """Mean, covariance and weights, with so many steps that draws cannot tell."""
    data = MixtureData(process)
    x = drawn(sampler(name, mixture(process), longer=True, compile=True), 4000)[:, 0]
    assert_mean_close(x, data.mean())
    away = x - data.mean()
    assert_mean_close(away[:, :, None] * away[:, None, :], data.covariance())
    assert_mean_close(data.responsibility(x, torch.tensor(1e-5)), data.weights[0])


@pytest.mark.parametrize("name", ["multistep", "flow multistep"])
def test_a_skewed_mixture_is_recovered_quickly(name):
    data = MixtureData(VariancePreserving())
    x = drawn(sampler(name, mixture(), longer=True), 4000)[:, 0]
    assert_mean_close(x, data.mean())
    away = x - data.mean()
    assert_mean_close(away[:, :, None] * away[:, None, :], data.covariance())
    assert_mean_close(data.responsibility(x, torch.tensor(1e-5)), data.weights[0])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_reverse_and_forward_marginals_agree(eta):
    process = CosineVariancePreserving()
    fn, data, x = mixture(process), MixtureData(process), torch.randn(4000, 2)
    solver = Exponential(eta, "multistep")
    times = [1.0, 0.6, 0.35, 0.15, 1e-3]
    for start, end in itertools.pairwise(times):
        grid = time_grid(process, 60, "log-snr", start, end)
        x = integrate(process, solver, Denoising(fn, (2,)).predict, x, grid)
        forward = process.marginal(data.sample(4000), torch.tensor(end)).sample()
        for i in range(2):
            p_value = scipy.stats.ks_2samp(x[:, i].numpy(), forward[:, i].numpy()).pvalue
            assert p_value > TEST_FAILURE_RATE
        assert_mean_close(data.responsibility(x, torch.tensor(end)), data.weights[0].expand(()))


def test_ddpm_and_ddim_are_what_they_say():
    """DDIM with all of the noise is DDPM, and DDPM is ancestral reverse diffusion."""
    fn, found = gaussian(event_shape=2), []
    kernels = (
        DDPM(fn, 20, compile=False),
        DDIM(fn, 20, eta=1.0, compile=False),
        ReverseDiffusion(fn, 20, compile=False),
    )
    for kernel in kernels:
        pyro.set_rng_seed(3)
        found.append(drawn(kernel))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_adaptive_flow_of_no_velocity_at_all():
    """Standard normal data keep their law: the first step looks as if it could be of any length."""
    process = VariancePreserving()
    fn = ScoreBased(
        process,
        lambda x, t: -x,
        (),
        "score",
        sampler=ProbabilityFlow(method="adaptive", compile=False),
    )
    pyro.set_rng_seed(0)
    found = fn.sample((9,))
    pyro.set_rng_seed(0)
    torch.testing.assert_close(found, fn.terminal().sample((9,)), rtol=1e-3, atol=0.0)


def test_draws_of_the_flow_are_those_of_the_distribution():
    """Two solvers of one equation from the same noise."""
    pyro.set_rng_seed(1)
    exact = mixture(atol=1e-6, rtol=1e-6).sample((50,))
    for options in ({"method": "adaptive"}, {"num_steps": 200, "grid": "log-snr"}):
        pyro.set_rng_seed(1)
        found = mixture(sampler=ProbabilityFlow(compile=False, **options)).sample((50,))
        # second order: 200 steps over 23 nats of the log-SNR
        torch.testing.assert_close(found, exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", FIXED)
def test_one_draw_is_one_run_of_so_many_evaluations(name):
    calls = []

    def counted(x, t):
        calls.append(len(x))
        return torch.zeros_like(x)

    fn = ScoreBased(VariancePreserving(), counted, 2, "noise")
    kernel = sampler(name, fn)
    run = Direct(kernel.target((), {}, {}).potential())
    walk, _ = kernel.walk(run, torch.zeros(3, 2))
    assert len(walk.x) == 3
    assert len(calls) == kernel.evaluations


@every_kind
def test_under_pyro_and_copied_and_pickled(name):
    kernel, found = quick(name, model), []
    for twin in (kernel, copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        pyro.set_rng_seed(3)
        mcmc = pyro.infer.MCMC(twin, 4, 1, disable_progbar=True)
        mcmc.run()
        found.append(mcmc.get_samples()["x"])
        assert mcmc.diagnostics()["acceptance rate"]["chain 0"] == 1
    assert found[0].shape == (4, 2)
    assert not torch.equal(found[0][0], found[0][1])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_under_pyro_several_chains_and_a_report():
    kernel = quick("ancestral", model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_chains=")
        mcmc = pyro.infer.MCMC(kernel, 2, 0, num_chains=2, disable_progbar=True)
        mcmc.run()
    found = mcmc.get_samples(group_by_chain=True)["x"]
    assert len({tuple(chain.flatten().tolist()) for chain in found}) == 2
    kernel.setup(0)
    kernel.sample(kernel.initial_params)
    json.dump(kernel.logging(), io.StringIO())
    pickle.dumps(kernel.diagnostics())
    kernel.cleanup()


@every_kind
def test_a_seed_reproduces_a_run_in_batches_of_chains(name):
    found, kernel = [], quick(name, model)
    for _ in range(2):
        pyro.set_rng_seed(7)
        mcmc = MCMC(kernel, 2, num_chains=5, chain_batch_size=3, disable_progbar=True)
        mcmc.run()
        assert mcmc.warmup_steps == 0
        found.append(mcmc.get_samples(group_by_chain=True)["x"])
    assert found[0].shape == (5, 2, 2)
    assert torch.equal(*found)
    assert len(found[0].flatten(0, 1).unique(dim=0)) == 10
    assert mcmc.info["num_steps"].shape == (5, 2)


@pytest.mark.slow
@every_sampler
def test_compiled_and_uncompiled_draws_are_the_same(name):
    found = []
    for compiled in (False, True):
        pyro.set_rng_seed(5)
        found.append(drawn(sampler(name, mixture(), compile=compiled), 7, 2))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_compiled_and_uncompiled_draws_are_the_same_quickly():
    found = []
    for compiled in (False, True):
        pyro.set_rng_seed(5)
        found.append(drawn(sampler("multistep", gaussian(), compile=compiled), 7, 2))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_dtype_of_the_network(name, dtype):
    network = torch.nn.Linear(3, 2).to(dtype)

    def noise(x, t):
        return network(torch.cat([x, t.unsqueeze(-1)], -1))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, t):
            return noise(x, t)

    fn = ScoreBased(VariancePreserving(), Net(), 2)
    mcmc = MCMC(quick(name, fn), 1, num_chains=2, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].dtype == dtype
    assert mcmc.info["accept_prob"].dtype == dtype


@every_kind
def test_as_the_sampler_of_a_distribution(name):
    """Every context has draws of its own; without one, any shape will do."""
    kernel = sampler(name)
    process = VariancePreserving()
    context = torch.tensor([[-3.0], [0.0], [3.0]])
    fn = ScoreBased(process, GaussianData(process), 1, "data", context=context, sampler=kernel)
    x = fn.sample((200,))
    assert x.shape == (200, 3, 1)
    # coarse steps: means are exact within a tenth, which the draws cannot tell
    assert bool(((x.mean(0) - context).abs() < 0.1 + 5 * 0.5 / 200**0.5).all())
    plain = gaussian(event_shape=(2, 1), sampler=kernel)
    assert plain.sample().shape == (2, 1)
    assert plain.expand((4,)).sample((5,)).shape == (5, 4, 2, 1)


def test_the_progress_bar_moves_within_a_draw(monkeypatch, capsys):
    chains, shares = quick("ancestral", model).start(2, 0), []
    chains.run.on_move = shares.append
    chains.advance()
    assert shares == [1 / 3, 2 / 3, 1]
    monkeypatch.setattr("pyrogen.kernels._progress._SECONDS", 0.0)
    progress = Progress(2, disable=False)
    for share in shares:
        progress.within(share)
        assert progress._bar.n == round(share, 2)
    progress.close()


def test_contexts_of_equal_shape_share_a_graph():
    process = VariancePreserving()
    kernel = DDIM(num_steps=5, compile=False)
    data = GaussianData(process)
    for value in (1.0, 2.0, 3.0):
        fn = ScoreBased(process, data, 1, "data", context=torch.full((1,), value), sampler=kernel)
        assert abs(float(fn.sample((400,)).mean()) - value) < 0.2
    captures = {call.captures for call in kernel._shell.runner._captured.values()}
    assert captures == {1}


@every_kind
def test_models_with_plates_and_contexts(name):
    process = VariancePreserving()
    program = ScoreModel(process, GaussianData(process), 1, "data", min_time=1e-3)
    context = torch.tensor([[-3.0], [3.0]])
    x = drawn(sampler(name, program), 100, 1, None, context)
    assert x.shape == (100, 1, 2, 1)
    assert bool(((x.mean((0, 1)) - context).abs() < 0.1 + 5 * 0.5 / 100**0.5).all())


def test_classifier_free_guidance_is_the_distributions():
    process = VariancePreserving()

    def network(x, t, context):
        known = GaussianData(process, variance=0.3)(x, t, context)
        free = GaussianData(process, mean=0.0, variance=1.0)(x, t)
        return torch.where(context == 0, free, known)

    def combined(x, t):
        context = torch.ones(len(x), 1)
        known, free = network(x, t, context), network(x, t, torch.zeros_like(context))
        return free + 2.5 * (known - free)

    guided = ScoreBased(process, network, 1, "data", torch.ones(1), guidance_scale=2.5)
    plain = ScoreBased(process, combined, 1, "data")
    found = []
    for fn in (guided, plain):
        pyro.set_rng_seed(2)
        found.append(drawn(DDPM(fn, 20, compile=False)))
    torch.testing.assert_close(*found)


def test_a_program_that_draws_can_be_captured():
    fn = gaussian(event_shape=2, sampler=DDIM(num_steps=4))
    captured = Captured(lambda: fn.sample((3,)), compile=False)
    pyro.set_rng_seed(0)
    expected = gaussian(event_shape=2, sampler=DDIM(num_steps=4, compile=False)).sample((3,))
    pyro.set_rng_seed(0)
    torch.testing.assert_close(captured(), expected)
    adaptive = gaussian(event_shape=2, sampler=ProbabilityFlow(method="adaptive"))
    with pytest.raises(GraphError, match="depend on values, which cannot be captured"):
        Captured(lambda: adaptive.sample((3,)), compile=False)()


def test_the_result_goes_to_arviz():
    mcmc = MCMC(DDIM(model, 4, compile=False), 2, num_chains=3, disable_progbar=True)
    mcmc.run()
    result = from_mcmc(mcmc)
    assert result.posterior["x"].shape == (3, 2, 2)
    assert result.sample_stats["n_steps"].to_numpy().tolist() == [[4, 4]] * 3


class Alive(TorchDispatchMode):
    """The most bytes that were alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result._base is None:
            size = result.nbytes
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(result, self._freed, size)
        return result

    def _freed(self, size):
        self.now -= size


def test_memory_is_constant_in_the_number_of_steps():
    most = []
    for num_steps in (10, 60):
        kernel = ReverseDiffusion(gaussian(event_shape=50), num_steps, "multistep", compile=False)
        chains = kernel.start(100, 0)
        chains.advance()  # captures
        with Alive() as alive:
            chains.advance()
        most.append(alive.most)
    one_state = 4 * 100 * 50
    assert most[0] > one_state
    assert most[1] - most[0] < one_state / 2  # the grid of times is longer


def test_a_network_that_fails_is_named_with_site_and_step():
    process = VariancePreserving()

    def noise(x, t):
        return torch.where(t.unsqueeze(-1) < 0.55, torch.nan, x)

    def program():
        pyro.sample("image", ScoreBased(process, noise, 2))

    with pytest.raises(NonFiniteError, match=r"state of site 'image' is not finite after step 5"):
        MCMC(DDPM(program, 10, compile=False), 1, num_chains=2, disable_progbar=True).run()
    with pytest.raises(NonFiniteError, match=r"at time 0\.333") as caught:
        ScoreBased(process, noise, 2, sampler=DDPM(num_steps=10, compile=False)).sample()
    assert caught.value.step == 5
    late = ScoreBased(process, lambda x, t: torch.where(t.unsqueeze(-1) < 1e-3, torch.nan, x), 2)
    with pytest.raises(NonFiniteError, match="denoised at the end"):
        drawn(DDPM(late, 10, compile=False))
    with pytest.raises(NonFiniteError, match="velocity of site 'x' is not finite at time"):
        drawn(ProbabilityFlow(ScoreBased(process, noise, 2), method="adaptive", compile=False))


def test_other_models_are_refused():
    fn = gaussian(event_shape=2)

    def two():
        pyro.sample("x", fn)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def none():
        pyro.sample("x", fn, obs=torch.zeros(2))

    def measured():
        x = pyro.sample("x", fn)
        pyro.deterministic("twice", 2 * x)
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))

    def transformed():
        pyro.sample("x", dist.TransformedDistribution(fn, [dist.transforms.ExpTransform()]))

    for program, words in (
        (transformed, r"one latent site, a ScoreBased one, got .*'x': 'TransformedDistribution'"),
        (two, r"one latent site, a ScoreBased one, got the latent sites {'x': 'ScoreBased', 'z'"),
        (none, "one latent site, a ScoreBased one, got no latent site"),
        (measured, r"expected a model that observes nothing, got the observed sites \['y'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            drawn(DDPM(program, 5, compile=False))
    with pytest.raises(ValueError, match="expected something to sample"):
        MCMC(DDPM(), 1)


def test_bad_options_and_processes():
    with pytest.raises(ValueError, match="method: expected one of"):
        ReverseDiffusion(method="rk4")
    with pytest.raises(ValueError, match="grid: expected one of"):
        DDIM(grid="cosine")
    with pytest.raises(ValueError, match="num_steps: expected a whole number of at least 2, got 1"):
        DDPM(num_steps=1)
    with pytest.raises(ValueError, match="snr: expected a finite number above 0"):
        ReverseDiffusion(snr=0.0)
    with pytest.raises(ValueError, match="eta: expected a number from 0 to 1"):
        DDIM(eta=2.0)
    for method in ("euler-maruyama", "exponential"):
        straight = gaussian(Rectified(), event_shape=2)
        with pytest.raises(ValueError, match=r"ReverseDiffusion: expected .*max_time=0\.999"):
            drawn(ReverseDiffusion(straight, method=method, compile=False))
    for prediction in ("noise", "score"):
        blind = ScoreBased(Rectified(), lambda x, t: x, 2, prediction)
        with pytest.raises(ValueError, match=rf"predicted {prediction}, got none of Rectified"):
            drawn(ProbabilityFlow(blind, 5, compile=False))
    silent = gaussian(event_shape=2, min_time=0.0)
    with pytest.raises(ValueError, match="expected some noise at min_time = 0, got none"):
        drawn(DDPM(silent, 5, compile=False))
    wrong = ScoreBased(VariancePreserving(), lambda x, t: x[:, :1], 2)
    with pytest.raises(ValueError, match="denoiser: expected the shape of its first argument"):
        drawn(DDPM(wrong, 5, compile=False))
    mcmc = MCMC(DDPM(model, 5, compile=False), 1, num_chains=2, disable_progbar=True)
    mcmc.initial_params = {"x": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="initial_params: expected None, as every draw of DDPM"):
        mcmc.run()


@pytest.mark.parametrize(
    "name", ["ancestral", "multistep", "stochastic heun", "flow euler", "flow multistep", "ddim"]
)
def test_the_straight_line_from_its_very_end(name):
    kernel = sampler(name, gaussian(Rectified()))
    with torch.no_grad():
        walk, _ = kernel.walk(Direct(kernel.target((), {}, {}).potential()), torch.zeros(2000, 0))
    x = walk.x
    assert abs(float(x.mean()) - 1.5) < 0.1
    assert 0.3 < float(x.std()) < 0.7
