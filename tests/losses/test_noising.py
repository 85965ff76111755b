"""Objectives of score-based sites against Gaussian data, whose best denoiser is known."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrogen.distributions import ScoreBased
from pyrogen.errors import NonFiniteError
from pyrogen.guides import Empty
from pyrogen.losses import (
    Compiled,
    DenoisingScoreMatching,
    DiffusionELBO,
    FlowMatching,
    SimpleDiffusion,
)
from pyrogen.losses.flow_matching import _assignment
from pyrogen.processes import (
    CosineVariancePreserving,
    LearnedVariancePreserving,
    Rectified,
    VarianceExploding,
    VariancePreserving,
    convert,
)

STD, SIZE = 0.7, 3
PROCESSES = [
    VariancePreserving(),
    CosineVariancePreserving(),
    VarianceExploding(0.05, 20.0),
    LearnedVariancePreserving(num_bins=5),
]


def gaussian(process, prediction="noise", scale=1.0, **options):
    """Data N(0, STD^2) and the mean of their noise, or what is near it."""

    def denoiser(x, t):
        t = t.unsqueeze(-1)
        total = process.mean_scale(t).square() * STD**2 + process.variance(t)
        return convert(process, scale * process.std(t) * x / total, x, t[:, 0], "noise", prediction)

    fn = ScoreBased(process, denoiser, SIZE, prediction, **options)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", fn, obs=x)

    return model, fn


def estimates(objective, fn, data):
    """The loss of each datum."""
    return -objective.score("x", fn, data).detach()


def quadrature(process, weight, t):
    """Half the mean error of the noise, times a weight."""
    alpha2, variance = process.mean_scale(t).square(), process.variance(t)
    error = SIZE * alpha2 * STD**2 / (alpha2 * STD**2 + variance)
    return 0.5 * weight(t) * error


def means(objective, fn, draw, batches=40):
    """The mean losses of batches, whose times are spread evenly."""
    return torch.stack([estimates(objective, fn, draw()).mean() for _ in range(batches)])


def near(values, expected):
    """Within five standard errors, which are small."""
    error = values.std() / math.sqrt(values.numel())
    assert abs(float(values.mean()) - float(expected)) < 5 * float(error)
    assert float(error) < 0.02 * abs(float(expected))


def normal(count=2_000):
    return STD * torch.randn(count, SIZE, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("weighting", "weight"),
    [
        ("sigma2", lambda p, t: torch.ones_like(t)),
        ("likelihood", lambda p, t: p.diffusion(t).square() / p.variance(t)),
        ("min-snr", lambda p, t: p.log_snr(t).exp().clamp(max=5) * (-p.log_snr(t)).exp()),
    ],
)
def test_the_best_denoiser_has_the_known_loss(process, weighting, weight):
    """In double precision, with the integral over time by quadrature."""
    _, fn = gaussian(process, min_time=1e-2)
    t = 1e-2 + (1 - 1e-2) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    expected = quadrature(process, lambda t: weight(process, t), t).mean().detach()
    for times in ("uniform", "log-snr"):
        near(means(DenoisingScoreMatching(weighting, times=times), fn, normal), expected)


@pytest.mark.parametrize("prediction", ["data", "score", "velocity", "v"])
@pytest.mark.parametrize("weighting", ["sigma2", "likelihood", "min-snr", "edm", "velocity"])
def test_the_loss_does_not_depend_on_what_is_predicted(prediction, weighting):
    data = STD * torch.randn(50, SIZE, dtype=torch.float64)
    losses = []
    for each in ("noise", prediction):
        _, fn = gaussian(VariancePreserving(), each, scale=0.9, min_time=1e-2)
        torch.manual_seed(0)
        losses.append(estimates(DenoisingScoreMatching(weighting), fn, data))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)


def test_edm_times_are_log_normal():
    process = VarianceExploding(1e-4, 1e3)
    _, fn = gaussian(process, min_time=0.0)
    objective = DenoisingScoreMatching("edm", low_discrepancy=False)
    data = torch.zeros(20_000, SIZE, dtype=torch.float64)
    t, _ = objective._draw_times("x", fn, objective.uniform(fn, data))
    near(-process.std(t).log(), 1.2)
    near((process.std(t).log() + 1.2).square(), 1.2**2)


def test_levels_of_a_variance_exploding_process_are_geometric():
    _, fn = gaussian(VarianceExploding(0.01, 1.0), min_time=0.0)
    objective = SimpleDiffusion(num_levels=3)
    t, _ = objective._draw_times("x", fn, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(fn.process.std(t), torch.tensor([0.01, 0.1, 1.0]))


def test_simple_diffusion_is_twice_the_noise_error():
    _, fn = gaussian(VariancePreserving())
    data = torch.randn(50, SIZE)
    torch.manual_seed(0)
    simple = estimates(SimpleDiffusion(), fn, data)
    torch.manual_seed(0)
    torch.testing.assert_close(simple, 2 * estimates(DenoisingScoreMatching(), fn, data))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_the_bound_is_the_density_for_the_best_denoiser_and_below_it_for_another(process, scale):
    """The process forgets data, and the exact law stands at its end."""
    min_time, end = 1e-3, torch.tensor(1.0, dtype=torch.float64)
    total = process.mean_scale(end).square() * STD**2 + process.variance(end)
    terminal = dist.Normal(torch.zeros(SIZE).double(), total.detach().sqrt()).to_event(1)
    _, fn = gaussian(process, scale=scale, min_time=min_time, terminal=terminal)
    point = torch.full((2_000, SIZE), 0.5, dtype=torch.float64)
    bounds = -means(DiffusionELBO(), fn, lambda: point)
    # The model blurs what the least noise hides once more.
    hidden = process.log_snr(torch.tensor(min_time, dtype=torch.float64)).neg().exp()
    blurred = dist.Normal(0.0, (STD**2 + 2 * hidden.detach()).sqrt())
    exact = blurred.log_prob(point[0]).sum()
    if scale == 1.0:
        near(bounds, exact)
    else:
        assert bounds.mean() < exact - 0.1


def test_a_terminal_law_that_is_not_normal_is_integrated_by_draws():
    process = VariancePreserving()
    point = torch.full((2_000, SIZE), 0.5, dtype=torch.float64)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2).double()),
        dist.Normal(torch.zeros(2, SIZE).double(), 1.0).to_event(1),
    )
    bounds = []
    for terminal in (None, mixture):  # the same law, written otherwise
        _, fn = gaussian(process, min_time=1e-3, terminal=terminal)
        bounds.append(-means(DiffusionELBO(), fn, lambda: point))
    near(bounds[1], bounds[0].mean())


def test_a_learned_schedule_lessens_the_variance_and_leaves_the_bound():
    process = LearnedVariancePreserving(num_bins=8)
    model, fn = gaussian(process, scale=0.9, min_time=0.0)
    data = STD * torch.randn(2_000, SIZE)
    objective = DiffusionELBO(low_discrepancy=False)
    before = estimates(objective, fn, data)
    optimizer = torch.optim.Adam([process.shares], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        objective.differentiable_loss(model, Empty(), data).backward()
        optimizer.step()
    after = estimates(objective, fn, data)
    assert after.var() < 0.8 * before.var()
    error = ((before.var() + after.var()) / len(data)).sqrt()
    assert (before.mean() - after.mean()).abs() < 5 * error


def test_a_learned_schedule_is_captured_at_a_single_time():
    process, t = LearnedVariancePreserving(num_bins=3), torch.tensor(0.4)
    with pyro.settings.context(validate_distributions_torch=False):  # as the compiler sets it
        for function in (process.log_snr, process.log_mass):
            # Taken apart as for a graph, in which no index may be read.
            captured = torch.compile(function, backend="aot_eager_decomp_partition", fullgraph=True)
            torch.testing.assert_close(captured(t), function(t))


def test_times_of_low_discrepancy_lessen_the_variance():
    _, fn = gaussian(VariancePreserving())
    even, free = (
        means(DiffusionELBO(low_discrepancy=low), fn, lambda: normal(256), 200)
        for low in (True, False)
    )
    assert even.std() < 0.5 * free.std()


def test_the_bound_of_a_latent_site_trains_its_guide():
    """The mean gradient at a draw is that of the log-density."""
    _, fn = gaussian(VariancePreserving(), min_time=1e-2)
    size = 20_000
    loc = torch.full((size, SIZE), 0.5, dtype=torch.float64, requires_grad=True)

    def model():
        with pyro.plate("data", size, dim=-1):
            pyro.sample("z", fn)

    def guide():
        with pyro.plate("data", size, dim=-1):
            pyro.sample("z", dist.Delta(pyro.param("loc", loc), event_dim=1))

    DiffusionELBO().differentiable_loss(model, guide).backward()
    hidden = float((-fn.process.log_snr(1e-2)).exp())
    near(loc.grad.mean(-1), 0.5 / (STD**2 + 2 * hidden))


def test_transport_pairs_have_the_least_distance():
    cost = torch.rand(2, 4, 4)
    orders = list(itertools.permutations(range(4)))
    for one, columns in zip(cost, _assignment(cost), strict=True):
        least = min(sum(one[i, j] for i, j in enumerate(order)) for order in orders)
        torch.testing.assert_close(one[range(4), columns].sum(), least)


def test_transport_of_few_digits():
    fn = ScoreBased(Rectified(), lambda x, t: x, SIZE, "velocity")
    data = torch.randn(6, SIZE, dtype=torch.bfloat16)
    assert estimates(FlowMatching("optimal-transport"), fn, data).isfinite().all()


def test_transport_straightens_the_flow_of_a_gaussian():
    """In one dimension the best map is linear, so that with all pairs known the velocity at x is
    ``(1 - s) x / ((1 - t) s + t)`` without error; independent pairs leave one."""

    def velocity(x, t):
        t = t.unsqueeze(-1)
        return (1 - STD) * x / ((1 - t) * STD + t)

    fn = ScoreBased(Rectified(), velocity, 1, "velocity")
    data = STD * torch.randn(1_000, 1)
    straight = estimates(FlowMatching("optimal-transport"), fn, data).mean()
    crossing = estimates(FlowMatching(), fn, data).mean()
    assert straight < 0.02
    assert crossing > 0.2


class Conditional(nn.Module):
    """Records the contexts that it is shown."""

    def forward(self, x, t, context):
        self.shown = context
        return x + context


def test_contexts_are_dropped_for_guidance():
    denoiser = Conditional()
    fn = ScoreBased(VariancePreserving(), denoiser, 2, context=torch.ones(1_000, 2))
    DenoisingScoreMatching(context_dropout=0.3).score("x", fn, torch.zeros(1_000, 2))
    dropped = (denoiser.shown == 0).all(-1)
    assert bool((dropped | (denoiser.shown == 1).all(-1)).all())
    assert abs(float(dropped.float().mean()) - 0.3) < 5 * math.sqrt(0.21 / 1_000)


def test_guidance_is_for_draws_and_not_for_training():
    fn = ScoreBased(
        VariancePreserving(), Conditional(), 2, context=torch.ones(2), guidance_scale=3.0
    )
    x, t = torch.zeros(5, 2), torch.tensor(0.5)
    torch.testing.assert_close(fn.raw(x, t), torch.full((5, 2), 3.0))
    torch.manual_seed(0)
    guided = DenoisingScoreMatching().score("x", fn, x)
    torch.manual_seed(0)
    plain = DenoisingScoreMatching().score("x", fn.with_context(torch.ones(2)), x)
    torch.testing.assert_close(guided, plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenoisingScoreMatching("snr"), "weighting: expected one of sigma2"),
        (lambda: DenoisingScoreMatching(times="log"), "times: expected one of uniform, log-snr"),
        (lambda: DenoisingScoreMatching("edm", times="uniform"), "'edm' draws its own"),
        (lambda: DenoisingScoreMatching(num_levels=0), "num_levels: expected a positive integer"),
        (lambda: DenoisingScoreMatching("edm", num_levels=3), "levels are drawn uniformly"),
        (lambda: FlowMatching("ot"), "coupling: expected one of independent"),
        (lambda: DiffusionELBO(num_times=0), "num_times: expected a positive integer, got 0"),
        (lambda: DiffusionELBO(context_dropout=1.0), "expected a probability below 1, got 1.0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("objective", [DenoisingScoreMatching(), FlowMatching()])
def test_latent_sites_need_the_bound(objective):
    _, fn = gaussian(VariancePreserving())

    def model():
        pyro.sample("z", fn)

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'z'.*use losses.DiffusionELBO"):
        objective.loss(model, guide)


def test_a_bound_without_noise_at_the_start_is_refused():
    model, _ = gaussian(VariancePreserving(), min_time=0.0)
    with pytest.raises(ValueError, match=r"site 'x': expected noise at min_time"):
        DiffusionELBO().loss(model, Empty(), torch.zeros(2, SIZE))


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: Compiled(loss, compile=False)])
def test_what_is_not_finite_is_named(wrap):
    fn = ScoreBased(VariancePreserving(), lambda x, t: x * math.nan, 2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("image", fn, obs=x)

    with pytest.raises(NonFiniteError, match=r"step 0: .*site 'image'"):
        wrap(DenoisingScoreMatching()).loss_and_grads(model, Empty(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"expected floating-point data.*got torch.int64"):
        DenoisingScoreMatching().loss(model, Empty(), torch.zeros(3, 2).long())


@pytest.mark.parametrize(
    "objective",
    [DenoisingScoreMatching(num_times=2), DiffusionELBO(), FlowMatching("optimal-transport")],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("terminal", [None, dist.StudentT(5.0)], ids=["normal", "heavy tails"])
def test_events_may_be_numbers(objective, terminal):
    def denoiser(x, t):
        return VariancePreserving().std(t) * x

    number = ScoreBased(VariancePreserving(), denoiser, (), terminal=terminal)
    data = torch.randn(4, 5)
    torch.manual_seed(0)
    losses = estimates(objective, number, data)

    def of_vectors(x, t):
        return denoiser(x[..., 0], t).unsqueeze(-1)

    one = None if terminal is None else terminal.expand([1]).to_event(1)
    vector = ScoreBased(VariancePreserving(), of_vectors, 1, terminal=one)
    torch.manual_seed(0)
    torch.testing.assert_close(losses, estimates(objective, vector, data.unsqueeze(-1)))


def test_a_terminal_law_may_be_a_transformed_normal():
    """Its base is not the law."""
    scaled = dist.TransformedDistribution(
        dist.Normal(torch.zeros(SIZE).double(), 1.0).to_event(1),
        [dist.transforms.AffineTransform(0.0, 3.0)],
    )
    normal = dist.Normal(torch.zeros(SIZE).double(), 3.0).to_event(1)
    point = torch.full((2_000, SIZE), 0.5, dtype=torch.float64)
    bounds = []
    for terminal in (normal, scaled):
        _, fn = gaussian(VariancePreserving(), min_time=1e-3, terminal=terminal)
        bounds.append(-means(DiffusionELBO(), fn, lambda: point))
    near(bounds[1], bounds[0].mean())


class Edges(DenoisingScoreMatching):
    """With times at the ends of the interval, which low discrepancy comes near."""

    def uniform(self, fn, data):
        return torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24, 1.0], dtype=data.dtype)


@pytest.mark.parametrize("weighting", ["likelihood", "edm"])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_rounding_leads_to_no_time_out_of_range(process, weighting):
    for first, last in itertools.product([0.0, 1e-5, 1e-3], [0.43, 0.7, 1.0]):
        if isinstance(process, VariancePreserving) and not first:
            continue
        fn = ScoreBased(process, lambda x, t: x, 1, min_time=first, max_time=last)
        objective = Edges(weighting)
        data = torch.zeros(5, 1)
        t, _ = objective._draw_times("x", fn, objective.uniform(fn, data))
        assert bool(((t >= first) & (t <= torch.tensor(last))).all())


@pytest.mark.parametrize("objective", [DiffusionELBO(), DenoisingScoreMatching("likelihood")])
@pytest.mark.parametrize(
    ("process", "start", "message"),
    [
        (Rectified(), 1e-3, r"site 'x': expected .* got log-SNRs 13\.8.* and -inf"),
        (VariancePreserving(), 0.0, r"site 'x': expected .* got log-SNRs inf and -10"),
    ],
)
def test_an_infinite_log_snr_has_no_integral(objective, process, start, message):
    model, _ = gaussian(process, "v", min_time=start)
    with pytest.raises(ValueError, match=message):
        objective.loss(model, Empty(), torch.zeros(2, SIZE))


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_a_density_that_cannot_be_solved_is_named_too():
    """Its flow gets stuck where the network is infinite."""

    def denoiser(x, t):
        return x / (0.5 - t).clamp(min=0).unsqueeze(-1)

    fn = ScoreBased(VariancePreserving(), denoiser, 2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("image", fn, obs=x)

    with pytest.raises(NonFiniteError, match=r"step 0: .*site 'image'"):
        DenoisingScoreMatching().loss(model, Empty(), torch.zeros(3, 2))
