"""Flows as models: the change of variables, levels and what is refused."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform, ExpTransform

from pyrogen.checks import check_pair
from pyrogen.guides import Empty, UniformDequantization
from pyrogen.losses import Compiled
from pyrogen.models import Flow, bits_per_dimension, glow
from pyrogen.transforms import ActNorm, AffineCoupling, Logit, MultiScale
from tests.statistics import assert_mean_close

LEVELS = 5
LOC, SCALE = 0.45, 0.3


def affine(dim=2):
    scale = torch.linspace(0.5, 2, dim)
    return Flow(dim, [AffineTransform(torch.ones(dim), scale), ExpTransform()])


def levels_flow(dtype=torch.float64):
    """A normal density of v, so that the levels have probabilities in closed form."""
    return Flow((2,), [AffineTransform(torch.tensor(LOC), SCALE)], levels=LEVELS).to(dtype)


def level_probs():
    """P(x = k) for one dimension; the first and the last level reach to infinity."""
    edges = torch.arange(1, LEVELS, dtype=torch.float64) / LEVELS
    inner = dist.Normal(LOC, SCALE).cdf(edges)
    return torch.cat([torch.zeros(1), inner, torch.ones(1)]).diff()


def test_the_density_is_that_of_the_transformed_base():
    model = affine().double()
    x = torch.rand(6, 2, dtype=torch.float64) + 0.1
    expected = dist.LogNormal(torch.ones(2), torch.linspace(0.5, 2, 2)).log_prob(x).sum(-1)
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)
    assert Trace_ELBO().loss(model, Empty(), x) == pytest.approx(-expected.sum().item(), rel=1e-12)
    check_pair(model, Empty(), (x,))


def test_draws_follow_the_density():
    model = Flow(2, [AffineTransform(torch.tensor([3.0, -1.0]), 0.5)])
    draws = model(None, num_samples=20_000)
    assert_mean_close(draws, torch.tensor([3.0, -1.0]))
    assert_mean_close((draws - torch.tensor([3.0, -1.0])) ** 2, torch.full((2,), 0.25))
    assert model().shape == (1, 2)
    assert torch.equal(model(draws), draws)


def test_maximum_likelihood_by_svi_finds_mean_and_scale():
    x = torch.randn(200, 2) * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -1.0])
    model = Flow(2, [ActNorm(2)])
    svi = SVI(model, Empty(), Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step(x)
    torch.testing.assert_close(model(x), x)
    exact = dist.Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum()
    # The likelihood is flat at its maximum: what Adam's last steps leave is of second order.
    assert exact - 0.5 < -svi.evaluate_loss(x) <= exact + 1e-3


def test_initialize_standardises_the_data():
    x = torch.randn(500, 2) * 3 + 5
    model = Flow(2, [ActNorm(2)])
    model.initialize(x)
    exact = dist.Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum()
    # It may divide by n or n - 1: the likelihood is flat there.
    assert -Trace_ELBO().loss(model, Empty(), x) == pytest.approx(exact.item(), abs=0.01)


class LearnedBase(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_a_learned_base_is_trained():
    model = Flow(LearnedBase(), [AffineTransform(0.0, 2.0)])
    x = torch.randn(3, 2)
    Trace_ELBO().loss_and_grads(model, Empty(), x)
    # d/dm of (x/2 - m)²/2, summed over the data
    torch.testing.assert_close(model.base.loc.grad, -(x / 2).sum(0))


def test_a_fixed_base_moves_with_the_model():
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3)),
        dist.Independent(dist.Normal(torch.randn(3, 2), torch.ones(3, 2)), 1),
    )
    model = Flow(mixture, [AffineTransform(torch.zeros(2), torch.ones(2)).inv])
    assert not list(model.parameters())
    assert model(None, num_samples=4).dtype == torch.float32
    model.double()
    assert model(None, num_samples=4).dtype == torch.float64
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(model.distribution().log_prob(x), mixture.log_prob(x))


def test_modules_are_found_wherever_they_hide():
    layers = [AffineCoupling(2) for _ in range(3)]
    planar = dist.transforms.Planar(2)
    parts = [layers[0], ComposeTransform([layers[1], ExpTransform()]), layers[2].inv, planar.inv]
    model = Flow(2, parts)
    found = {id(p) for p in model.parameters()}
    assert found == {id(p) for part in (*layers, planar) for p in part.parameters()}
    x = torch.randn(5, 2)
    y = layers[2].inv(layers[1](layers[0](x)).exp())
    for part in list(model.transforms)[:4]:
        x = part(x)
    torch.testing.assert_close(x, y)


def test_a_transform_that_is_conditioned_already_is_trained():
    layer = AffineCoupling(2, context_dim=3)
    model = Flow(2, [layer.condition(torch.ones(3))]).double()
    assert {*model.parameters()} == {*layer.parameters()}
    x = torch.randn(5, 2, dtype=torch.float64)
    expected, _ = layer.inverse_and_log_det(x, torch.ones(3, dtype=torch.float64))
    back, _ = next(iter(model.transforms)).inverse_and_log_det(x)
    torch.testing.assert_close(back, expected)


def test_what_is_drawn_at_construction_is_part_of_the_state():
    """Pyro's permutation is no module; another one in its place is another density."""

    def make():
        base = dist.Normal(torch.randn(6), 1.0).to_event(1)
        levels = [[dist.transforms.permute(4)], [dist.transforms.permute(2)]]
        return Flow(base, [dist.transforms.permute(6)]), MultiScale(4, levels)

    torch.manual_seed(1)
    one, many = make()
    torch.manual_seed(2)
    other, others = make()
    x, y = torch.randn(5, 6), torch.randn(5, 4)
    expected, image = one.distribution().log_prob(x), many(y)
    assert not torch.equal(other.distribution().log_prob(x), expected)
    other.load_state_dict(one.state_dict())
    others.load_state_dict(many.state_dict())
    assert torch.equal(other.distribution().log_prob(x), expected)
    assert torch.equal(others(y), image)
    assert torch.equal(others.inv(image), y)


def test_layers_of_several_scales_move_with_the_model():
    levels = [[AffineTransform(torch.zeros(4), 2.0)], [AffineTransform(torch.ones(2), 2.0)]]
    model = Flow(4, [MultiScale(4, levels)]).double()
    assert model(None, num_samples=3).dtype == torch.float64


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_score_alike_and_share_nothing(copied):
    model = Flow(2, [AffineCoupling(2), AffineTransform(0.0, 2.0).inv])
    x = torch.randn(5, 2)
    Trace_ELBO().loss_and_grads(model, Empty(), x)
    clone = copied(model)
    torch.testing.assert_close(
        clone.distribution().log_prob(x), model.distribution().log_prob(x), rtol=0, atol=0
    )
    assert not {id(p) for p in model.parameters()} & {id(p) for p in clone.parameters()}
    other = Flow(2, [AffineCoupling(2), AffineTransform(0.0, 2.0).inv])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.distribution().log_prob(x), model.distribution().log_prob(x))


def test_outer_plates_and_predictive():
    model = affine()
    groups = model(None, num_samples=6).reshape(2, 3, 2)

    def grouped(data):
        with pyro.plate("groups", 2, dim=-2):
            return model(data)

    flat = Trace_ELBO().loss(model, Empty(), groups.flatten(0, 1))
    assert Trace_ELBO().loss(grouped, Empty(), groups) == pytest.approx(flat, rel=1e-5)
    assert Predictive(model, num_samples=4)(None, num_samples=3)["x"].shape == (4, 3, 2)


@pytest.mark.parametrize("make", [affine, levels_flow])
def test_a_captured_loss_is_the_same(make):
    model = Flow(2, [AffineCoupling(2)], levels=make().levels)
    data = model(None, num_samples=5).detach()
    guide = Empty() if model.levels is None else UniformDequantization(LEVELS, 2)
    losses = []
    for loss in (Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)):
        pyro.set_rng_seed(1)
        model.zero_grad()
        value = loss.loss_and_grads(model, guide, data)
        losses.append((value, *(p.grad.clone() for p in model.parameters())))
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-4, atol=1e-6)


def test_levels_are_drawn_with_their_probabilities():
    draws = levels_flow()(None, num_samples=20_000)
    assert draws.dtype == torch.int64
    seen = (draws.unsqueeze(-1) == torch.arange(LEVELS)).double()
    assert_mean_close(seen, level_probs().expand(2, LEVELS))


def test_importance_weights_average_to_the_probability_of_levels():
    model, guide = levels_flow(), UniformDequantization(LEVELS, 2).double()
    inner = torch.tensor([[1, 3], [2, 2], [3, 1]])  # bins that do not reach to infinity
    data = inner.repeat(20_000, 1)
    guide_trace = poutine.trace(guide).get_trace(data)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data)
    log_weight = sum(
        sign * trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"])
        for sign, trace, name in (
            (1, model_trace, "v"),
            (1, model_trace, "x"),
            (-1, guide_trace, "v"),
        )
    )
    weights = log_weight.exp().reshape(-1, 3)
    assert_mean_close(weights, level_probs()[inner].prod(-1))


def test_the_elbo_is_the_dequantisation_bound_and_importance_weights_tighten_it():
    model, guide = levels_flow(), UniformDequantization(LEVELS, 2).double()
    x = torch.tensor([[1, 3]])
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    bound = sum(
        (dist.Normal(LOC, SCALE).log_prob((k + u) / LEVELS).mean() - math.log(LEVELS)).item()
        for k in x[0]
    )
    exact = level_probs()[x].log().sum().item()
    elbos = torch.tensor([-Trace_ELBO().loss(model, guide, x) for _ in range(300)])
    assert_mean_close(elbos, torch.tensor(bound))
    many = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    assert bound < exact
    # The bias of 1000 weights of relative variance below 0.1 is below 1e-4; 5 deviations are 0.05.
    assert -many.loss(model, guide, x) == pytest.approx(exact, abs=0.05)


def test_a_flow_of_levels_with_logits_is_finite_at_the_ends():
    model = Flow((2,), [AffineCoupling(2), Logit(1e-6).inv], levels=256)
    guide = UniformDequantization(256, 2)
    data = torch.tensor([[0, 255]]).expand(20_000, 2)
    loss = Trace_ELBO().loss_and_grads(model, guide, data)
    assert math.isfinite(loss)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_bits_per_dimension():
    assert bits_per_dimension(3 * math.log(2), (3,)) == pytest.approx(1)
    assert bits_per_dimension(0.0, (1, 2), levels=256) == pytest.approx(8)
    # A density of values x / K and the mass of the levels themselves are off by log K each.
    nats = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(
        bits_per_dimension(nats, (4,), levels=17), bits_per_dimension(nats + 4 * math.log(17), (4,))
    )
    with pytest.raises(ValueError, match="event_shape"):
        bits_per_dimension(0.0, (0,))
    with pytest.raises(ValueError, match="levels"):
        bits_per_dimension(0.0, (2,), levels=1)
    assert bits_per_dimension(1.5, 64) == bits_per_dimension(1.5, (8, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2, [AffineCoupling(2, context_dim=3)]), ValueError, "use pyrogen.models.ConditionalFlow"),
        ((2, ["affine"]), TypeError, "transforms: expected transforms, got str"),
        (("two",), TypeError, "base: expected a shape, a distribution or a module, got str"),
        ((0,), ValueError, r"base: expected positive sizes, got \(0,\)"),
        (
            (dist.Normal(torch.zeros(2), 1.0),),
            ValueError,
            r"batch shape \[\], got \[2\]; .*to_event",
        ),
        (
            (3, [AffineTransform(torch.zeros(2), 1.0)]),
            ValueError,
            "expected ones that fit the base",
        ),
        ((2, [AffineTransform(torch.ones(2).requires_grad_(), 1.0)]), ValueError, "in modules"),
        ((2, [], 1), ValueError, "levels: expected an integer above 1 or None, got 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Flow(*arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.ones(3, 4), r"expected shape \[\*, 2\].*got \[3, 4\]"),
        (torch.ones(3, 2).double(), "expected dtype torch.float32, got torch.float64"),
        (torch.full((3, 2), torch.nan), "expected finite values"),
        (torch.tensor([[1.0, -1.0], [1.0, 1.0]]), "support of the flow.*got 1 of 2 outside"),
    ],
)
def test_unusable_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        affine()(data)
    with pytest.raises(ValueError, match="num_samples: expected None with data"):
        affine()(torch.ones(2, 2), num_samples=2)
    with pytest.raises(ValueError, match="num_samples: expected a positive integer, got 0"):
        affine()(None, num_samples=0)


def test_data_that_are_no_levels_are_refused():
    model = levels_flow()
    with pytest.raises(ValueError, match=r"levels 0\.\.4, got values from 0 to 5"):
        model(torch.tensor([[0, 5]]))
    with pytest.raises(ValueError, match=r"expected dtype torch\.int64, got torch\.float32"):
        model(torch.zeros(1, 2))


def test_glow_starts_from_standardised_data():
    model = glow((1, 4, 4), num_levels=2, num_steps=1, hidden=8, levels=LEVELS, boundary=0.05)
    data = torch.randint(LEVELS, (256, 1, 4, 4))
    model.initialize(data)
    flow = model.distribution()
    v = UniformDequantization(LEVELS, (1, 4, 4)).posterior(data).sample()
    for transform in reversed(flow.transforms):
        v = transform.inv(v)
    # The last scaling is followed by a rotation and a coupling that starts near the identity; the
    # means of 256 other dequantised values are off by up to 5 / 16.
    assert v.mean(0).abs().max() < 0.35
    assert v.std(0).min() > 0.7
    assert v.std(0).max() < 1.3
