from __future__ import annotations

import pytest
import torch

from pyrogen.kernels import HMC, MCMC
from pyrogen.kernels._adaptation import window_ends
from pyrogen.kernels._potential import Batched
from pyrogen.kernels._tuning import from_momentum, to_momentum
from pyrogen.kernels.hmc import Phase, leapfrog

SCALES = torch.tensor([0.1, 1.0, 10.0])


def stretched(x):
    return 0.5 * (x / SCALES).square().sum(-1)


def run(kernel, num_samples=30, warmup_steps=100, num_chains=100):
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True)
    mcmc.run()
    return mcmc


def phase(potential, chains=10):
    position = torch.randn(chains, 3, dtype=torch.float64)
    momentum = torch.randn(chains, 3, dtype=torch.float64)
    return Phase(position, *potential.value_and_grad(position), momentum)


@pytest.mark.parametrize("scale", [torch.tensor([0.5, 1.0, 2.0]), torch.eye(3) + 0.3])
def test_leapfrog_is_reversible_and_of_second_order(scale):
    scale = scale.double() if scale.dim() == 1 else scale.double().tril()
    potential = Batched(lambda x: x.cosh().sum(-1) + 0.3 * x[:, 0] * x[:, 1])
    start = phase(potential)
    step = torch.tensor(0.1, dtype=torch.float64)
    end = leapfrog(potential, start, step, scale, 10)
    back = leapfrog(potential, end._replace(momentum=-end.momentum), step, scale, 10)
    torch.testing.assert_close(back.position, start.position)
    torch.testing.assert_close(back.momentum, -start.momentum)
    errors = []
    for halvings in range(3):
        end = leapfrog(potential, start, step / 2**halvings, scale, 10 * 2**halvings)
        energy = end.potential_energy + 0.5 * end.momentum.square().sum(-1)
        before = start.potential_energy + 0.5 * start.momentum.square().sum(-1)
        errors.append((energy - before).abs().mean())
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.8 < errors[1] / errors[2] < 4.2


def test_scales_are_adjoint():
    scale = torch.randn(3, 3).tril()
    velocity, force = torch.randn(1, 3), torch.randn(1, 3)
    left = (from_momentum(scale, velocity) * force).sum()
    torch.testing.assert_close(left, (velocity * to_momentum(scale, force)).sum())


def test_the_mass_matrix_learns_the_scales_and_the_step_size_its_acceptance():
    mcmc = run(HMC(energy=stretched, event_shape=(3,), compile=False, target_accept_prob=0.9))
    tuning = mcmc._batches[0].tuning
    torch.testing.assert_close(tuning.scale, SCALES, rtol=0.1, atol=0.0)
    assert 0.85 < mcmc.info["accept_prob"].mean() < 0.95
    spread = mcmc.get_samples()["x"].std(0)
    torch.testing.assert_close(spread, SCALES, rtol=0.1, atol=0.0)


def test_the_dense_mass_matrix_learns_the_covariance():
    root = torch.tensor([[1.0, 0.0], [2.0, 0.1]])
    inverse = torch.linalg.inv(root)
    kernel = HMC(
        energy=lambda x: 0.5 * (x @ inverse.T).square().sum(-1),
        event_shape=(2,),
        mass_matrix="dense",
        num_steps=3,
        compile=False,
    )
    tuning = run(kernel, 1, num_chains=500)._batches[0].tuning
    covariance = tuning.scale @ tuning.scale.T
    torch.testing.assert_close(covariance, root @ root.T, rtol=0.15, atol=0.02)
    assert tuning.step_size > 0.3  # on the scale of a standard normal


def test_chees_finds_longer_trajectories_where_they_are_needed():
    """Without a mass matrix, the widest of the scales decides: a quarter period is 10 pi / 2."""
    arguments = {"energy": stretched, "event_shape": (3,), "trajectory": "chees", "compile": False}
    plain = run(HMC(**arguments, mass_matrix=None), warmup_steps=250)
    scaled = run(HMC(**arguments), warmup_steps=250)
    lengths = [float(mcmc._batches[0].tuning.trajectory_length) for mcmc in (plain, scaled)]
    assert 5 < lengths[0] < 40
    assert 0.5 < lengths[1] < 4
    assert plain.info["num_steps"].mean() > 5 * scaled.info["num_steps"].mean()
    for mcmc in (plain, scaled):
        spread = mcmc.get_samples()["x"].std(0)
        torch.testing.assert_close(spread, SCALES, rtol=0.15, atol=0.0)


@pytest.mark.parametrize("step_size", [1e-4, 1e3])
def test_a_first_step_size_that_is_far_off_is_found(step_size):
    kernel = HMC(
        energy=lambda x: 0.5 * x.square().sum(-1),
        event_shape=(3,),
        step_size=step_size,
        mass_matrix=None,
        compile=False,
    )
    mcmc = run(kernel, 10, 60)
    assert 0.65 < mcmc.info["accept_prob"].mean() < 0.95


def test_windows_double_and_end_before_the_last_steps():
    ends = window_ends(1000, 1)
    assert ends == {75: False, 100: True, 150: True, 250: True, 450: True, 950: True}
    assert window_ends(39, 1) == {}
    assert window_ends(100, 100) == {15: False, 25: True, 45: True, 85: True}
    for steps in range(40, 300):
        assert max(window_ends(steps, 1)) <= steps - 15
