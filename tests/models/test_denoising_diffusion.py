"""Denoising diffusion on Gaussian data, where all laws are known, and on a grid."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrogen.checks import check_pair
from pyrogen.guides import ForwardNoising
from pyrogen.models import DenoisingDiffusion
from pyrogen.nn import ModulatedMLP
from pyrogen.processes import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    LearnedVariancePreserving,
    Rectified,
    VarianceExploding,
    VariancePreserving,
)
from tests.statistics import assert_follows, assert_mean_close

PROCESSES = {
    "vp": VariancePreserving(),
    "cosine": CosineVariancePreserving(-7.0, 7.0),
    "ve": VarianceExploding(0.05, 20.0),
}


class Best(nn.Module):
    """The best guess of the noise in data ``N(0, s^2 I)``."""

    def __init__(self, process, s=1.0, dim=2):
        super().__init__()
        self.process, self.s, self.in_shape = process, s, (dim,)

    def forward(self, x, t):
        alpha, variance = self.process.mean_scale(t), self.process.variance(t)
        return (variance.sqrt() / (alpha.square() * self.s**2 + variance)).unsqueeze(-1) * x


def random_pair(steps=5, dim=2, process=PROCESSES["vp"], **options):
    outputs = (2, dim) if options.get("variance") == "network" else dim
    network = ModulatedMLP(dim, outputs, width=16, num_blocks=1)
    nn.init.normal_(network.last.weight, std=0.2)
    model = DenoisingDiffusion(network, dim, steps, process, **options).double()
    if "mix" in dict(model.named_parameters()):
        nn.init.uniform_(model.mix)
    return model, ForwardNoising(model)


def bounds(model, guide, data, closed_form):
    """One estimate of the bound for each datum, ``[n]``."""
    guide_trace, model_trace = poutine.trace(guide).get_trace(data), None
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(data)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    total = torch.zeros(len(data), dtype=torch.float64)
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or poutine.util.site_is_subsample(site):
            continue
        value = site["log_prob"]
        if name in guide_trace.nodes:
            other = guide_trace.nodes[name]
            if closed_form:
                divergence = torch.distributions.kl_divergence(other["fn"], site["fn"])
                mask = torch.as_tensor(True if site["mask"] is None else site["mask"])
                value = -site["scale"] * torch.where(mask, divergence, 0.0)
            else:
                value = value - other["log_prob"]
        total = total + value.reshape(-1, len(data)).sum(0)
    return total


def test_estimates_for_each_datum_add_up_to_the_elbo():
    model, guide = random_pair()
    x = torch.randn(6, 2, dtype=torch.float64)
    for size in (None, 1, 2, 5):
        model.subsample_size = size
        for elbo, closed_form in ((Trace_ELBO(), False), (TraceMeanField_ELBO(), True)):
            pyro.set_rng_seed(3)
            loss = elbo.loss(model, guide, x)
            pyro.set_rng_seed(3)
            expected = -bounds(model, guide, x, closed_form).sum().item()
            assert loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_the_posteriors_are_those_of_bayes(process):
    """Of the chain of all steps, in both directions: q(x_k|x_0) q(x_{k-1}|x_k, x_0) is
    q(x_{k-1}|x_0) q(x_k|x_{k-1})."""
    model = DenoisingDiffusion(Best(process), num_timesteps=7, process=process)
    x0, later, before = torch.randn(3, 6, 2, dtype=torch.float64)
    k = torch.arange(2, 8)
    backward = model.noised(x0, k).log_prob(later)
    backward = backward + model.posterior(later, x0, k).log_prob(before)
    t = k.double() / 7
    step = process.transition(before, t - 1 / 7, t).log_prob(later).sum(-1)
    forward = model.noised(x0, k - 1).log_prob(before) + step
    torch.testing.assert_close(backward, forward, rtol=1e-8, atol=1e-8)


def test_standard_normal_data_are_explained_exactly():
    """With large variances the best model is the noising read backwards: every draw of the guide
    gives the log-likelihood itself, but for the variance of the last state."""
    process = DiscreteVariancePreserving.cosine(12, largest=0.9).double()
    model = DenoisingDiffusion(Best(process), 2, 12, process, variance="large", subsample_size=None)
    guide, x = ForwardNoising(model), torch.randn(50, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    trace = poutine.trace(guide).get_trace(x)
    last = trace.nodes["x_12"]["value"]
    unit = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
    mismatch = model.terminal().log_prob(last) - unit.log_prob(last)
    torch.set_rng_state(state)
    found = bounds(model, guide, x, closed_form=False)
    torch.testing.assert_close(found, unit.log_prob(x) + mismatch, rtol=0, atol=1e-9)


def gaps(process, steps, s, variance):
    """What the bound loses in each step, of data ``N(0, s^2)`` and one dimension, with the best
    guess: the divergence of the true variance from the model's, ``[steps]``, then of the end."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha, noise = process.mean_scale(t), process.variance(t)
    alpha[0], noise[0] = 1, 0  # the datum itself
    total = alpha.square() * s**2 + noise
    ratio = alpha[1:] / alpha[:-1]
    large = noise[1:] - ratio.square() * noise[:-1]
    small = large * noise[:-1] / noise[1:]
    small[0] = large[0] * small[1] / large[1]
    true = large * total[:-1] / total[1:]
    model = {"small": small, "large": large}[variance]
    step = (true / model - 1 - (true / model).log()) / 2
    end = (total[-1] / noise[-1] - 1 - (total[-1] / noise[-1]).log()) / 2
    return step, end


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("closed_form", [True, False])
def test_the_bound_on_gaussian_data_loses_what_the_variances_cost(process, variance, closed_form):
    s, steps = 0.6, 16
    model = DenoisingDiffusion(
        Best(process, s), None, steps, process, variance=variance, subsample_size=4
    )
    x = s * torch.randn(4000, 2, dtype=torch.float64)
    exact = dist.Normal(torch.zeros(2).double(), s).to_event(1).log_prob(x)
    step, end = gaps(process, steps, s, variance)
    loss = exact - bounds(model, ForwardNoising(model), x, closed_form)
    assert_mean_close(loss, 2 * (step.sum() + end))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_bound_is_tight_in_the_number_of_steps(variance):
    """What is lost falls like 1/T (with the cosine process, whose end is the same for every T)."""
    counts = torch.tensor([1600, 3200, 6400])
    losses = torch.stack(
        [gaps(PROCESSES["cosine"], int(n), 0.6, variance)[0][1:].sum() for n in counts]
    )
    orders = -losses.log2().diff()
    assert ((orders > 0.97) & (orders < 1.03)).all()
    model = DenoisingDiffusion(
        Best(PROCESSES["cosine"], 0.6), None, 800, PROCESSES["cosine"], variance=variance
    )
    x = 0.6 * torch.randn(4000, 2, dtype=torch.float64)
    exact = dist.Normal(torch.zeros(2).double(), 0.6).to_event(1).log_prob(x)
    step, end = gaps(PROCESSES["cosine"], 800, 0.6, variance)
    found = exact - bounds(model, ForwardNoising(model), x, closed_form=True)
    assert_mean_close(found, 2 * (step.sum() + end))


def test_learned_variances_explain_gaussian_data_exactly():
    """At the known variances nothing is lost, draw by draw; nor is there a gradient in them."""
    process, s, steps = PROCESSES["cosine"], 0.6, 10
    model = DenoisingDiffusion(
        Best(process, s), None, steps, process, variance="learned", subsample_size=None
    ).double()
    (small, _), (large, _) = (gaps(process, steps, s, kind) for kind in ("small", "large"))
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha, noise = process.mean_scale(t), process.variance(t)
    alpha[0], noise[0] = 1, 0
    total = alpha.square() * s**2 + noise
    log_true = (total[:-1] / total[1:]).log()  # relative to the large variance
    log_small = (noise[:-1] / noise[1:]).log()
    log_small[0] = log_small[1]
    assert (small > 0).all()
    assert (large > 0).all()
    model.mix.data = 1 - log_true / log_small
    x = s * torch.randn(2000, 2, dtype=torch.float64)
    exact = dist.Normal(torch.zeros(2).double(), s).to_event(1).log_prob(x)
    guide = ForwardNoising(model)
    trace = poutine.trace(guide).get_trace(x)
    last, ends = trace.nodes["x_10"]["value"], total[-1].sqrt()
    mismatch = model.terminal().log_prob(last) - dist.Normal(
        torch.zeros(2).double(), ends
    ).to_event(1).log_prob(last)
    replayed = poutine.trace(poutine.replay(model, trace)).get_trace(x)
    found = replayed.log_prob_sum() - trace.log_prob_sum()
    # q(x_T | x_0) is not q(x_T): the rest of the sum is the density of the data given the end.
    torch.testing.assert_close(found, (exact + mismatch).sum(), rtol=1e-9, atol=1e-7)
    model.subsample_size = steps
    losses = [TraceMeanField_ELBO().differentiable_loss(model, guide, row) for row in x.split(100)]
    slopes = torch.stack([torch.autograd.grad(loss, model.mix)[0] for loss in losses])
    assert_mean_close(slopes, torch.zeros(steps))


@pytest.mark.parametrize("variance", ["small", "learned", "network"])
def test_chain_and_plate_estimate_the_same_bound(variance):
    model, guide = random_pair(variance=variance)
    x = torch.randn(1, 2, dtype=torch.float64).expand(8000, 2)
    estimates = {}
    for size in (None, 1, 2, 5):
        for closed_form in (True, False):
            model.subsample_size = size
            with torch.no_grad():
                estimates[size, closed_form] = bounds(model, guide, x, closed_form)
    reference = estimates.pop((5, True))
    for other in estimates.values():
        assert_mean_close(other - reference, 0.0)
    # more steps and closed forms vary less
    spread = {key: float(value.std()) for key, value in estimates.items()}
    assert spread[2, True] < spread[1, True] < spread[1, False]


def test_importance_weights_of_the_chain_integrate_to_the_likelihood():
    """An honest pair: the mean of p / q over the guide is p(x_0), found here on a grid."""
    model, guide = random_pair(steps=3, dim=1, process=PROCESSES["cosine"], variance="large")
    model.subsample_size = None
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(-1)
    width = grid[1] - grid[0]
    with torch.no_grad():
        density = model.terminal().log_prob(grid).exp()
        for k in (3, 2):
            law = model.reverse(grid, torch.tensor(k))[0].base_dist
            parts = dist.Normal(law.loc[:, 0], law.scale[:, 0]).log_prob(grid).exp()  # [to, from]
            density = parts @ density * width
        datum = torch.tensor([[0.4]], dtype=torch.float64)
        last = model.reverse(grid, torch.tensor(1))[1]
        exact = (last.log_prob(datum) + density.log() + width.log()).logsumexp(0)
        log_weights = bounds(model, guide, datum.expand(20_000, 1), closed_form=False)
    assert_mean_close((log_weights - exact).exp(), 1.0)
    assert log_weights.mean() < exact  # the bound


def test_the_chain_draws_from_its_own_law():
    """On Gaussian data the chain is linear: its variance follows from step to step."""
    process, s, steps = PROCESSES["vp"], 0.7, 8
    model = DenoisingDiffusion(Best(process, s, 1), None, steps, process).double()
    one = torch.ones(1, dtype=torch.float64)
    variance = model.terminal().variance[0]
    for k in range(steps, 0, -1):
        law = model.reverse(one, torch.tensor(k))[int(k == 1)].base_dist
        variance = law.mean[0].square() * variance + law.variance[0]
    model.double()
    with torch.no_grad():
        draws = model(None, num_samples=4000)
    assert draws.shape == (4000, 1)
    law = dist.Normal(torch.zeros(()), variance.sqrt()).expand([1]).to_event(1)
    assert_follows(draws.double(), law.log_prob(draws.double()))


def test_draws_are_sites_and_carry_no_gradient():
    model, guide = random_pair()
    trace = poutine.trace(model).get_trace(None, num_samples=3)
    assert trace.stochastic_nodes == ["data", "x_5", "x_4", "x_3", "x_2", "x_1", "x"]
    assert not trace.nodes["x"]["value"].requires_grad
    assert trace.log_prob_sum().requires_grad  # but the density of the draws does
    fixed = {"x_2": torch.ones(3, 2, dtype=torch.float64)}
    again = poutine.trace(poutine.condition(model, fixed)).get_trace(None, num_samples=3)
    mean = model.reverse(fixed["x_2"], torch.tensor(2))[0].mean
    torch.testing.assert_close(again.nodes["x_1"]["fn"].mean, mean)
    for size in (None, 2):
        model.subsample_size = size
        check_pair(model, guide, (torch.randn(4, 2).double(),))


def test_each_step_is_seen_equally_often_by_each_datum():
    model, _ = random_pair(steps=5)
    steps = torch.stack([model.spread(torch.tensor([i]), 7) for i in range(5)])
    assert torch.equal(steps.sort(0).values, torch.arange(1, 6).view(5, 1, 1).expand(5, 1, 7))
    counts = model.spread(torch.tensor([0]), 10).flatten().bincount()[1:]
    assert (counts == 2).all()


def test_the_same_network_is_a_score_based_site():
    process = DiscreteVariancePreserving.linear(100).double()
    model = DenoisingDiffusion(Best(process, 0.6), num_timesteps=100, process=process)
    fn = model.distribution()
    x = torch.randn(5, 2, dtype=torch.float64)
    guess = model.guess(x, torch.tensor(30))
    torch.testing.assert_close(fn.denoise(x, 0.3), guess)
    assert fn.min_time == 0.01
    # From step 1 to step T of the flow: the density of data under the noise of step 1.
    first = float(process.variance(0.01) + 0.36 * process.mean_scale(0.01) ** 2) ** 0.5
    expected = dist.Normal(torch.zeros(2).double(), first).to_event(1).log_prob(x)
    torch.testing.assert_close(fn.log_prob(x), expected, rtol=0, atol=1e-3)


def test_the_network_is_called_with_flat_batches_and_contexts():
    seen = []

    def network(x, t, context):
        seen.append((x.shape, t.shape, context.shape))
        return 0 * x + context.sum(-1, keepdim=True)

    model = DenoisingDiffusion(network, 2, 6, PROCESSES["vp"], "data", subsample_size=3)
    context = torch.randn(4, 5)
    TraceMeanField_ELBO().loss(model, ForwardNoising(model), torch.randn(4, 2), context)
    assert seen[-1] == ((12, 2), (12,), (12, 5))
    assert model(None, context).shape == (4, 2)
    assert model(None, context[0], num_samples=3).shape == (3, 2)
    # the last step draws around the guess
    trace = poutine.trace(model).get_trace(None, context)
    expected = context.sum(-1, keepdim=True).expand(4, 2)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean, expected)


def test_clipped_guesses():
    model = DenoisingDiffusion(lambda x, t: 5 + 0 * x, 1, 6, PROCESSES["vp"], "data", clip=2.0)
    assert torch.equal(model.guess(torch.zeros(3, 1), torch.tensor(4)), torch.full((3, 1), 2.0))


def test_levels():
    """Probabilities of the last step sum to one, and the bound is below that of all levels."""
    network = ModulatedMLP((3,), width=8)
    model = DenoisingDiffusion(network, 3, 5, PROCESSES["vp"], levels=4, subsample_size=None)
    guide, x = ForwardNoising(model), torch.randint(4, (7, 3))
    assert torch.equal(model(x), x)
    draws = model(None, num_samples=50)
    assert draws.dtype == torch.int64
    assert ((draws >= 0) & (draws < 4)).all()
    law = model.reverse(torch.randn(1, 3), torch.tensor(1))[1]
    table = torch.cartesian_prod(*[torch.arange(4)] * 3)
    torch.testing.assert_close(law.log_prob(table).exp().sum(), torch.tensor(1.0))
    noised = poutine.trace(guide).get_trace(x).nodes["x_5"]["fn"].mean
    alpha = PROCESSES["vp"].mean_scale(torch.tensor(1.0))
    torch.testing.assert_close(noised, alpha * (2 * x / 3 - 1))
    with pytest.raises(ValueError, match=r"expected levels 0\.\.3"):
        model(x + 2)


def test_copies_states_and_parameters():
    model, guide = random_pair(variance="learned")
    assert list(guide.parameters()) == []
    names = [name for name, _ in model.named_parameters()]
    assert "mix" in names
    assert len(names) == len(set(names))
    x = torch.randn(6, 2, dtype=torch.float64)
    for twin, other in (copy.deepcopy((model, guide)), pickle.loads(pickle.dumps((model, guide)))):
        losses = []
        for pair in ((model, guide), (twin, other)):
            pyro.set_rng_seed(1)
            pyro.clear_param_store()
            losses.append(TraceMeanField_ELBO().loss(*pair, x))
        assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DenoisingDiffusion(3.0), TypeError, "denoiser: expected a module or a function"),
        (lambda: DenoisingDiffusion(nn.Identity()), ValueError, "event_shape: expected the shape"),
        (lambda: DenoisingDiffusion(nn.Identity(), 0), ValueError, "event_shape: expected pos"),
        (lambda: DenoisingDiffusion(nn.Identity(), 2, 1), ValueError, "num_timesteps: expected"),
        (lambda: DenoisingDiffusion(nn.Identity(), 2, 9), ValueError, "between 0 and 1, got 0.01"),
        (lambda: DenoisingDiffusion(nn.Identity(), 2, process=1), TypeError, "LinearProcess"),
        (
            lambda: DenoisingDiffusion(nn.Identity(), 2, variance="huge"),
            ValueError,
            "variance: expected one of small, large, learned, network, got 'huge'",
        ),
        (lambda: DenoisingDiffusion(nn.Identity(), 2, prediction="x"), ValueError, "prediction"),
        (lambda: DenoisingDiffusion(nn.Identity(), 2, clip=0.0), ValueError, "clip: expected a"),
        (lambda: DenoisingDiffusion(nn.Identity(), 2, levels=1), ValueError, "levels: expected"),
        (lambda: ForwardNoising(nn.Identity()), TypeError, "expected a diffusion model in discret"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_wrong_calls_are_refused():
    model = DenoisingDiffusion(lambda x, t: x[:, :1], 2)
    guide, x = ForwardNoising(model), torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"denoiser: expected shape \['n', 2\], got \['n', 1\]"):
        Trace_ELBO().loss(model, guide, x)
    with pytest.raises(ValueError, match=r"data: expected shape \[\*, 2\]"):
        guide(torch.randn(3, 5))
    with pytest.raises(ValueError, match="guide: expected data to be noised"):
        guide(None)
    with pytest.raises(ValueError, match="num_samples: expected None with data"):
        model(x, num_samples=3)
    model.subsample_size = 0
    with pytest.raises(ValueError, match="subsample_size: expected None or an integer from 1"):
        model(x)


def test_gradients_reach_every_parameter():
    for variance in ("learned", "network"):
        model, guide = random_pair(variance=variance)
        model.subsample_size = 5
        for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
            model.zero_grad()
            elbo.loss_and_grads(model, guide, torch.randn(10, 2).double())
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.any(), name
                assert math.isfinite(float(parameter.grad.sum())), name


def test_a_learned_process_is_trained_with_the_network():
    """Its laws are made anew at every call, and model and guide share its gradient."""
    process = LearnedVariancePreserving().double()
    network = ModulatedMLP(2, width=8, num_blocks=1).double()
    model = DenoisingDiffusion(network, 2, 6, process, subsample_size=6)
    guide, x = ForwardNoising(model), torch.randn(5, 2, dtype=torch.float64)

    def loss():
        pyro.set_rng_seed(2)
        return TraceMeanField_ELBO().differentiable_loss(model, guide, x)

    (slope,) = torch.autograd.grad(loss(), process.first)
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            process.first += shift
        values.append(loss().item())
        with torch.no_grad():
            process.first -= shift
    # Central differences: off by 1e-10 of the third derivative, and by rounding / 1e-5.
    assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_a_process_that_is_loaded_is_used():
    """Frozen too."""

    def made(more):
        process = LearnedVariancePreserving()
        for parameter in process.parameters():
            parameter.requires_grad_(False).add_(more)
        return DenoisingDiffusion(ModulatedMLP(2, width=8), num_timesteps=5, process=process)

    one, other, x = made(0.0), made(0.3), torch.ones(1, 2)
    other.load_state_dict(one.state_dict())
    expected = one.noised(x, torch.tensor(3)).mean
    torch.testing.assert_close(other.noised(x, torch.tensor(3)).mean, expected, rtol=0, atol=0)


def test_predictions_that_tell_nothing_of_the_data_are_refused():
    for prediction in ("noise", "score"):
        with pytest.raises(
            ValueError, match="prediction: expected 'data', 'velocity' or 'v' for R"
        ):
            DenoisingDiffusion(lambda x, t: x, 2, 4, Rectified(), prediction)
    straight = DenoisingDiffusion(lambda x, t: x, 2, 4, Rectified(), "velocity")
    assert straight(None, num_samples=3).isfinite().all()
