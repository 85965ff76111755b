"""Annealed importance sampling against normalisers that are known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits

from pyrogen.diagnostics import ais
from pyrogen.distributions import CategoricalUnits, EnergyBased, Harmonium, SpinUnits
from pyrogen.guides import Empty
from pyrogen.kernels import HMC, BlockGibbs
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import Ising, Potts, RestrictedBoltzmannMachine
from tests.statistics import TEST_FAILURE_RATE

SURE = 1 - TEST_FAILURE_RATE


def assert_covers(estimate, log_z):
    low, high = estimate.interval
    assert low <= log_z <= high
    assert abs(estimate.log_z - log_z) <= high - low


@pytest.mark.parametrize("size", [4, 6, 8])
@pytest.mark.parametrize("coupling", [0.2, 0.4406868])
def test_ising(size, coupling):
    model = Ising((size, size), coupling).double()
    estimate = ais(model, num_chains=200, num_temperatures=400, prob=SURE, compile=False)
    assert_covers(estimate, float(model.exact_log_z()))
    assert estimate.exact_start == (size < 8)
    assert estimate.interval[1] - estimate.interval[0] < 0.8


def test_a_machine_of_16_hidden_units_on_digits():
    scans = torch.as_tensor(load_digits(return_X_y=True)[0], dtype=torch.float32)
    data = torch.bernoulli(scans / 16)[:1792]
    rbm, guide = RestrictedBoltzmannMachine(64, 16), Empty()
    rbm.initialize(data)
    loss = Compiled(ContrastiveDivergence(BlockGibbs(), persistent=True))
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.05 / 64)
    for _ in range(40):
        for batch in data[torch.randperm(1792)].split(64):
            optimizer.zero_grad()
            loss.loss_and_grads(rbm, guide, batch)
            optimizer.step()
    exact = float(rbm.double().distribution().exact_log_z().detach())
    estimate = ais(
        rbm, num_chains=500, num_temperatures=2000, base_mean=data.mean(0).clamp(0.01, 0.99)
    )
    assert abs(estimate.log_z - exact) < 0.05
    assert estimate.interval[0] <= exact <= estimate.interval[1]
    assert estimate.ess > 100
    assert estimate.exact_start
    # the two sides of the sandwich, each but for its own error
    error = {n: math.sqrt((500 / n - 1) / 499) for n in (estimate.ess, estimate.reverse_ess)}
    assert estimate.forward <= exact + 4 * error[estimate.ess]
    assert estimate.reverse >= exact - 4 * error[estimate.reverse_ess]


def test_other_units():
    fn = Harmonium(
        torch.randn(12, 5).double(),
        torch.randn(12).double(),
        torch.randn(5).double(),
        CategoricalUnits(3),
        SpinUnits(),
    )
    start = fn.units.mean(torch.randn(12).double())
    for base_mean in (None, start):
        estimate = ais(
            fn, num_chains=300, num_temperatures=300, base_mean=base_mean, prob=SURE, compile=False
        )
        assert_covers(estimate, float(fn.exact_log_z()))


def test_potts_from_the_model_or_its_distribution():
    model = Potts((3, 3), 3, coupling=0.6).double()
    exact = float(model.distribution().exact_log_z().detach())
    for target in (model, model.distribution()):
        estimate = ais(target, num_chains=200, num_temperatures=200, prob=SURE, compile=False)
        assert_covers(estimate, exact)


def test_the_error_is_as_said():
    """Over repetitions the estimate scatters as its standard error says, and low and high."""
    fn = Harmonium(*(torch.randn(s).double() for s in ((8, 6), (8,), (6,))))
    exact = float(fn.exact_log_z())
    runs = [ais(fn, num_chains=50, num_temperatures=20, compile=False) for _ in range(60)]
    forward = torch.tensor([run.forward - exact for run in runs])
    reverse = torch.tensor([run.reverse - exact for run in runs])
    said = torch.tensor([math.sqrt((50 / run.ess - 1) / 49) for run in runs])
    # a variance of 60 normal numbers is within a factor 2.3 of the truth, but for 2e-5
    assert 1 / 2.3 < float(forward.square().mean() / said.square().mean()) < 2.3
    assert forward.exp().mean() == pytest.approx(1, abs=5 * float(said.mean()) / 60**0.5)
    assert (-reverse).exp().mean() == pytest.approx(1, abs=5 * float(said.mean()) / 60**0.5)


def test_any_energy_over_a_normalised_base():
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    fn = EnergyBased(lambda x: 1.5 * x.square().sum(-1), base)

    def model():
        pyro.sample("x", fn)

    estimate = ais(
        model,
        num_chains=200,
        num_temperatures=100,
        kernel=HMC(step_size=0.3, num_steps=3),
        burn_in=50,
        prob=SURE,
        compile=False,
    )
    assert_covers(estimate, -1.5 * math.log(4.0))
    forward = ais(fn, num_temperatures=50, kernel=HMC(step_size=0.3), reverse=False, compile=False)
    assert forward.reverse is None
    assert forward.log_z == forward.forward


def test_constrained_points():
    base = dist.Gamma(torch.full((2,), 2.0, dtype=torch.float64), 1.0).to_event(1)
    fn = EnergyBased(lambda x: x.sum(-1), base)  # to the rate 2: each factor is 1/4
    kernel = HMC(step_size=0.4, num_steps=3)
    estimate = ais(
        fn,
        num_chains=200,
        num_temperatures=100,
        kernel=kernel,
        burn_in=50,
        prob=SURE,
        compile=False,
    )
    assert_covers(estimate, -2 * math.log(4.0))


def test_too_few_temperatures_are_noticed():
    fn = Harmonium(5 * torch.randn(20, 20), torch.randn(20), torch.randn(20))
    with pytest.warns(UserWarning, match="more temperatures"):
        ais(fn, num_chains=50, num_temperatures=2, compile=False)


def test_wrong_arguments():
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    fn = EnergyBased(lambda x: x.sum(-1), base)
    with pytest.raises(ValueError, match="kernel: expected one"):
        ais(fn)
    with pytest.raises(ValueError, match="num_temperatures"):
        ais(fn, num_temperatures=1)
    with pytest.raises(ValueError, match="first site"):
        ais(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    improper = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
    with pytest.raises(ValueError, match="normalised"):
        ais(EnergyBased(lambda x: x.square().sum(-1), improper), kernel=HMC(step_size=0.1))
    rbm = RestrictedBoltzmannMachine(4, 2)
    with pytest.raises(ValueError, match=r"base_mean: expected \[4\]"):
        ais(rbm, base_mean=torch.ones(4))
