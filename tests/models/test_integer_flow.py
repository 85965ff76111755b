"""Integer flows: probabilities that add up, by enumeration."""

from __future__ import annotations

import copy

import pytest
import torch
from pyro.distributions.transforms import Permute
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.distributions import AffineTransform

from pyrogen.guides import Empty
from pyrogen.losses import Compiled
from pyrogen.models import IntegerFlow, LogisticMixtureBase
from pyrogen.transforms import IntegerCoupling
from tests.statistics import assert_mean_close


def model(dim=2, scale=1.0):
    base = LogisticMixtureBase(dim, num_components=2, scale=scale)
    layers = []
    for swap in (False, True, False):
        layers += [IntegerCoupling(dim, split=1, swap=swap, hidden=(8,), scale=4.0)]
    flow = IntegerFlow(base, [*layers, Permute(torch.arange(dim).flip(0))])
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow.double()


def box(reach):
    axis = torch.arange(-reach, reach + 1)
    return torch.cartesian_prod(axis, axis)


def test_probabilities_over_a_box_sum_to_one():
    flow = model()
    with torch.no_grad():
        total = flow.log_prob(box(150)).exp().sum().item()
        # What is outside of the box, from the tails of the base and how far a coupling moves.
        base = flow.base()
        inner = base.log_prob(box(30).double()).exp().sum().item()
    assert inner > 1 - 1e-8
    assert total == pytest.approx(1, abs=1e-8)


def test_draws_have_their_probabilities():
    flow = model()
    draws = flow(None, num_samples=50_000)
    assert draws.dtype == torch.int64
    cells, counts = draws.unique(dim=0, return_counts=True)
    cells = cells[counts > 500]
    seen = (draws.unsqueeze(1) == cells).all(-1).double()
    assert len(cells) > 5
    assert_mean_close(seen, flow.log_prob(cells).exp())


def test_the_loss_is_the_code_length():
    flow, x = model(), box(3)
    exact = -flow.log_prob(x).sum().item()
    assert Trace_ELBO().loss(flow, Empty(), x) == pytest.approx(exact, rel=1e-12)
    captured = Compiled(Trace_ELBO(), compile=False)
    assert captured.loss(flow, Empty(), x) == pytest.approx(exact, rel=1e-9)
    assert torch.equal(flow(x), x)


def test_svi_shortens_the_code_through_rounding():
    flow = IntegerFlow(
        LogisticMixtureBase(2, num_components=1, scale=5.0),
        [IntegerCoupling(2, torch.nn.Linear(1, 1), scale=5.0)],
    )
    first = torch.randint(-20, 21, (500, 1))
    x = torch.cat([first, first + torch.randint(-1, 2, (500, 1))], -1)
    svi = SVI(flow, Empty(), Adam({"lr": 0.04}), Trace_ELBO())
    for _ in range(200):
        svi.step(x)
    bits = -flow.log_prob(x).mean().item()
    entropy = torch.tensor(41.0 * 3).log().item()
    # Independent coding of both cannot be shorter than 2 log 41 less what the sum spreads, 7.3.
    assert entropy - 0.1 < bits < entropy + 1.2


def test_what_does_not_fit_is_refused():
    flow = model()
    with pytest.raises(ValueError, match=r"expected dtype torch\.int64, got torch\.float64"):
        flow(torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected shape \[\*, 2\]"):
        flow(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_samples: expected None with data"):
        flow(torch.zeros(3, 2, dtype=torch.int64), num_samples=2)
    with pytest.raises(TypeError, match="base: expected a shape or a module, got float"):
        IntegerFlow(2.0)
    with pytest.raises(ValueError, match="scale: expected a positive finite number, got 0"):
        LogisticMixtureBase(2, scale=0)
    with pytest.raises(ValueError, match="event_shape, num_components: expected positive"):
        LogisticMixtureBase((2, 0))
    real = IntegerFlow(2, [AffineTransform(0.5, 1.0)])
    with pytest.raises(ValueError, match="support"):
        Trace_ELBO().loss(real, Empty(), torch.ones(3, 2, dtype=torch.int64))


def test_integers_that_the_dtype_does_not_hold_are_refused():
    flow = IntegerFlow(LogisticMixtureBase(1, scale=2.0**25))
    for sign in (-1, 1):
        edge = torch.tensor([[sign * 2**24]])
        assert torch.equal(flow(edge), edge)
        with pytest.raises(ValueError, match=r"up to 16777216, as torch\.float32 holds them"):
            flow(edge + sign)
        with pytest.raises(ValueError, match=r"convert the model with \.double\(\)"):
            flow.log_prob(edge + sign)
        assert torch.equal(copy.deepcopy(flow).double()(edge + sign), edge + sign)
