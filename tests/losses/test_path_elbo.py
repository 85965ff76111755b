"""The ELBO of paths: its three forms, persistent walkers, what it refuses."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrogen.distributions import Path
from pyrogen.errors import NonFiniteError
from pyrogen.losses import Compiled, PathELBO
from pyrogen.modes import local_parameters
from pyrogen.processes import Brownian, OrnsteinUhlenbeck

DOUBLE = torch.float64
FORMS = {
    "kl": PathELBO(),
    "whole": PathELBO(martingale=True),
    "sticking": PathELBO(sticking_the_landing=True),
}
every_form = pytest.mark.parametrize("loss", FORMS.values(), ids=list(FORMS))


class Pair(nn.Module):
    """Paths from 0 whose ends were measured, a plate of them, and a guide that steers."""

    def __init__(self, steps=20, spread=1.0):
        super().__init__()
        self.pull = nn.Parameter(torch.tensor(0.6, dtype=DOUBLE))
        self.times = torch.linspace(0.0, 1.0, steps + 1, dtype=DOUBLE)
        self.spread = spread

    def prior(self, y):
        return Path(Brownian(), torch.zeros(len(y), 1, dtype=DOUBLE), self.times)

    def model(self, y):
        with pyro.plate("data", len(y), dim=-1):
            x = pyro.sample("x", self.prior(y))
            pyro.sample("y", dist.Normal(x[..., -1, 0], self.spread), obs=y)

    def guide(self, y):
        pyro.module("pair", self)
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("x", self.prior(y).steered(self.control(y)))

    def control(self, y):
        def toward(x, t):
            end = y.unsqueeze(-1) if x.dim() == 2 else y.reshape(-1, 1, 1)
            return self.pull * (end - x) / (2 - t.unsqueeze(-1))

        return toward


def gradient(loss, pair, y):
    pair.pull.grad = None
    value = loss.loss_and_grads(pair.model, pair.guide, y)
    return value, float(pair.pull.grad)


def test_whole_is_trace_elbo():
    pair, y = Pair(), torch.tensor([1.0, -0.4, 0.3], dtype=DOUBLE)
    with local_parameters():
        torch.manual_seed(0)
        expected = gradient(Trace_ELBO(), pair, y)
        torch.manual_seed(0)
        assert gradient(FORMS["whole"], pair, y) == pytest.approx(expected, rel=1e-9)


@every_form
def test_every_form_has_the_mean_of_trace_elbo(loss):
    pair, y = Pair(8), torch.ones(1000, dtype=DOUBLE)
    found = torch.tensor([gradient(loss, pair, y) for _ in range(40)]) / 1000
    reference = torch.tensor([gradient(Trace_ELBO(), pair, y) for _ in range(100)]) / 1000
    error = (found.var(0) / 40 + reference.var(0) / 100).sqrt()
    assert ((found.mean(0) - reference.mean(0)).abs() < 4.5 * error).all()


def test_at_the_posterior_sticking_the_landing_has_no_variance():
    def spread(name, steps):
        pair, y = Pair(steps), torch.ones(1, dtype=DOUBLE)
        pair.pull.data.fill_(1.0)
        found = [gradient(FORMS[name], pair, y)[1] for _ in range(60)]
        return float(torch.tensor(found).std())

    fine = spread("sticking", 80)
    assert fine < 0.4 * spread("sticking", 20)  # it is of the order of the step
    assert spread("whole", 80) > 10 * fine
    assert spread("kl", 80) > 10 * fine


def test_weight_of_the_divergence():
    pair, y = Pair(), torch.ones(3, dtype=DOUBLE)
    values = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(1)
        values.append(PathELBO(kl_weight=weight).loss(pair.model, pair.guide, y))
    assert values[1] == pytest.approx((values[0] + values[2]) / 2)
    assert values[2] > values[0]
    assert "kl_weight=0.5" in repr(PathELBO(kl_weight=0.5))


@every_form
def test_captured_is_uncompiled(loss):
    pair, y = Pair(4), torch.tensor([1.0, -0.4], dtype=DOUBLE)
    with local_parameters():
        torch.manual_seed(0)
        expected = gradient(loss, pair, y)
        torch.manual_seed(0)
        assert gradient(Compiled(loss, compile=False), pair, y) == pytest.approx(expected, rel=1e-9)


def test_importance_weighted():
    pair, y = Pair(100), torch.ones(1, dtype=DOUBLE)
    pair.pull.data.fill_(1.0)
    elbo = RenyiELBO(alpha=0, num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    loss = PathELBO(martingale=True, elbo=elbo)

    class Wide(Pair):
        def control(self, y):
            return lambda x, t: self.pull * (1 - x) / (2 - t.unsqueeze(-1))

    pair.__class__ = Wide
    bound = -loss.loss(pair.model, pair.guide, y)
    evidence = float(dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0)))
    assert bound == pytest.approx(evidence, abs=0.02)  # the step is 0.01


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_every_elbo_scores_the_other_sites(elbo):
    pair, y = Pair(), torch.ones(3, dtype=DOUBLE)
    torch.manual_seed(2)
    value = PathELBO(elbo=elbo).loss(pair.model, pair.guide, y)
    torch.manual_seed(2)
    law = pair.prior(y).steered(pair.control(y))
    path = law.rsample()
    likelihood = dist.Normal(path[:, -1, 0], 1.0).log_prob(y)
    expected = (law.log_ratio(path, pair.prior(y), martingale=False) - likelihood).sum()
    assert value == pytest.approx(float(expected.detach()))


def test_an_observed_path_is_scored_by_its_density():
    theta = torch.tensor(0.3, requires_grad=True)
    law = Path(OrnsteinUhlenbeck(), torch.zeros(1), torch.linspace(0.0, 1.0, 6))
    path = law.sample()
    loss = PathELBO()

    def model():
        steered = law.steered(lambda x, t: theta + 0 * x)
        pyro.sample("x", steered, obs=path)

    value = loss.differentiable_loss(model, lambda: None)
    expected = -law.steered(lambda x, t: theta + 0 * x).log_prob(path)
    assert float(value.detach()) == pytest.approx(float(expected.detach()))


class Walkers(nn.Module):
    """A harmonic ground state: Brownian walkers that pay for the potential, steered by -a x."""

    def __init__(self, a=0.7, steps=20, walkers=2000):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=DOUBLE))
        self.times = torch.linspace(0.0, 1.0, steps + 1, dtype=DOUBLE)
        self.walkers = walkers

    def prior(self):
        return Path(Brownian(), torch.zeros(self.walkers, 1, dtype=DOUBLE), self.times)

    def model(self):
        with pyro.plate("walkers", self.walkers, dim=-1):
            x = pyro.sample("x", self.prior())
            pyro.factor("potential", -0.5 * x[..., :-1, 0].square().mean(-1))

    def guide(self):
        pyro.module("walkers", self)
        with pyro.plate("walkers", self.walkers, dim=-1):
            pyro.sample("x", self.prior().steered(lambda x, t: -self.a * x))


def test_persistent_paths_go_on_where_they_ended():
    program, loss = Walkers(walkers=3), PathELBO(persistent=True)
    assert not loss.carried
    for _ in range(2):
        loss.loss_and_grads(program.model, program.guide)
        ends = loss.carried["x"].clone()
        torch.manual_seed(3)
        start = program.prior().started_at(ends)
        expected = start.steered(lambda x, t: -program.a * x).sample()
        torch.manual_seed(3)
        loss.loss_and_grads(program.model, program.guide)
        torch.testing.assert_close(loss.carried["x"], expected[:, -1])
        torch.manual_seed(4)
        loss.loss(program.model, program.guide)  # evaluating moves nothing
        torch.testing.assert_close(loss.carried["x"], expected[:, -1])


def test_gradient_of_persistent_paths_is_that_of_the_stationary_cost():
    """Of v = -a x in Euler's steps: C(a) = (a^2 + 1) s / 2 with the variance s = 1 / (2a - a^2 h),
    whose derivative the gradient of a path of any length has, thanks to the cost to go, where the
    drift is the best one, and nearly so around it."""
    a, h = 1.0, 0.05
    program, loss = Walkers(a, steps=20, walkers=4000), PathELBO(persistent=True)

    def derivative(a):
        s = 1 / (2 * a - a * a * h)
        return a * s - 0.5 * (a * a + 1) * (2 - 2 * a * h) * s * s

    for _ in range(6):  # the law becomes stationary
        loss.loss(program.model, program.guide)
        loss.loss_and_grads(program.model, program.guide)
    found = []
    for _ in range(60):
        program.a.grad = None
        loss.loss_and_grads(program.model, program.guide)
        found.append(program.a.grad / 4000)
    # The boundary term is that of continuous time, right up to the step h.
    found = torch.stack(found)
    assert abs(float(found.mean()) - derivative(a)) < h * 0.5 + 5 * float(found.std()) / 60**0.5
    without = -0.5 * 0.5  # what is missing from the derivative without it, -v' <x^2> / T
    assert abs(float(found.mean()) + without - derivative(a)) > 0.15


def test_an_oscillator_is_learned():
    pyro.set_rng_seed(0)
    program = Walkers(0.4, steps=20, walkers=500)
    svi = SVI(
        program.model,
        program.guide,
        pyro.optim.Adam({"lr": 0.02}),
        loss=PathELBO(martingale=True, persistent=True),
    )
    losses = torch.tensor([svi.step() / 500 for _ in range(200)])
    # The best a of Euler's steps of h = 0.05 is within h of 1.
    assert float(program.a.detach()) == pytest.approx(1.0, abs=0.07)
    assert float(losses[-50:].mean()) == pytest.approx(1 / (2 - 0.05), abs=0.02)


def test_walkers_that_explode_are_named():
    program, loss = Walkers(-40_000.0, steps=200, walkers=3), PathELBO(persistent=True)
    with pytest.raises(NonFiniteError, match=r"step 0: 3 of 3 paths of site 'x'"):
        loss.loss_and_grads(program.model, program.guide)
    said = pytest.warns(UserWarning, match="Encountered NaN")  # by Pyro
    named = pytest.raises(NonFiniteError, match=r"step 0: .*site 'x'")
    with pyro.validation_enabled(False), said, named:
        loss.loss_and_grads(program.model, program.guide)


def test_options_are_checked():
    with pytest.raises(ValueError, match="kl_weight: expected a number of at least 0"):
        PathELBO(kl_weight=-1.0)
    with pytest.raises(ValueError, match="martingale: expected True with RenyiELBO"):
        PathELBO(elbo=RenyiELBO(num_particles=2))
    with pytest.raises(ValueError, match="num_particles: expected 1 with persistent"):
        PathELBO(persistent=True, elbo=Trace_ELBO(num_particles=2))
    with pytest.raises(TypeError, match="elbo: expected an ELBO"):
        PathELBO(elbo="Trace_ELBO")


def test_programs_without_a_path_are_refused():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="PathELBO: expected a model with a site of Path"):
        PathELBO().loss(model, model)


def test_another_law_in_the_guide_is_scored_by_its_density():
    law = Path(Brownian(), torch.zeros(1), torch.linspace(0.0, 1.0, 6))
    flat = dist.Normal(torch.zeros(6, 1), 1.0).to_event(2)

    def model():
        pyro.sample("x", law)

    def guide():
        pyro.sample("x", flat)

    with pyro.validation_enabled(False):
        torch.manual_seed(0)
        value = PathELBO().loss(model, guide)
        torch.manual_seed(0)
        path = flat.sample()
        expected = flat.log_prob(path) - law.log_prob(path)
    assert value == pytest.approx(float(expected), rel=1e-5)


def test_a_path_that_only_the_guide_has_is_refused():
    law = Path(Brownian(), torch.zeros(1), torch.linspace(0.0, 1.0, 6))

    def model():
        pyro.sample("x", law)

    def guide():
        pyro.sample("x", law)
        pyro.sample("w", law)

    found = pytest.warns(UserWarning, match="in guide but not model")
    with found, pytest.raises(ValueError, match=r"'w'.*in the guide only"):
        PathELBO().loss(model, guide)
