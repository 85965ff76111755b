"""The VAE as a distribution, and what it says to a user who passes the wrong thing."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyrogen.guides import AmortizedNormal
from pyrogen.kernels import MALA
from pyrogen.losses import ContrastiveDivergence, DiffusionELBO
from pyrogen.models import LIKELIHOODS, VAE, EnergyModel, Normal, ScoreModel, real_nvp
from pyrogen.nn import MLP, TimeMLP
from pyrogen.processes import VariancePreserving
from tests.statistics import assert_mean_close


def linear_vae(event=3, latent=2, scale=0.5):
    return VAE(nn.Linear(latent, event), latent, Normal(scale, learned=False)).double()


def test_draws_of_a_linear_decoder_have_its_gaussian_law():
    model = linear_vae()
    weight, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    covariance = weight @ weight.T + 0.25 * torch.eye(3, dtype=torch.float64)
    x = model(None, num_samples=100_000)
    centred = x - bias
    assert_mean_close(x, bias)
    assert_mean_close(centred.unsqueeze(-1) * centred.unsqueeze(-2), covariance)
    # The fourth moment of one direction tells a Gaussian from another law with this covariance.
    assert_mean_close(centred[:, 0] ** 4, 3 * covariance[0, 0] ** 2)


def test_joint_density_integrates_to_the_gaussian_marginal():
    model = linear_vae(latent=1)
    x = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    log_joint = model.prior().log_prob(z) + model.decode(z).log_prob(x)
    weight, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    covariance = weight @ weight.T + 0.25 * torch.eye(3, dtype=torch.float64)
    exact = dist.MultivariateNormal(bias, covariance).log_prob(x)
    # The trapezoidal rule is exact to rounding for a Gaussian that vanishes at both ends.
    integral = torch.trapezoid(log_joint.exp(), z[:, 0])
    torch.testing.assert_close(integral.log(), exact[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_mean_is_the_mean_of_draws(likelihood):
    out = (5, 4) if likelihood == "categorical" else (5,)
    model = VAE(MLP(2, out, hidden=(8,)), 2, likelihood)
    z = torch.randn(3, 2)
    assert model.mean(z).shape == (3, 5)
    assert_mean_close(model.decode(z).sample((50_000,)).double(), model.mean(z))


def test_decoder_is_probed_without_a_trace():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 4), nn.BatchNorm1d(4)

        def forward(self, z):
            return self.norm(self.linear(z))

    decoder = Counter()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    with poutine.trace() as tracer:
        model = VAE(decoder, 2)
    assert model.event_shape == (4,)
    assert decoder.training
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert not tracer.trace.nodes.keys() - {"_INPUT", "_RETURN"}
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("local", [False, True])
def test_decoder_may_be_a_bayesian_network(local):
    with pyro.settings.context(module_local_params=local):
        decoder = PyroModule[nn.Linear](2, 4)
        decoder.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
        model = VAE(decoder, 2)
        trace = poutine.trace(model).get_trace(torch.ones(3, 4))
    assert trace.stochastic_nodes == ["data", "z", "decoder.weight"]
    assert trace.nodes["decoder.weight"]["value"].shape == (4, 2)  # one for all data


@pytest.mark.parametrize("local", [False, True])
def test_model_may_be_part_of_a_larger_module(local):
    with pyro.settings.context(module_local_params=local):
        larger = PyroModule()
        larger.inner = VAE(PyroModule[nn.Linear](2, 4), 2, "normal")
        names = poutine.trace(larger.inner).get_trace(torch.zeros(3, 4)).param_nodes
    assert sorted(names) == [
        "inner.decoder.bias",
        "inner.decoder.weight",
        "inner.likelihood.scale",
    ]


def test_events_may_be_scalars():
    class Scalar(nn.Module):
        def forward(self, z):
            return z.sum(-1)

    model = VAE(Scalar(), 2, "normal")
    assert model.event_shape == ()
    assert model(torch.zeros(5)).shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decoder": lambda z: z}, TypeError, r"decoder: expected a torch.nn.Module, got function"),
        ({"latent_dim": 0}, ValueError, r"latent_dim: expected a positive integer, got 0"),
        ({"latent_dim": 2.0}, ValueError, r"latent_dim: expected a positive integer, got 2.0"),
        ({"latent_dim": 3}, ValueError, r"decoder: expected .*\[\*, 3\].*, got an error"),
        ({"likelihood": "gauss"}, ValueError, r"expected one of \['bernoulli', .*got 'gauss'"),
        ({"likelihood": 3}, TypeError, r"likelihood: expected a name .*got 3"),
        ({"beta": 0.0}, ValueError, r"beta: expected a positive finite number, got 0.0"),
        ({"beta": -1.0}, ValueError, r"beta: expected a positive finite number, got -1.0"),
        ({"beta": float("nan")}, ValueError, r"beta: expected a positive finite number, got nan"),
        (
            {"likelihood": Normal(torch.ones(5))},
            ValueError,
            r"likelihood: expected one that makes events of shape \[4\] .*got an error",
        ),
        (
            {"likelihood": Normal(torch.ones(3, 1, 4))},
            ValueError,
            r"likelihood: expected one that makes events of shape \[4\] .*got \[2, 4\]",
        ),
        (
            {"decoder": nn.Flatten(0), "latent_dim": 3},
            ValueError,
            r"decoder: expected output \[2, \*event_shape\] for input \[2, 3\], got \[6\]",
        ),
        (
            {"decoder": nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), "likelihood": "categorical"},
            ValueError,
            r"decoder: expected output \[2, \*event_shape, K\] for Categorical, got \[2\]",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        VAE(**{"decoder": nn.Linear(2, 4), "latent_dim": 2, **arguments})


@pytest.mark.parametrize(
    ("likelihood", "data", "message"),
    [
        (
            "bernoulli",
            torch.full((3, 4), 0.5),
            r"'x': expected values 0 or 1 .*got values from 0.5 to 0.5; .*'continuous_bernoulli'",
        ),
        ("continuous_bernoulli", torch.full((3, 4), 1.5), r"'x': expected values in \[0, 1\].*1.5"),
        ("categorical", torch.full((3, 2), 2), r"'x': expected levels 0..1 .*from 2 to 2"),
        ("categorical", torch.full((3, 2), -1), r"'x': expected levels 0..1 .*from -1 to -1"),
        ("categorical", torch.zeros(3, 2), r"expected dtype torch.int64, got torch.float32"),
        ("normal", torch.zeros(3, 4, dtype=torch.int64), r"expected dtype torch.float32, got"),
        ("normal", torch.zeros(3, 4).double(), r"expected dtype torch.float32, got torch.float64"),
        ("normal", torch.zeros(4), r"expected shape \[\*, 4\].*got \[4\]"),
        ("normal", torch.zeros(3, 5), r"expected shape \[\*, 4\].*got \[3, 5\]"),
        ("normal", torch.zeros(0, 4), r"expected at least one datum, got shape \[0, 4\]"),
        ("normal", torch.full((3, 4), torch.nan), r"expected finite values, got 12 NaN"),
        ("normal", [[0.0] * 4], r"expected a torch.Tensor, got list"),
    ],
)
def test_unusable_data_are_refused(likelihood, data, message):
    decoder = nn.Linear(2, 4)
    if likelihood == "categorical":
        decoder = nn.Sequential(decoder, nn.Unflatten(-1, (2, 2)))
    with pytest.raises(ValueError, match=message):
        VAE(decoder, 2, likelihood)(data)


def test_values_are_not_read_without_validation():
    model = VAE(nn.Linear(2, 4), 2)
    with pyro.validation_enabled(False):
        assert model(torch.full((3, 4), 0.5)).shape == (3, 4)


@pytest.mark.parametrize("num_samples", [0, -1, 2.5])
def test_wrong_number_of_samples_is_refused(num_samples):
    with pytest.raises(ValueError, match=r"num_samples: expected a positive integer, got"):
        VAE(nn.Linear(2, 4), 2)(None, num_samples=num_samples)


def test_data_and_a_number_of_samples_exclude_each_other():
    with pytest.raises(ValueError, match=r"num_samples: expected None with data, got 3"):
        VAE(nn.Linear(2, 4), 2)(torch.zeros(3, 4), num_samples=3)


def score_model():
    return ScoreModel(VariancePreserving(), TimeMLP(2, hidden=(8,)), event_shape=2)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (score_model, DiffusionELBO()),
        (lambda: score_model().distribution(), DiffusionELBO()),
        (lambda: real_nvp(2, num_layers=2, hidden=(8,)), Trace_ELBO()),
        (lambda: EnergyModel(MLP(2, 1, hidden=(8,)), 2), ContrastiveDivergence(MALA())),
        (lambda: dist.Laplace(torch.zeros(2), 1.0).to_event(1), Trace_ELBO()),
    ],
)
def test_any_law_of_vectors_may_be_the_prior(make, loss):
    """Every parameter of the prior is trained, and found in the state."""
    prior = make()
    model, guide = VAE(MLP(2, 6, hidden=(8,)), 2, prior=prior), AmortizedNormal(MLP(6, 4), 2)
    module = loss(model, guide)
    module(torch.bernoulli(torch.rand(20, 6))).backward()
    inside = {name: p for name, p in model.named_parameters() if name.startswith("_prior")}
    assert bool(inside) == (not isinstance(prior, dist.Independent))
    constant = [name for name, p in inside.items() if p.grad is None]
    assert constant == [name for name in inside if "energy" in name and name.endswith("1.bias")]
    clone = copy.deepcopy(model)
    clone.load_state_dict(model.state_dict())


def test_a_prior_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"prior: expected event shape \[3\].*got \[2\]"):
        VAE(MLP(3, 6), 3, prior=score_model())
