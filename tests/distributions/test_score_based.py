"""Score-based sites whose score is known: densities, draws, contexts, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyrogen.distributions import ScoreBased
from pyrogen.guides import Empty
from pyrogen.models import ScoreModel
from pyrogen.nn import TimeMLP
from pyrogen.processes import (
    CosineVariancePreserving,
    LearnedVariancePreserving,
    OrnsteinUhlenbeck,
    Process,
    Rectified,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from tests.statistics import assert_mean_close

PROCESSES = [
    VariancePreserving(),
    CosineVariancePreserving(),
    SubVariancePreserving(),
    VarianceExploding(),
    Rectified(),
    OrnsteinUhlenbeck(rate=2.0, scale=1.0),
    LearnedVariancePreserving(num_bins=4).requires_grad_(False),
]
processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


class Gaussian:
    """Data N(mean, covariance) of ten dimensions, and the mean of them given a state."""

    def __init__(self, process, size=10):
        generator = torch.Generator().manual_seed(3)
        factor = torch.randn(size, size, dtype=torch.float64, generator=generator) / 3
        self.mean = torch.randn(size, dtype=torch.float64, generator=generator)
        self.covariance = factor @ factor.T + 0.3 * torch.eye(size, dtype=torch.float64)
        self.variances, self.axes = torch.linalg.eigh(self.covariance)
        self.process = process

    def __call__(self, x, t):
        alpha, variance = (
            f(t).unsqueeze(-1) for f in (self.process.mean_scale, self.process.variance)
        )
        gain = alpha * self.variances / (alpha.square() * self.variances + variance)
        return self.mean + (gain * ((x - alpha * self.mean) @ self.axes)) @ self.axes.T

    def law(self, t=None):
        if t is None:
            return dist.MultivariateNormal(self.mean, self.covariance)
        t = torch.tensor(t, dtype=torch.float64)
        alpha, variance = self.process.mean_scale(t), self.process.variance(t)
        noise = variance * torch.eye(len(self.mean), dtype=torch.float64)
        return dist.MultivariateNormal(alpha * self.mean, alpha**2 * self.covariance + noise)

    def site(self, **options):
        terminal = self.law(options.get("max_time", 1.0))
        return ScoreBased(self.process, self, len(self.mean), "data", terminal=terminal, **options)


@processes
def test_the_density_is_that_of_a_gaussian(process):
    """That of data under the noise at min_time, to the tolerance of the solver."""
    gaussian = Gaussian(process)
    fn = gaussian.site(min_time=1e-3)
    x = gaussian.law().sample((20,))
    torch.testing.assert_close(fn.log_prob(x), gaussian.law(1e-3).log_prob(x), rtol=0, atol=1e-3)


@processes
def test_draws_have_the_law(process):
    gaussian = Gaussian(process, size=2)
    fn = gaussian.site(min_time=1e-3)
    x = fn.sample((20_000,))
    law = gaussian.law(1e-3)
    assert_mean_close(x, law.mean)
    centred = x - law.mean
    assert_mean_close(centred.unsqueeze(-1) * centred.unsqueeze(-2), law.covariance_matrix)


def test_the_density_of_a_skewed_mixture():
    """Of three parts with weights 0.6, 0.3 and 0.1, by the score of the noised mixture."""
    process = VariancePreserving()
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, -2.0]], dtype=torch.float64)

    def mixture(alpha, variance):
        total = alpha.square().unsqueeze(-1) * 0.2 + variance.unsqueeze(-1)
        parts = dist.Normal(alpha.reshape(-1, 1, 1) * means, total.reshape(-1, 1, 1).sqrt())
        return dist.MixtureSameFamily(
            dist.Categorical(weights.expand(len(alpha), 3)), parts.to_event(1)
        )

    def score(x, t):
        law = mixture(process.mean_scale(t), process.variance(t))
        return torch.func.grad(lambda x: law.log_prob(x).sum())(x)

    end = torch.ones(1, dtype=torch.float64)
    terminal = mixture(process.mean_scale(end), process.variance(end))
    fn = ScoreBased(
        process, score, 2, "score", min_time=1e-3, atol=1e-6, rtol=1e-6,
        terminal=dist.MixtureSameFamily(
            dist.Categorical(weights),
            dist.Normal(terminal.component_distribution.mean[0],
                        terminal.component_distribution.stddev[0]).to_event(1),
        ),
    )  # fmt: skip
    start = torch.full((1,), 1e-3, dtype=torch.float64)
    exact = mixture(process.mean_scale(start), process.variance(start))
    x = torch.randn(20, 2, dtype=torch.float64) * 1.5
    torch.testing.assert_close(fn.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-3)


def test_the_gradient_of_the_density_is_the_score():
    gaussian = Gaussian(VariancePreserving(), size=4)
    fn = gaussian.site(min_time=1e-3)
    x = gaussian.law().sample((5,)).requires_grad_()
    (gradient,) = torch.autograd.grad(fn.log_prob(x).sum(), x)
    torch.testing.assert_close(gradient, fn.score(x.detach(), 1e-3), rtol=0, atol=2e-3)


def test_hutchinsons_trace_is_unbiased():
    gaussian = Gaussian(VariancePreserving(), size=4)
    fn = gaussian.site(min_time=1e-2, trace="hutchinson")
    x = gaussian.law().sample()
    estimates = fn.log_prob(x.expand(2_000, 4))
    assert estimates.std() > 0.01
    assert_mean_close(estimates, gaussian.law(1e-2).log_prob(x))


def test_many_dimensions_take_the_estimate():
    fn = ScoreBased(VariancePreserving(), lambda x, t: 0 * x, (1, 9, 9))
    assert fn.flow().trace == "hutchinson"
    assert ScoreBased(VariancePreserving(), lambda x, t: 0 * x, (1, 8, 8)).flow().trace == "exact"


def test_predictions_agree():
    """All of them say what the best denoiser of the law says."""
    process = VariancePreserving()
    gaussian = Gaussian(process, size=3)
    fn, t = gaussian.site(), 0.4
    x = torch.randn(6, 3, dtype=torch.float64)
    law = gaussian.law(t)
    score = torch.func.grad(lambda x: law.log_prob(x).sum())(x)
    torch.testing.assert_close(fn.score(x, t), score)
    torch.testing.assert_close(fn.predict(x, t, "noise"), -process.std(0.4).double() * score)
    field = process.probability_flow(fn.score)
    torch.testing.assert_close(fn.velocity(x, t), field(x, torch.tensor(t).double()))


def test_plates_and_shapes():
    fn = ScoreBased(VariancePreserving(), lambda x, t: x * 0, (2, 3), trace="hutchinson")
    assert fn.expand((5,)).batch_shape == (5,)
    assert fn.expand((5,)).log_prob(torch.randn(4, 5, 2, 3)).shape == (4, 5)
    assert fn.expand((5,)).sample((4,)).shape == (4, 5, 2, 3)
    context = torch.randn(5, 7)
    given = ScoreBased(VariancePreserving(), lambda x, t, c: 0 * x, 2, context=context)
    assert given.batch_shape == (5,)
    assert given.log_prob(torch.randn(4, 1, 2)).shape == (4, 5)
    assert given.sample((3,)).shape == (3, 5, 2)
    assert fn.expand((5,)).log_prob(torch.randn(2, 3)).shape == (5,)
    assert given.expand((3, 5)).log_prob(torch.randn(2)).shape == (3, 5)
    scalar = ScoreBased(VariancePreserving(), lambda x, t: 0 * x, ())
    assert scalar.log_prob(torch.randn(4)).shape == (4,)


def test_every_point_may_have_its_time():
    seen = []

    def denoiser(x, t):
        seen.append((x.shape, t.shape))
        return 0 * x

    fn = ScoreBased(VariancePreserving(), denoiser, 2).expand((3,))
    x, t = torch.randn(4, 3, 2), torch.tensor([0.1, 0.5, 0.9])
    score = fn.predict(x, t, "data")
    assert seen == [((12, 2), (12,))]
    torch.testing.assert_close(score[:, 1], fn.predict(x[:, 1], 0.5, "data"))


def test_a_plain_elbo_trains_by_the_density():
    """At the price of solving the flow in each step."""
    model = ScoreModel(Rectified(), TimeMLP(2, hidden=(16,)), 2, "velocity", atol=1e-3, rtol=1e-3)
    data = torch.randn(64, 2) * 0.3 + 1
    svi = SVI(model, Empty(), pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO())
    losses = [svi.step(data) / 64 for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_it_survives_copies():
    model = ScoreModel(VariancePreserving(), TimeMLP(2, hidden=(8,)), 2)
    x = torch.randn(3, 2)
    expected = model.distribution().log_prob(x)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(clone.distribution().log_prob(x), expected)
        clone.load_state_dict(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_terminal_law_moves_with_the_model(dtype):
    terminal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    network = TimeMLP(2, hidden=(8,))
    model = ScoreModel(VariancePreserving(), network, 2, terminal=terminal).to(dtype)
    assert model(None, num_samples=3).dtype == dtype
    assert model.distribution().log_prob(torch.zeros(3, 2, dtype=dtype)).dtype == dtype
    terminal = model.distribution().terminal()
    fn = ScoreBased(VariancePreserving(), lambda x, t: 0 * x, 2, terminal=terminal)
    assert fn.sample().dtype == dtype


class Backwards(Rectified):
    """Noise at time 0."""

    def mean_scale(self, t):
        return t


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"process": Process(lambda x, t: x, 1.0)}, TypeError, "expected a LinearProcess, got Pro"),
        ({"process": Backwards()}, ValueError, r"expected mean_scale\(0\) = 1.*got 0"),
        ({"denoiser": 3}, TypeError, "denoiser: expected a module or a function, got int"),
        ({"prediction": "epsilon"}, ValueError, "prediction: expected one of data, noise"),
        ({"min_time": -0.1}, ValueError, "0 <= min_time < max_time, got -0.1 and 1.0"),
        ({"min_time": 0.5, "max_time": 0.5}, ValueError, "min_time < max_time, got 0.5 and 0.5"),
        ({"guidance_scale": 2.0}, ValueError, "expected 1 without a context, got 2.0"),
        (
            {"context": torch.tensor(1.0)},
            ValueError,
            r"context: expected a tensor of shape \[\*batch, features\], got \[\]",
        ),
        ({"context": 1.0}, ValueError, r"\[\*batch, features\], got float"),
        ({"event_shape": -2}, ValueError, r"event_shape: expected positive sizes, got \[-2\]"),
        (
            {"terminal": dist.Normal(torch.zeros(3), 1.0).to_event(1)},
            ValueError,
            r"event shape \[2\], got \[\] and \[3\]",
        ),
    ],
)
def test_bad_arguments_are_explained(options, error, message):
    given = {"process": VariancePreserving(), "denoiser": lambda x, t: x, "event_shape": 2}
    with pytest.raises(error, match=message):
        ScoreBased(**{**given, **options})


def test_bad_values_are_explained():
    fn = ScoreBased(VariancePreserving(), lambda x, t: x[:, :1], 2)
    with pytest.raises(ValueError, match=r"events of shape \[2\], got shape \[5, 3\]"):
        fn.score(torch.zeros(5, 3), 0.5)
    with pytest.raises(ValueError, match=r"denoiser: expected.*\[5, 2\], got \[5, 1\]"):
        fn.score(torch.zeros(5, 2), 0.5)
    for t in (-0.1, 1.5, torch.tensor([0.5, 2.0])):
        with pytest.raises(ValueError, match=r"t: expected times from 0 \(data\) to 1 \(noise\)"):
            fn.score(torch.zeros(2, 2), t)
    model = ScoreModel(VariancePreserving(), TimeMLP(2), 2)
    with pytest.raises(ValueError, match=r"data: expected shape \[\*, 2\].*got \[5, 3\]"):
        model(torch.zeros(5, 3))
