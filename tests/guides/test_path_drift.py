"""The guide of a latent path: divergence zero at first, what it learns, copies of it."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyrogen.distributions import Path
from pyrogen.guides import PathDrift
from pyrogen.losses import PathELBO
from pyrogen.processes import Brownian, OrnsteinUhlenbeck


class Measured(PyroModule):
    """A path whose end was measured with deviation 0.5."""

    path_site, path_plate = "x", None

    def __init__(self, initial=None):
        super().__init__()
        self.initial = torch.zeros(1) if initial is None else initial
        self.process = Brownian()

    def prior(self, y=None):
        return Path(self.process, self.initial, torch.linspace(0.0, 1.0, 21))

    def forward(self, y=None):
        x = pyro.sample("x", self.prior())
        return pyro.sample("y", dist.Normal(x[..., -1, :], 0.5).to_event(1), obs=y)


class Many(Measured):
    """Such paths in a plate."""

    path_plate = "data"

    def prior(self, y=None):
        start = torch.zeros(3 if y is None else len(y), 1)
        return Path(self.process, start, torch.linspace(0.0, 1.0, 21))

    def forward(self, y=None):
        prior = self.prior(y)
        with pyro.plate("data", prior.batch_shape[0], dim=-1):
            x = pyro.sample("x", prior)
            return pyro.sample("y", dist.Normal(x[..., -1, :], 0.5).to_event(1), obs=y)


NORMAL = dist.Normal(torch.tensor([1.0]), 2.0).to_event(1)


@pytest.mark.parametrize("model", [Measured(), Many(), Measured(NORMAL)])
def test_the_divergence_is_zero_at_first(model):
    guide = PathDrift(model)
    law = guide.law()
    path = law.rsample()
    assert bool((law.log_ratio(path, model.prior()) == 0).all())
    assert pyro.poutine.trace(guide).get_trace().nodes["x"]["fn"].batch_shape == law.batch_shape


def test_a_measured_end_is_inferred():
    pyro.set_rng_seed(0)
    model, y = Many(), torch.full((128, 1), 1.5)  # many paths, each with the same end
    guide = PathDrift(model)
    loss = PathELBO(sticking_the_landing=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.985}), loss=loss)
    for _ in range(200):
        svi.step(y)
    ends = guide.law(torch.zeros(4000, 1)).sample()[:, -1, 0]
    # The posterior of the end is N(1.5 / 1.25, 0.2), and log p(y) the most that the bound can be.
    assert float(ends.mean()) == pytest.approx(1.2, abs=0.05)
    assert float(ends.std()) == pytest.approx(0.2**0.5, abs=0.04)
    evidence = dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(1.5))
    bound = -torch.tensor([svi.evaluate_loss(y) / 128 for _ in range(20)])
    error = float(bound.std()) / 20**0.5
    assert float(evidence) - 0.05 < float(bound.mean()) < float(evidence) + 0.01 + 5 * error


def test_a_beginning_that_is_learned_starts_at_the_models():
    model = Measured(NORMAL)
    guide = PathDrift(model, initial="normal")
    law = guide.law()
    assert float(law.initial.mean.detach()) == 1.0
    assert float(law.initial.stddev.detach()) == 2.0
    names = dict(guide.named_parameters())
    assert {"initial.mean", "initial.std_unconstrained"} <= set(names)
    Trace_ELBO().loss_and_grads(model, guide, torch.ones(1))
    assert float(guide.initial.mean.grad.abs()) > 0


def test_a_beginning_of_ones_own():
    class At(nn.Module):
        def forward(self):
            return dist.Normal(torch.full((1,), 5.0), 0.01).to_event(1)

    law = PathDrift(Measured(NORMAL), initial=At()).law()
    assert float(law.sample()[0]) == pytest.approx(5.0, abs=0.1)


def test_draws_of_predictive_have_their_shapes():
    model = Many()
    guide = PathDrift(model)
    y = torch.zeros(4, 1)
    draws = Predictive(model, guide=guide, num_samples=5, return_sites=("x", "y"))(y)
    assert draws["x"].shape == (5, 4, 21, 1)
    assert model().shape == (3, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal_and_their_own(copied):
    guide = PathDrift(Measured())
    nn.init.ones_(guide.drift.layers[-1].weight)
    other = copied(guide)
    x, t = torch.randn(6, 1), torch.tensor(0.3)
    assert torch.equal(other.drift(x, t), guide.drift(x, t))
    with torch.no_grad():
        other.drift.layers[-1].weight.zero_()
    assert float(guide.drift(x, t).detach().abs().sum()) > 0
    fresh = PathDrift(Measured())
    fresh.load_state_dict(guide.state_dict())
    assert torch.equal(fresh.drift(x, t), guide.drift(x, t))


def test_parameters_are_the_guides_alone():
    model = Measured()
    model.process = OrnsteinUhlenbeck()
    model.weight = nn.Parameter(torch.zeros(1))
    assert all(name.startswith("drift") for name, _ in PathDrift(model).named_parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="model: expected one with a latent path"):
        PathDrift(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="drift: expected a function"):
        PathDrift(Measured(), drift=3.0)
    with pytest.raises(ValueError, match="initial: expected 'normal', a module or None"):
        PathDrift(Measured(NORMAL), initial="uniform")
    with pytest.raises(ValueError, match="initial: expected None"):
        PathDrift(Measured(), initial="normal")
