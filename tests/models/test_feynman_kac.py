"""Paths weighed by a potential: the formula of Feynman and Kac, and what training with it finds."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyrogen import training
from pyrogen.errors import NonFiniteError
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, PathELBO
from pyrogen.models import DoubleWell, FeynmanKac, Harmonic, HookesAtom, Molecule
from tests.statistics import assert_mean_close


class Linear(torch.nn.Module):
    """The drift ``-a x``."""

    def __init__(self, a):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(float(a)))

    def forward(self, x, t=None):
        return -self.a * x


def stationary_variance(a, dt):
    """That of ``x <- (1 - a dt) x + sqrt(dt) z``."""
    return 1 / (a * (2 - a * dt))


def stationary_cost(a, dt):
    """The mean of ``(a^2 + 1) x^2 / 2``; for small steps ``a / 4 + 1 / (4 a)``."""
    return 0.5 * (a**2 + 1) * stationary_variance(a, dt)


def oscillator(a=1.0, num_walkers=1000, num_steps=20, duration=1.0):
    """Walkers that begin in the law that Euler's steps with the drift ``-a x`` keep."""
    std = stationary_variance(a, duration / num_steps) ** 0.5
    initial = dist.Normal(torch.zeros(1), std).to_event(1)
    return FeynmanKac(Harmonic(), 1, duration, num_steps, num_walkers, initial)


def log_factor(model, path):
    """The logarithm of the weight of paths that are given."""
    trace = poutine.trace(poutine.condition(model, {"x": path})).get_trace()
    return trace.nodes["potential"]["fn"].log_factor


@pytest.mark.parametrize(("duration", "expected"), [(1, 0.805018), (2, 0.515560), (5, 0.116083)])
def test_the_formula_of_feynman_and_kac(duration, expected):
    """``E exp(-int B^2 / 2) = cosh(T)^(-1/2)``, by the model's draws and their weights.

    On a grid the mean is that of a Gaussian, and exact: ``det(1 + dt C)^(-1/2)``, with the
    covariance ``C`` of the states. It tends to the closed form, with an error of order ``dt``.
    """

    def on_a_grid(steps):
        dt = duration / steps
        times = dt * torch.arange(steps, dtype=torch.float64)
        covariance = torch.minimum(times, times.unsqueeze(-1))
        return float(torch.linalg.det(torch.eye(steps) + dt * covariance) ** -0.5)

    coarse, fine, finest = (on_a_grid(steps) for steps in (100, 200, 400))
    limit = (8 * finest - 6 * fine + coarse) / 3
    assert limit == pytest.approx(math.cosh(duration) ** -0.5, abs=1e-6)
    assert limit == pytest.approx(expected, abs=2e-6)
    model = FeynmanKac(Harmonic(), 1, duration, 100, 20_000, torch.zeros(1))
    trace = poutine.trace(model).get_trace()
    assert_mean_close(trace.nodes["potential"]["fn"].log_factor.exp(), coarse)


def test_importance_weights_of_the_exact_drift_have_no_spread():
    """``v = -tanh(T - t) x``, whose paths are those of the posterior, up to Euler's steps."""
    duration = 2.0
    model = FeynmanKac(Harmonic(), 1, duration, 400, 2000, torch.zeros(1))
    guide = PathDrift(model, drift=lambda x, t: -torch.tanh(duration - t).unsqueeze(-1) * x)
    law = guide.law()
    path = law.rsample()
    log_weight = log_factor(model, path) - law.log_ratio(path, model.prior())
    # Of order sqrt(dt); of the prior's own weights it is 0.7 and more.
    assert float(log_weight.std()) < 0.1
    # The mean of the weights of this grid is that of the prior; 2e-3 apart from the limit.
    expected = math.cosh(duration) ** -0.5
    assert float(log_weight.exp().mean()) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "elbo",
    [
        PathELBO(),
        PathELBO(martingale=True),
        PathELBO(sticking_the_landing=True),
        Trace_ELBO(),
    ],
)
def test_the_loss_is_the_cost_of_the_oscillator(a, elbo):
    """In particular ``1 / (2 - dt)`` for ``v = -x``; all losses have the same mean."""
    model = oscillator(a, num_walkers=200)
    guide = PathDrift(model, drift=lambda x, t: -a * x)
    costs = torch.tensor([elbo.loss(model, guide) for _ in range(60)]) / 200
    assert_mean_close(costs, stationary_cost(a, model.dt))


def test_the_value_for_the_exact_drift():
    assert stationary_cost(1.0, 0.05) == pytest.approx(1 / (2 - 0.05))
    assert stationary_cost(0.7, 1e-9) == pytest.approx(0.7 / 4 + 1 / 2.8)


def test_scale_and_frequency_change_the_energy():
    """``-s^2 psi'' / 2 + w^2 x^2 / 2`` has the energy ``s w / 2``, with the drift ``-s w x``."""
    scale, frequency = 0.5, 3.0
    rate = scale * frequency
    std = (scale**2 * stationary_variance(rate, 0.01)) ** 0.5
    initial = dist.Normal(torch.zeros(1), std).to_event(1)
    model = FeynmanKac(Harmonic(1, frequency), 1, 1.0, 100, 200, initial, scale=scale)
    guide = PathDrift(model, drift=lambda x, t: -rate * x)
    costs = torch.tensor([PathELBO().loss(model, guide) for _ in range(60)]) / 200
    assert_mean_close(costs, rate / (2 - rate * 0.01))


def test_the_guide_begins_without_divergence():
    """A drift of zero costs the potential alone."""
    model = FeynmanKac(DoubleWell(), 1, 0.5, 10, 50)
    guide = PathDrift(model)
    path = guide()
    loss = PathELBO().loss(poutine.condition(model, {}), poutine.condition(guide, {}))
    assert path.shape == (50, 11, 1)
    assert loss > 0
    ratio = guide.law().log_ratio(path, model.prior())
    torch.testing.assert_close(ratio, torch.zeros(50))


@pytest.mark.parametrize("a", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("persistent", [True, False])
def test_the_boundary_term_corrects_the_gradient(a, persistent):
    """Of walkers in their stationary law, by the exact recursion of Euler's steps.

    With ``x' = rho x + noise`` the cost to go is ``k x^2 / 2``. The gradient along paths of length
    ``T`` from a fixed beginning lacks ``k E[x_T dx_T/da] / T`` of the derivative of the stationary
    cost ``C(a)``. The boundary term adds the same with the slope ``a`` of ``-log phi`` for ``k``,
    which is right at the optimum ``a = 1``, up to the step.
    """
    steps, walkers, repeats = 20, 500, 60
    model = oscillator(a, walkers, steps)
    dt = model.dt
    rho, variance = 1 - a * dt, stationary_variance(a, dt)
    cross = rho * dt * variance * (1 - rho ** (2 * steps)) / (1 - rho**2)  # -E[x_T dx_T/da]
    k = (a**2 + 1) / (a * (2 - a * dt))
    derivative = stationary_cost(a, dt) * (2 * a / (a**2 + 1) - 1 / a + dt / (2 - a * dt))
    expected = derivative + (k - a * persistent) * cross
    drift = Linear(a)
    guide = PathDrift(model, drift=drift)
    loss = PathELBO(persistent=persistent)
    gradients = []
    for _ in range(repeats):
        if persistent:  # independent of the last time
            loss.carried = {"x": model.prior().initial.sample()}
        drift.a.grad = None
        loss.loss_and_grads(model, guide)
        gradients.append(drift.a.grad / walkers)
    assert_mean_close(torch.stack(gradients), expected)
    bias = expected - derivative
    if a == 1.0:
        # Of -C'(1) there is nothing left but what the step does to k; without the term, 0.2.
        assert abs(bias) < 0.01 if persistent else bias > 0.2


def test_a_trained_oscillator():
    """By plain SVI, with persistent walkers: the drift ``-x``, and the energy 1/2.

    The cost of ``-a x`` exceeds 1/2 by ``(a - 1)^2 / (4 a)``. The step of 0.025 moves the ``a`` at
    which the gradient vanishes by about as much, to 0.97; its noise vanishes there.
    """
    model = FeynmanKac(Harmonic(), 1, 1.0, 40, 500)
    drift = Linear(0.3)
    guide = PathDrift(model, drift=drift)
    loss = PathELBO(sticking_the_landing=True, persistent=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.985}), loss=loss)
    for _ in range(200):
        svi.step()
    a = float(drift.a.detach())
    assert a / 4 + 1 / (4 * a) == pytest.approx(0.5, rel=1e-3)


def test_persistent_walkers_are_in_the_checkpoint(tmp_path):
    """A run in two parts ends where a run in one part ends, bit for bit."""

    def run(epochs, **options):
        pyro.set_rng_seed(1)
        model = FeynmanKac(DoubleWell(), 1, 0.4, 8, 20)
        guide = PathDrift(model)
        loss = PathELBO(persistent=True)
        settings = {"loss": loss, "max_epochs": epochs, "progress": False, **options}
        training.fit(model, guide, [model.walkers] * 3, **settings)
        parameters = [p.detach() for p in guide.parameters()]
        return [*parameters, loss.carried["x"]]

    whole = run(4)
    run(2, checkpoint_dir=tmp_path)
    again = run(4, checkpoint_dir=tmp_path)
    assert whole[-1].shape == (20, 1)
    assert all(map(torch.equal, again, whole))


def test_fit_reports_the_cost():
    """In nats per walker, times the duration."""
    model = oscillator(num_walkers=400)
    guide = PathDrift(model, drift=Linear(1.0))
    result = training.fit(
        model,
        guide,
        [model.walkers] * 50,
        loss=PathELBO(persistent=True),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        max_epochs=1,
        progress=False,
    )
    # 50 steps of 400 walkers; the spread of the cost of one is 0.6.
    assert result.history.train_loss[0] == pytest.approx(1 / (2 - 0.05), abs=5 * 0.6 / 20_000**0.5)


def test_some_walkers_alone():
    points = torch.arange(6.0).reshape(3, 2)
    model = FeynmanKac(Harmonic(2), 2, 1.0, 5, 3, points)
    chosen = torch.tensor([2, 0])
    assert torch.equal(PathDrift(model)(chosen)[:, 0], points[chosen])
    assert torch.equal(model(chosen)[:, 0], points[chosen])
    assert model().shape == (3, 6, 2)


def test_a_graph_has_the_same_loss_and_gradient():
    model = oscillator(num_walkers=50, num_steps=4)
    drift = Linear(0.8)
    guide = PathDrift(model, drift=drift)
    gradients = []
    for loss in (PathELBO(), Compiled(PathELBO(), compile=False)):
        pyro.set_rng_seed(2)
        drift.a.grad = None
        gradients.append((loss.loss_and_grads(model, guide), drift.a.grad.clone()))
    assert gradients[1][0] == pytest.approx(gradients[0][0], rel=1e-5)
    torch.testing.assert_close(gradients[1][1], gradients[0][1], rtol=1e-4, atol=0)


def test_double_precision():
    model = FeynmanKac(HookesAtom(), 6, 0.5, 5, 4).double()
    assert model().dtype == torch.float64


@pytest.mark.parametrize(
    ("potential", "got"),
    [
        (lambda x: x.square(), r"got \[2, 1, 3\]"),
        (lambda x: x.square().sum(), r"got \[\]"),
        (lambda x: x.square().sum(-1, keepdim=True), r"got \[2, 1, 1\]"),
        (lambda x: 0.0, "got float"),
    ],
)
def test_a_potential_of_a_wrong_shape_is_refused(potential, got):
    expected = r"potential: expected one number for each point, \[2, 1\] for points \[2, 1, 3\], "
    with pytest.raises(ValueError, match=expected + got):
        FeynmanKac(potential, dim=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim: expected a whole number above 0, got 0"),
        ({"num_steps": 1.5}, ValueError, "num_steps: expected a whole number above 0, got 1.5"),
        ({"duration": 0.0}, ValueError, "duration: expected a finite number above 0"),
        ({"initial": torch.zeros(2)}, ValueError, r"initial: expected a point \[1\] or points"),
        ({"initial": dist.Normal(0.0, 1.0)}, ValueError, r"a distribution of event \[1\]"),
        ({"initial": dist.Normal(torch.zeros(3, 1), 1.0).to_event(1)}, ValueError, "one law for"),
        ({"potential": 1.0}, TypeError, "potential: expected a function of points, got float"),
        ({"scale": 0.0}, ValueError, "scale: expected a finite number above 0"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        FeynmanKac(**{"potential": Harmonic(), "dim": 1, **options})


def test_exploding_walkers_are_named_with_the_step():
    model = FeynmanKac(Harmonic(), 1, 1.0, 20, 10)
    guide = PathDrift(model, drift=lambda x, t: x.pow(9) * 1e6)
    with pytest.raises(NonFiniteError, match="site 'x'") as caught:
        PathELBO().loss(model, guide)
    assert caught.value.site == "x"
    path = guide.law().sample()
    finite = path.isfinite().all(-1) & model.potential(path).isfinite()
    first = int((~finite).any(0).nonzero()[0])
    with pytest.raises(NonFiniteError, match=f"of 10 walkers at step {first} of 20") as caught:
        poutine.condition(model, {"x": path})()
    assert (caught.value.site, caught.value.step) == ("potential", first)


def test_a_singularity_of_the_potential_is_named_with_the_step():
    """A walker at the nucleus, after 3 of 5 steps."""
    model = FeynmanKac(Molecule.atom(1.0), 3, 1.0, 5, 4)
    path = torch.ones(4, 6, 3)
    path[2, 3] = 0.0
    with pytest.raises(NonFiniteError, match="for 1 of 4 walkers at step 3 of 5") as caught:
        poutine.condition(model, {"x": path})()
    assert caught.value.step == 3
