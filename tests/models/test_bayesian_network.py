"""Networks with latent weights: priors, likelihoods, evidence and posteriors that are known."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch.distributions import MultivariateNormal

from pyrogen.guides import NormalWeights
from pyrogen.losses import Compiled
from pyrogen.models import BayesianNetwork, BayesianRNN, Normal, scale_mixture
from pyrogen.nn import affine, localized
from tests.statistics import assert_follows, assert_mean_close

ROUNDING = 1e-10
NOISE, WIDTH = 0.5, 2.0  # of the linear model: scale of the likelihood, of the prior


def double(tensor):
    return tensor.to(torch.float64)


def linear_problem(orthogonal=False):
    """A Bayesian network without hidden layer, data, and its posterior and evidence."""
    x = torch.randn(12, 3, dtype=torch.float64)
    if orthogonal:  # also to the ones of the bias
        ones = torch.ones(12, 1, dtype=torch.float64)
        x = torch.linalg.qr(torch.cat([ones, x], 1))[0][:, 1:] * torch.tensor([1.0, 2.0, 3.0])
    likelihood = Normal(scale=NOISE, learned=False)
    model = BayesianNetwork(3, out_features=1, hidden=(), prior=WIDTH, likelihood=likelihood)
    design = torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], 1)
    y = design @ torch.randn(4, 1, dtype=torch.float64) + NOISE * torch.randn(12, 1).double()
    precision = design.T @ design / NOISE**2 + torch.eye(4).double() / WIDTH**2
    covariance = precision.inverse()
    mean = covariance @ design.T @ y / NOISE**2
    of_data = WIDTH**2 * design @ design.T + NOISE**2 * torch.eye(12).double()
    evidence = MultivariateNormal(torch.zeros(12).double(), of_data).log_prob(y[:, 0])
    return model.double(), x, y, mean, covariance, evidence


def test_evidence_and_posterior_of_a_linear_network_with_orthogonal_inputs():
    model, x, y, mean, covariance, evidence = linear_problem(orthogonal=True)
    guide = NormalWeights(model).double()
    with torch.no_grad():
        guide.loc["weights_0"].copy_(mean)
        std = covariance.diagonal().sqrt().unsqueeze(-1)
        guide.raw_scale["weights_0"].copy_(std.expm1().log())
    # With the posterior as guide, each draw of the bound is the evidence.
    for _ in range(3):
        assert -Trace_ELBO().loss(model, guide, x, y) == pytest.approx(evidence.item(), rel=1e-12)


def test_training_finds_the_posterior_of_a_linear_network():
    model, x, y, mean, covariance, _ = linear_problem(orthogonal=True)
    guide = NormalWeights(model, local=True).double()
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98}), TraceMeanField_ELBO())
    for _ in range(400):
        svi.step(x, y)
    std = covariance.diagonal().sqrt().unsqueeze(-1)
    # Steps fall from 0.1 to 3e-5, so that the last ones average the noise of the gradient away.
    assert ((guide.loc["weights_0"] - mean) / std).abs().max() < 0.1
    assert (guide.scale("weights_0") / std - 1).abs().max() < 0.1


def test_laplace_of_pyro_is_exact_for_a_linear_network():
    model, x, y, mean, covariance, _ = linear_problem()
    guide = AutoLaplaceApproximation(model)
    guide(x, y)
    with torch.no_grad():  # at the mode, which SVI would find
        dict(guide.named_parameters())["loc"].copy_(mean[:, 0])
    posterior = guide.laplace_approximation(x, y).get_posterior()
    torch.testing.assert_close(posterior.loc, mean[:, 0])
    torch.testing.assert_close(posterior.covariance_matrix, covariance, rtol=1e-8, atol=1e-10)


def test_the_bound_of_plain_draws_is_below_the_evidence_and_its_weights_estimate_it():
    model, x, y, mean, covariance, evidence = linear_problem()
    guide = NormalWeights(model).double()
    with torch.no_grad():
        guide.loc["weights_0"].copy_(mean)
        # Wider than the posterior, so that the weights are bounded.
        guide.raw_scale["weights_0"].copy_(
            (1.5 * covariance.diagonal().sqrt()).expm1().log().unsqueeze(-1)
        )
    elbo = Trace_ELBO(num_particles=20000, vectorize_particles=True, max_plate_nesting=1)
    guide_trace = poutine.trace(elbo._vectorized_num_particles(guide)).get_trace(x, y)
    model_trace = poutine.trace(
        poutine.replay(elbo._vectorized_num_particles(model), trace=guide_trace)
    ).get_trace(x, y)
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
    likelihood = model_trace.nodes["y"]["log_prob"].sum(-1)
    prior, posterior = (t.nodes["weights_0"]["log_prob"][:, 0] for t in (model_trace, guide_trace))
    log_weights = likelihood + prior - posterior
    assert log_weights.shape == (20000,)
    assert log_weights.mean() < evidence
    assert_mean_close((log_weights - evidence).exp(), 1.0)


@pytest.mark.parametrize(("weight", "wide", "narrow"), [(0.25, 1.0, 0.1), (0.5, 2.0, 0.0025)])
def test_density_and_draws_of_the_scale_mixture(weight, wide, narrow):
    prior = scale_mixture(weight, wide, narrow)
    w = torch.tensor([-1.3, 0.0, 0.002, 0.7])
    expected = [
        math.log(
            sum(
                share * math.exp(-0.5 * (v / std) ** 2) / (std * math.sqrt(2 * math.pi))
                for share, std in ((weight, wide), (1 - weight, narrow))
            )
        )
        for v in w.tolist()
    ]
    torch.testing.assert_close(prior.log_prob(w), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    draws = prior.sample((20000,))
    assert_follows(draws, prior.log_prob(draws))


def test_the_prior_holds_for_each_weight():
    model = BayesianNetwork(3, num_classes=4, hidden=(5,), prior=scale_mixture(0.3, 1.0, 0.1))
    trace = poutine.trace(model).get_trace(torch.randn(6, 3))
    trace.compute_log_prob()
    for name, shape in {"weights_0": (4, 5), "weights_1": (6, 4)}.items():
        site = trace.nodes[name]
        assert site["value"].shape == shape
        expected = scale_mixture(0.3, 1.0, 0.1).log_prob(site["value"]).sum()
        torch.testing.assert_close(site["log_prob"], expected)


@pytest.mark.parametrize("classify", [False, True])
def test_log_joint_by_hand_scales_the_likelihood_and_not_the_prior(classify):
    kind = {"num_classes": 3} if classify else {"out_features": 2, "likelihood": Normal(0.7)}
    model = BayesianNetwork(2, hidden=(4,), prior=1.5, num_data=40, **kind).double()
    x = torch.randn(8, 2, dtype=torch.float64)
    y = torch.randint(3, (8,)) if classify else torch.randn(8, 2, dtype=torch.float64)
    trace = poutine.trace(model).get_trace(x, y)
    first, second = (trace.nodes[f"weights_{i}"]["value"] for i in range(2))
    hidden = (x @ first[:-1] + first[-1]).clamp(min=0)
    out = hidden @ second[:-1] + second[-1]
    if classify:
        likelihood = out.log_softmax(-1)[torch.arange(8), y].sum()
    else:
        likelihood = dist.Normal(out, 0.7).log_prob(y).sum()
    prior = sum(dist.Normal(0.0, 1.5).log_prob(w).sum() for w in (first, second))
    torch.testing.assert_close(trace.log_prob_sum(), 40 / 8 * likelihood + prior)
    model.num_data = None
    again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
    torch.testing.assert_close(again.log_prob_sum(), likelihood + prior)


def test_log_joint_of_the_recurrent_network_by_hand():
    model = BayesianRNN(2, num_classes=3, hidden=5, prior=scale_mixture(), num_data=12).double()
    x, y = torch.randn(4, 6, 2, dtype=torch.float64), torch.randint(3, (4, 6))
    trace = poutine.trace(model).get_trace(x, y)
    cell, out = (trace.nodes[name]["value"] for name in ("weights_cell", "weights_out"))
    reference = torch.nn.LSTM(2, 5, batch_first=True).double()
    i, f, o, g = cell.chunk(4, -1)
    stacked = torch.cat([i, f, g, o], -1)  # torch's order
    with torch.no_grad():
        reference.weight_ih_l0.copy_(stacked[:2].T)
        reference.weight_hh_l0.copy_(stacked[2:-1].T)
        reference.bias_ih_l0.copy_(stacked[-1])
        reference.bias_hh_l0.zero_()
    logits = reference(x)[0] @ out[:-1] + out[-1]
    likelihood = logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).sum()
    prior = sum(scale_mixture().log_prob(w).sum() for w in (cell, out))
    torch.testing.assert_close(trace.log_prob_sum(), 3 * likelihood + prior)


def test_local_draws_have_the_law_of_direct_ones_for_each_datum():
    loc, scale = torch.randn(4, 2), torch.rand(4, 2)
    x = torch.tensor([[0.3, -1.0, 2.0]])
    weights = localized(torch.randn(4, 2), loc, scale)
    local = affine(x.expand(20000, 3), weights)
    direct = torch.cat([x, torch.ones(1, 1)], 1) @ (loc + scale * torch.randn(20000, 4, 2))
    expected = (x @ loc[:-1] + loc[-1])[0]
    std = torch.cat([x, torch.ones(1, 1)], 1).square().matmul(scale.square()).sqrt()[0]
    for draws in (local, direct[:, 0]):
        assert_follows(draws, dist.Normal(expected, std).log_prob(draws).sum(-1))


def test_local_reparametrisation_has_the_same_mean_and_a_lower_variance():
    model = BayesianNetwork(3, num_classes=4, hidden=(10,))
    x, y = torch.randn(100, 3), torch.randint(4, (100,))
    found = {}
    for local in (False, True):
        pyro.set_rng_seed(3)
        guide = NormalWeights(model, init_scale=0.3, local=local)
        losses, gradients = [], []
        elbo = TraceMeanField_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
        for _ in range(60):
            guide.zero_grad()
            losses.append(elbo.loss_and_grads(model, guide, x, y))
            gradients.append(guide.loc["weights_0"].grad.flatten().clone())
        found[local] = torch.tensor(losses), torch.stack(gradients)
    # Two independent estimates of one mean: their difference is centred.
    assert_mean_close(found[True][0] - found[False][0], 0.0)
    assert_mean_close(found[True][1] - found[False][1], 0.0)
    for direct, local in zip(found[False], found[True], strict=True):
        assert local.var(0).sum() < 0.5 * direct.var(0).sum()


def test_data_have_draws_of_their_own_in_training_mode_only():
    model = BayesianNetwork(2, out_features=1, hidden=(6,), likelihood=Normal(1e-6, learned=False))
    guide = NormalWeights(model, init_scale=0.5, local=True)
    x = torch.ones(5, 2)
    for training in (True, False):
        guide.train(training)
        y = poutine.replay(model, trace=poutine.trace(guide).get_trace(x))(x)
        assert bool(y.std() > 1e-2) is training
    y = Predictive(model, guide=guide.train(), num_samples=3)(x)["y"]
    assert (y.std(1) < 1e-4).all()  # which keeps no marks: its draws are functions


def test_vectorised_particles_are_scored_one_by_one():
    for model, x, y in (
        (BayesianNetwork(2, num_classes=3), torch.randn(7, 2), torch.randint(3, (7,))),
        (BayesianRNN(2, out_features=1), torch.randn(7, 4, 2), torch.randn(7, 4, 1)),
    ):
        shapes = model.weight_shapes
        weights = {name: torch.randn(5, 1, *shape) for name, shape in shapes.items()}
        with pyro.plate("particles", 5, dim=-2):
            trace = poutine.trace(poutine.condition(model, weights)).get_trace(x, y)
        trace.compute_log_prob()
        for i in range(5):
            one = {name: value[i, 0] for name, value in weights.items()}
            single = poutine.trace(poutine.condition(model, one)).get_trace(x, y)
            single.compute_log_prob()
            torch.testing.assert_close(
                trace.nodes["y"]["log_prob"][i], single.nodes["y"]["log_prob"]
            )


def test_predictive_draws_targets_of_any_number_of_inputs():
    model = BayesianNetwork(2, num_classes=3, num_data=10)
    guide = NormalWeights(model)
    x = torch.randn(30, 2)
    draws = Predictive(model, guide=guide, num_samples=4)(x)
    assert draws["y"].shape == (4, 30)
    weights = [draws["weights_0"], draws["weights_1"]]
    assert model.predict(x, weights).logits.shape == (4, 30, 3)  # all draws at once
    with pytest.raises(ValueError, match=r"batch shape \[\.\.\., 1\].* parallel=False"):
        Predictive(model, guide=guide, num_samples=30, parallel=True)(x)  # as many as data


@pytest.mark.parametrize("local", [False, True])
def test_captured_losses_equal_pyros_under_the_same_noise(local):
    model = BayesianNetwork(2, num_classes=3, hidden=(4,), prior=scale_mixture())
    guide = NormalWeights(model, local=local)
    data = torch.randn(6, 2), torch.randint(3, (6,))
    values = []
    for loss in (Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)):
        guide.zero_grad()
        pyro.set_rng_seed(1)
        values.append(
            (
                torch.tensor(loss.loss_and_grads(model, guide, *data)),
                [parameter.grad.clone() for parameter in guide.parameters()],
            )
        )
    torch.testing.assert_close(*values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesianNetwork(2), "expected one of them"),
        (lambda: BayesianNetwork(2, 3, 4), "expected one of them"),
        (lambda: BayesianNetwork(0, 3), "in_features: expected a positive"),
        (lambda: BayesianNetwork(2, 3, prior=-1.0), "prior: expected a positive"),
        (
            lambda: BayesianNetwork(2, 3, prior=dist.Normal(torch.zeros(2), 1.0).to_event(1)),
            "law of one weight",
        ),
        (lambda: BayesianNetwork(2, 3, likelihood="normal"), "expected one for classes"),
        (lambda: BayesianNetwork(2, out_features=3, likelihood="categorical"), "give num_classes"),
        (lambda: scale_mixture(1.0), "between 0 and 1"),
        (lambda: scale_mixture(0.5, 0.1, 0.1), "wide > narrow"),
        (lambda: NormalWeights(BayesianRNN(2, 3), local=True), "every step of a sequence"),
        (lambda: NormalWeights(torch.nn.Linear(2, 2)), "weight_shapes"),
        (lambda: NormalWeights(BayesianNetwork(2, 3), init_scale=0.0), "init_scale"),
        (lambda: BayesianNetwork(2, 3)(torch.zeros(4, 3)), r"x: expected shape \[\*, 2\]"),
        (lambda: BayesianNetwork(2, 3)(torch.zeros(4, 2), torch.zeros(4)), "y: expected dtype"),
        (
            lambda: BayesianNetwork(2, 3)(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64)),
            "a target for each input",
        ),
        (
            lambda: BayesianNetwork(2, 3, num_data=3)(torch.zeros(4, 2), torch.zeros(4).long()),
            "at most num_data=3",
        ),
        (lambda: BayesianRNN(2, 3)(torch.zeros(4, 2)), "expected sequences"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("copy_of", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("kind", [BayesianNetwork, BayesianRNN])
def test_copies_have_the_same_loss_and_their_own_parameters(kind, copy_of):
    model = kind(2, num_classes=3, prior=scale_mixture())
    guide = NormalWeights(model)
    shape = (4,) if kind is BayesianNetwork else (4, 5)
    x, y = torch.randn(*shape, 2), torch.randint(3, shape)
    Trace_ELBO().loss(model, guide, x, y)  # copied after use, as users do
    if copy_of == "deepcopy":
        clone = copy.deepcopy((model, guide))
    elif copy_of == "pickle":
        clone = pickle.loads(pickle.dumps((model, guide)))
    else:
        other = kind(2, num_classes=3, prior=scale_mixture(0.1, 2.0, 1.0))
        clone = other, NormalWeights(other)
        for source, target in zip((model, guide), clone, strict=True):
            target.load_state_dict(source.state_dict())
    losses = []
    for pair in ((model, guide), clone):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        losses.append(Trace_ELBO().loss(*pair, x, y))
    assert losses[0] == losses[1]
    own = {id(p) for part in (model, guide) for p in part.parameters()}
    assert not any(id(p) in own for part in clone for p in part.parameters())
