"""Ground states by local energy: value and gradient against quadrature, walkers, refusals."""

from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyrogen import training
from pyrogen.errors import NonFiniteError
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, LocalEnergy
from pyrogen.models import DoubleWell, FeynmanKac, Harmonic
from pyrogen.nn import Envelope, SymmetricNetwork, TimeMLP, WaveFunction
from tests.statistics import assert_follows, assert_mean_close

DOUBLE = torch.float64
GRID = torch.linspace(-5.0, 5.0, 4001, dtype=DOUBLE).unsqueeze(-1)


def wave():
    """On a line, away from any eigenfunction."""
    network = SymmetricNetwork(1, 1, width=4)
    torch.nn.init.normal_(network.last.weight, std=0.5)
    return WaveFunction(Envelope(1, 1, rate=1.5), network).double()


def exact(psi, potential):
    """The energy by quadrature, with its gradient in the parameters."""
    density = (2 * psi.log_amplitude(GRID)).softmax(0)
    return (density * (potential(GRID) + psi.local_kinetic(GRID))).sum()


def places(psi, count):
    """Independent draws of ``psi^2``, uniform within a cell of the grid."""
    with torch.no_grad():
        density = (2 * psi.log_amplitude(GRID)).softmax(0)
    cell = float(GRID[1, 0] - GRID[0, 0])
    x = GRID[torch.multinomial(density, count, replacement=True)]
    return x + cell * (torch.rand_like(x) - 0.5)


def pair(psi, potential, start, duration=1.0):
    start = start.to(DOUBLE)
    model = FeynmanKac(potential, 1, duration, 10, num_walkers=len(start), initial=start)
    return model, PathDrift(model, drift=psi)


def flat(psi):
    return torch.cat([p.grad.flatten() for p in psi.parameters()])


def test_value_and_gradient_are_those_of_the_energy():
    psi, potential = wave(), DoubleWell(2.0)
    energy = exact(psi, potential)
    energy.backward()
    expected = flat(psi).clone()
    values, gradients = [], []
    for _ in range(150):
        model, guide = pair(psi, potential, places(psi, 400), duration=3.0)
        psi.zero_grad()
        values.append(LocalEnergy(num_steps=1, warmup_steps=0).loss_and_grads(model, guide))
        gradients.append(flat(psi).clone())
    # 400 walkers for a duration of 3.
    assert_mean_close(torch.tensor(values) / 1200, energy)
    assert_mean_close(torch.stack(gradients) / 1200, expected)


def test_walkers_keep_the_law_psi_squared():
    """With steps so long that many are rejected."""
    psi = wave()
    model, guide = pair(psi, DoubleWell(1.0), places(psi, 4000))
    loss = LocalEnergy(num_steps=12, step_size=0.8, warmup_steps=20)  # ahead of the step too
    loss.loss(model, guide)
    start = loss.carried["x"].clone()
    loss.loss_and_grads(model, guide)
    x = loss.carried["x"]
    assert float((x != start).double().mean()) > 0.9
    with torch.no_grad():
        constant = (2 * psi.log_amplitude(GRID)).logsumexp(0) + math.log(GRID[1] - GRID[0])
        assert_follows(x, 2 * psi.log_amplitude(x) - constant)


def test_the_step_is_adapted():
    psi = wave()
    model, guide = pair(psi, DoubleWell(1.0), places(psi, 500))
    for begin in (1e-3, 50.0):
        loss = LocalEnergy(step_size=begin, warmup_steps=300)
        loss.loss(model, guide)
        assert 0.1 < float(loss.carried["x step size"]) < 5


def test_no_variance_at_an_eigenfunction():
    psi = WaveFunction(Envelope(1, 1)).double()
    model, guide = pair(psi, Harmonic(), torch.randn(50, 1))
    loss = LocalEnergy()
    assert math.isclose(loss.loss_and_grads(model, guide), 25.0, rel_tol=1e-12)
    assert float(flat(psi).abs().max()) < 1e-10
    assert math.isclose(loss.energy, 0.5, rel_tol=1e-12)


def test_captured_steps_are_the_same():
    psi = wave()
    model, guide = pair(psi, DoubleWell(1.0), places(psi, 30))
    found = []
    for wrap in (lambda loss: loss, lambda loss: Compiled(loss, compile=False)):
        pyro.set_rng_seed(3)
        inner = LocalEnergy(num_steps=12, warmup_steps=5, clip=2.0)
        loss = wrap(inner)
        for _ in range(2):
            psi.zero_grad()
            value = loss.loss_and_grads(model, guide)
        found.append((torch.tensor(value), flat(psi).clone(), inner.carried))
    torch.testing.assert_close(*found)
    (captured,) = loss._pairs.values()
    assert len(captured._loss_and_grads.graphs) == 1


def test_training_continues_from_what_is_carried():
    ends = []
    for interrupted in (False, True):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        psi, loss = wave(), LocalEnergy(warmup_steps=5)
        model, guide = pair(psi, DoubleWell(1.0), torch.randn(30, 1))
        for _ in range(2):
            loss.loss_and_grads(model, guide)
        if interrupted:
            carried = copy.deepcopy(loss.carried)
            loss = LocalEnergy(warmup_steps=5)
            loss.carry(carried)
        ends.append(loss.loss_and_grads(model, guide))
    assert ends[0] == ends[1]


def test_svi_finds_a_double_well():
    psi = WaveFunction(Envelope(1, 1), SymmetricNetwork(1, 1, width=16)).double()
    model, guide = pair(psi, DoubleWell(1.0), torch.randn(300, 1))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=LocalEnergy())
    for _ in range(300):
        svi.step()
    excess = float(exact(psi, DoubleWell(1.0)).detach()) - 0.869580918934
    # Above the exact energy, by the quality of a short training, 5 % of the gap to the next level.
    assert -1e-9 < excess < 0.02


def test_fit_trains_it():
    psi = WaveFunction(Envelope(1, 1, rate=2.0))
    model = FeynmanKac(Harmonic(), 1, num_walkers=200, num_steps=5)
    result = training.fit(
        model,
        PathDrift(model, drift=psi),
        [model.walkers] * 30,
        loss=LocalEnergy(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.03),
        max_epochs=3,
        progress=False,
    )
    # The loss per walker for a duration of 1; at the rate a it is a / 4 + 1 / (4 a).
    assert abs(result.history.train_loss[-1] - 0.5) < 0.01


def test_walkers_of_another_model_are_refused():
    loss = LocalEnergy(warmup_steps=0)
    loss.loss(*pair(wave(), Harmonic(), torch.randn(5, 1)))
    with pytest.raises(ValueError, match=r"expected walkers \[6, 1\].*got \[5, 1\]"):
        loss.loss(*pair(wave(), Harmonic(), torch.randn(6, 1)))


def test_clipping_is_reported():
    psi, potential = wave(), DoubleWell(2.0)
    model, guide = pair(psi, potential, places(psi, 200))
    gradients = []
    for clip in (None, 1e6, 0.5):
        pyro.set_rng_seed(1)
        psi.zero_grad()
        loss = LocalEnergy(clip=clip, warmup_steps=0)
        loss.loss_and_grads(model, guide)
        gradients.append(flat(psi).clone())
        assert (loss.num_clipped > 0) == (clip == 0.5)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert float((gradients[2] - gradients[0]).norm()) > 1e-3 * float(gradients[0].norm())


def test_other_guides_and_models_are_refused():
    psi = wave()
    model, guide = pair(psi, Harmonic(), torch.randn(5, 1))
    loss = LocalEnergy()
    with pytest.raises(TypeError, match=r"the gradient of a wave function.*TimeMLP.*PathELBO"):
        loss.loss(model, PathDrift(model, drift=TimeMLP(1)))
    with pytest.raises(TypeError, match=r"a potential and paths.*got function"):
        loss.loss(lambda: None, guide)
    heavy = FeynmanKac(Harmonic(), 1, scale=0.5)
    with pytest.raises(ValueError, match=r"unit mass, Brownian\(scale=1.0\)"):
        loss.loss(heavy, PathDrift(heavy, drift=psi))
    lonely = FeynmanKac(Harmonic(), 1, num_walkers=1)
    with pytest.raises(ValueError, match="at least 2 walkers"):
        loss.loss(lonely, PathDrift(lonely, drift=psi))
    for options in ({"num_steps": 0}, {"step_size": 0.0}, {"clip": -1.0}, {"warmup_steps": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LocalEnergy(**options)


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")  # Pyro's, of the eager run
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: Compiled(loss, compile=False)])
def test_an_energy_that_is_not_finite(wrap):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("worth", torch.tensor(1.0, dtype=DOUBLE))

        def forward(self, x):
            return self.worth * x.square().sum(-1)

    potential = Broken()
    model, guide = pair(wave(), potential, torch.randn(20, 1))
    loss = wrap(LocalEnergy(warmup_steps=2))
    loss.loss_and_grads(model, guide)
    potential.worth.fill_(math.inf)
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan; not finite at") as caught:
        loss.loss_and_grads(model, guide)
    assert caught.value.step == 1
    assert caught.value.site in {"x", "potential"}
