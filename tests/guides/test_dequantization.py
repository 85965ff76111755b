"""The guides of the value behind a level."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.distributions import AffineTransform, Normal

from pyrogen.checks import check_pair
from pyrogen.guides import UniformDequantization, VariationalDequantization
from pyrogen.losses import Compiled
from pyrogen.models import Flow
from pyrogen.nn import MLP
from pyrogen.transforms import ActNorm, AffineCoupling

LEVELS = 4


def variational(levels=LEVELS):
    coupling = [AffineCoupling(2, context_dim=3), AffineCoupling(2, swap=True, context_dim=3)]
    return VariationalDequantization(levels, 2, coupling, encoder=MLP(2, 3, hidden=(8,)))


def model():
    return Flow(2, [AffineTransform(torch.tensor(0.3), 0.2)], levels=LEVELS)


@pytest.mark.parametrize("make", [lambda: UniformDequantization(LEVELS, 2), variational])
def test_values_stay_in_their_bins_and_densities_are_normalised(make):
    guide = make().double()
    x = torch.tensor([[0, 3], [2, 1]])
    posterior = guide.posterior(x)
    v, log_q = posterior.rsample_with_log_prob((1000,))
    assert torch.equal((LEVELS * v).floor().long(), x.expand(1000, 2, 2))
    assert v.dtype == torch.float64
    middle = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    grid = (x[:, None] + torch.cartesian_prod(middle, middle)) / LEVELS
    total = guide.posterior(x[:, None].expand(2, 40_000, 2)).log_prob(grid).exp().mean(1)
    torch.testing.assert_close(total / LEVELS**2, torch.ones_like(total), rtol=2e-3, atol=0)
    assert log_q.shape == (1000, 2)


def test_the_uniform_density_is_that_of_the_bin():
    guide = UniformDequantization(256, 3)
    v, log_q = guide.posterior(torch.randint(256, (5, 3))).rsample_with_log_prob()
    assert ((v >= 0) & (v <= 1)).all()
    torch.testing.assert_close(log_q, torch.full((5,), 3 * math.log(256)))
    assert not list(guide.parameters())


@pytest.mark.parametrize("make", [lambda: UniformDequantization(LEVELS, 2), variational])
def test_it_fits_the_model_and_reaches_every_parameter(make):
    guide, flow, x = make(), Flow(2, [ActNorm(2)], levels=LEVELS), torch.randint(LEVELS, (6, 2))
    check_pair(flow, guide, (x,))
    losses = []
    for loss in (Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)):
        torch.manual_seed(1)
        losses.append(loss.loss_and_grads(flow, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, parameter in (*flow.named_parameters(), *guide.named_parameters()):
        assert parameter.grad is not None, name
    particles = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(particles.loss(flow, guide, x))
    for clone in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.manual_seed(1)
        one = guide(x)
        torch.manual_seed(1)
        assert torch.equal(clone(x), one)


def test_the_learned_guide_tightens_the_bound():
    """The best q is p(v | x); the uniform one falls short by its divergence from it."""
    flow, guide = model(), variational()
    x = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))[5:11]
    inner = Normal(0.3, 0.2)
    inner = [
        inner.cdf(torch.tensor((k + 1) / LEVELS)) - inner.cdf(torch.tensor(k / LEVELS))
        for k in range(LEVELS)
    ]
    exact = torch.stack(inner)[x].log().sum().item()
    svi = SVI(
        flow,
        guide,
        Adam({"lr": 0.05}),
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    )
    for _ in range(80):
        svi.step(x)
    many = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    uniform = -many.loss(flow, UniformDequantization(LEVELS, 2), x)
    learned = -many.loss(flow, guide, x)
    # 2000 draws leave 0.02 nats of noise.
    assert uniform < learned - 0.2
    assert learned < exact + 0.1


@pytest.mark.parametrize("guide", [UniformDequantization(LEVELS, 2), variational()])
def test_what_cannot_be_dequantised_is_refused(guide):
    with pytest.raises(ValueError, match=r"expected data to infer v from .*model\(None"):
        guide(None, num_samples=3)
    with pytest.raises(ValueError, match=r"levels 0\.\.3, got values from -1 to 4"):
        guide(torch.tensor([[-1, 4]]))
    with pytest.raises(ValueError, match=r"expected dtype torch\.int64"):
        guide(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"expected shape \[\*, 2\]"):
        guide(torch.zeros(3, 3, dtype=torch.int64))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="levels: expected an integer above 1, got 1"):
        UniformDequantization(1, 2)
    with pytest.raises(ValueError, match="event_shape: expected positive integers"):
        UniformDequantization(4, (2, 0))
    with pytest.raises(ValueError, match="encoder: expected a network"):
        VariationalDequantization(4, 2, [AffineCoupling(2, context_dim=3)])
    with pytest.raises(TypeError, match=r"encoder: expected a torch\.nn.Module, got str"):
        VariationalDequantization(4, 2, [AffineCoupling(2)], encoder="mlp")
