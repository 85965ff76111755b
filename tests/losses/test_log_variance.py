"""Ground states by the variance of log-ratios: closed forms on the oscillator, refusals."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, LogVariance
from pyrogen.models import DoubleWell, FeynmanKac, Harmonic
from pyrogen.nn import Envelope, SymmetricNetwork, TimeMLP, WaveFunction

DOUBLE = torch.float64


def setting(rate=1.0, num_steps=20, walkers=200, duration=2.0):
    """The oscillator, and a Gaussian wave function of a rate."""
    start = torch.randn(walkers, 1, dtype=DOUBLE) / math.sqrt(2)
    model = FeynmanKac(
        Harmonic(), 1, duration, num_steps, num_walkers=walkers, initial=start
    ).double()
    psi = WaveFunction(Envelope(1, 1, rate=rate)).double()
    return model, PathDrift(model, drift=psi), psi


def drawn_path(loss, model, guide):
    """The paths ``[walkers, T + 1]`` of a step, of which the objective holds the noise."""
    loss.start(model, guide, (), {})
    carried = loss.carried
    for _ in range(loss.ahead):
        carried = loss.advance(carried, model, guide, (), {})
    return carried["x path"].squeeze(-1).T


def by_hand(path, rate, step):
    """Half the variance of the log-ratios, times the number of walkers."""
    before, increments = path[:, :-1], path.diff(dim=-1)
    ratio = (-rate * before * increments - 0.5 * (rate * before).square() * step).sum(-1)
    ratio = ratio + (0.5 * before.square() * step).sum(-1)
    ratio = ratio + 0.5 * rate * (path[:, -1].square() - path[:, 0].square())
    return 0.5 * len(path) * ratio.var(), ratio.mean()


@pytest.mark.parametrize("num_steps", [20, 7, 1])
def test_value_and_gradient_by_hand(num_steps):
    model, guide, psi = setting(rate=1.7, num_steps=num_steps)
    loss = LogVariance()
    pyro.set_rng_seed(5)
    path = drawn_path(loss, model, guide)
    assert path.shape == (200, num_steps + 1)
    log_rate = psi.terms[0].log_rate.detach().clone().requires_grad_()
    expected, mean = by_hand(path, log_rate.exp(), model.times.diff())
    expected.backward()
    pyro.set_rng_seed(5)
    value = loss.loss_and_grads(model, guide)
    assert math.isclose(value, expected.detach(), rel_tol=1e-10)
    torch.testing.assert_close(psi.terms[0].log_rate.grad, log_rate.grad)
    assert math.isclose(loss.energy, mean.detach() / 2.0, rel_tol=1e-10)
    torch.testing.assert_close(loss.carried["x"].squeeze(-1), path[:, -1])


def test_it_vanishes_at_the_ground_state_with_the_step():
    r"""There the log-ratio is :math:`\frac12 \sum \Delta x^2`, of variance about ``T h / 2``."""
    values = []
    for num_steps in (20, 80, 320):
        model, guide, _ = setting(num_steps=num_steps, walkers=2000)
        loss, step = LogVariance(), 2.0 / num_steps
        pyro.set_rng_seed(2)
        ratio = 0.5 * drawn_path(loss, model, guide).diff(dim=-1).square().sum(-1)
        pyro.set_rng_seed(2)
        value = loss.loss(model, guide) / 2000
        assert math.isclose(value, 0.5 * ratio.var(), rel_tol=1e-9)
        # (1/4) of the variance of T / h squares of N(0, h), within 6 errors of a variance of 2000
        # draws, and what drift adds to the increments, of the order of h.
        assert abs(value / (0.25 * 2.0 * step) - 1) < 6 * math.sqrt(2 / 2000) + 2 * step
        values.append(value)
    assert values[0] > 3 * values[1] > 9 * values[2]


def test_captured_steps_are_the_same():
    found = []
    for wrap in (lambda loss: loss, lambda loss: Compiled(loss, compile=False)):
        pyro.set_rng_seed(3)
        model, guide, psi = setting(rate=0.6, num_steps=12, walkers=20)
        inner = LogVariance()
        loss = wrap(inner)
        for _ in range(2):
            psi.zero_grad()
            value = loss.loss_and_grads(model, guide)
        found.append((torch.tensor(value), psi.terms[0].log_rate.grad, inner.carried))
    torch.testing.assert_close(*found)
    (captured,) = loss._pairs.values()
    assert len(captured._loss_and_grads.graphs) == 1
    assert set(found[0][-1]) == {"x", "x energy"}


def test_svi_finds_a_double_well():
    potential = DoubleWell(1.0)
    psi = WaveFunction(Envelope(1, 1), SymmetricNetwork(1, 1, width=16)).double()
    start = torch.randn(100, 1, dtype=DOUBLE)
    model = FeynmanKac(potential, 1, 1.0, 30, num_walkers=100, initial=start).double()
    loss = LogVariance()
    guide = PathDrift(model, drift=psi)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=loss)
    for _ in range(100):
        svi.step()
    grid = torch.linspace(-5.0, 5.0, 2001, dtype=DOUBLE).unsqueeze(-1)
    with torch.no_grad():
        density = (2 * psi.log_amplitude(grid)).softmax(0)
        energy = float((density * (potential(grid) + psi.local_kinetic(grid))).sum())
    # An upper bound, within 3 % after a short training.
    assert -1e-9 < energy - 0.869580918934 < 0.03


def test_other_guides_are_refused():
    model, _, _ = setting()
    with pytest.raises(TypeError, match=r"LogVariance: expected a guide whose drift.*TimeMLP"):
        LogVariance().loss(model, PathDrift(model, drift=TimeMLP(1)))
