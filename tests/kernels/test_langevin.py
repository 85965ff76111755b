from __future__ import annotations

import pytest
import scipy.stats
import torch

from pyrogen.kernels import MALA, Langevin
from tests.statistics import TEST_FAILURE_RATE


def normal_energy(x):
    return 0.5 * x.square().sum(-1)


@pytest.mark.parametrize("step_size", [0.5, 1.0, 2.0])
def test_stationary_variance_on_a_normal(step_size):
    """N(0, 1 / (1 - h/4)) is left exactly as it is, which N(0, 1) is not: chi-squared tests."""
    n = 10_000
    variance = 1 / (1 - step_size / 4)
    kernel = Langevin(energy=normal_energy, event_shape=(1,), step_size=step_size, compile=False)
    chains = kernel.start(n, 0, initial_params={"x": variance**0.5 * torch.randn(n, 1)})
    for _ in range(10):
        chains.advance()
    squares = float(chains.position.square().sum())
    stationary, exact = (scipy.stats.chi2.cdf(squares / v, n) for v in (variance, 1.0))
    assert TEST_FAILURE_RATE / 2 < stationary < 1 - TEST_FAILURE_RATE / 2
    assert exact > 1 - 1e-9


def test_mala_is_one_leapfrog_step_of_hmc():
    from pyrogen.kernels import HMC

    energy = {"energy": lambda x: x.exp().sum(-1) - x.sum(-1), "event_shape": (2,)}
    start = {"x": torch.randn(100, 2)}
    positions = []
    for kernel in (
        MALA(**energy, step_size=0.9, compile=False),
        HMC(**energy, step_size=0.9, num_steps=1, trajectory="fixed", compile=False),
    ):
        torch.manual_seed(5)
        chains = kernel.start(100, 0, initial_params=start)
        info = chains.advance()
        positions.append((chains.position, info.accept_prob))
    torch.testing.assert_close(positions[0], positions[1])
    assert 0.05 < (positions[0][0] == start["x"]).all(1).float().mean() < 0.95
