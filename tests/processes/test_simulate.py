"""Steps of processes on a grid: orders fitted on laws that follow exactly, bridges, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from pyrogen.processes import (
    Bridge,
    Brownian,
    OrnsteinUhlenbeck,
    Process,
    Steered,
    VariancePreserving,
    simulate,
)
from tests.statistics import assert_mean_close

DOUBLE = torch.float64
COUNTS = (8, 16, 32, 64)
LINEAR = {
    "constant noise": OrnsteinUhlenbeck(rate=1.3, scale=0.7),
    "noise that grows": VariancePreserving(0.5, 3.0),
}
linear = pytest.mark.parametrize("process", LINEAR.values(), ids=list(LINEAR))


def grid(count):
    return torch.linspace(0.0, 1.0, count + 1, dtype=DOUBLE)


def responses(process, count, method):
    """What is left of a unit of the beginning, and of a unit of each step's noise: a linear path
    is a sum of these, so that its law follows without a draw."""
    start = torch.zeros(count + 1, 1, dtype=DOUBLE)
    start[0] = 1.0
    noise = torch.cat([torch.zeros(1, count, dtype=DOUBLE), torch.eye(count, dtype=DOUBLE)])
    end = simulate(process, start, grid(count), noise.unsqueeze(-1), method=method)[:, -1, 0]
    return end[0], end[1:]


def slope(errors):
    """The order, fitted by least squares to errors at ``COUNTS``."""
    h = torch.tensor([-math.log(n) for n in COUNTS], dtype=DOUBLE)
    e = torch.tensor(errors, dtype=DOUBLE).log()
    return float(((h - h.mean()) * (e - e.mean())).sum() / (h - h.mean()).square().sum())


@linear
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_weak_order(process, method, order):
    t = torch.tensor(1.0, dtype=DOUBLE)
    mean, variance = [], []
    for count in COUNTS:
        kept, noise = responses(process, count, method)
        mean.append(abs(float(kept - process.mean_scale(t))))
        variance.append(abs(float(noise.square().sum() - process.variance(t))))
    assert slope(mean) == pytest.approx(order, abs=0.15)
    assert slope(variance) == pytest.approx(order, abs=0.15)


@linear
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_strong_order_for_additive_noise_is_one(process, method):
    fine, errors = 4096, []
    kept, reference = responses(process, fine, "heun")
    for count in COUNTS:
        coarse_kept, noise = responses(process, count, method)
        # A coarse increment is the sum of fine ones, sqrt(ratio) times their common unit.
        ratio = fine // count
        spread = (noise / math.sqrt(ratio)).repeat_interleave(ratio)
        error = (coarse_kept - kept) ** 2 + (spread - reference).square().sum()
        errors.append(float(error.sqrt()))
    assert slope(errors) == pytest.approx(1.0, abs=0.15)


def test_strong_order_for_noise_that_depends_on_the_state_is_one_half():
    process = Process(lambda x, t: 0.5 * x, lambda x, t: 0.8 * x)
    fine, paths = 256, 20_000
    noise = torch.randn(paths, fine, 1, dtype=DOUBLE)
    brownian = noise.sum(1) / math.sqrt(fine)
    exact = ((0.5 - 0.32) + 0.8 * brownian).exp()
    errors = []
    for count in COUNTS:
        coarse = noise.reshape(paths, count, -1, 1).sum(2) / math.sqrt(fine / count)
        path = simulate(process, torch.ones(paths, 1, dtype=DOUBLE), grid(count), coarse)
        errors.append(float((path[:, -1] - exact).square().mean().sqrt()))
    # Errors of 20,000 paths have a relative standard error below 2 %.
    assert slope(errors) == pytest.approx(0.5, abs=0.1)


@linear
def test_exact_steps_have_the_law_of_the_process(process):
    kept, noise = responses(process, 5, "exact")
    t = torch.tensor(1.0, dtype=DOUBLE)
    torch.testing.assert_close(kept, process.mean_scale(t))
    torch.testing.assert_close(noise.square().sum(), process.variance(t))


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_checkpoints_leave_path_and_gradient_as_they_are(method):
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    process = Process(lambda x, t: net(x), 0.3)
    times, noise = torch.linspace(0, 1, 12), torch.randn(4, 11, 2)
    gradients = []
    for checkpointed in (False, True):
        start = torch.ones(4, 2, requires_grad=True)
        path = simulate(process, start, times, noise, (), method, checkpointed)
        found = torch.autograd.grad(path.square().sum(), [start, *net.parameters()])
        gradients.append([path, *found])
    for direct, remembered in zip(*gradients, strict=True):
        assert torch.equal(direct, remembered)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_gradient_in_what_scales_the_noise(method):
    """The noise is added outside the graph, but not where the graph must know it."""
    noise, times = torch.randn(4, 6, 2, dtype=DOUBLE), grid(6)
    found = []
    for learned in (True, False):
        scale = torch.tensor(0.7, dtype=DOUBLE, requires_grad=learned)
        start = torch.ones(4, 2, dtype=DOUBLE, requires_grad=True)
        process = Process(lambda x, t: -x, scale)
        path = simulate(process, start, times, noise, method=method)
        wanted = [start, scale] if learned else [start]
        found.append([path.detach(), *torch.autograd.grad(path.square().sum(), wanted)])
        if learned:  # linear, so that a scale twice as large moves paths from the noiseless twice
            still = simulate(process, start, times, torch.zeros_like(noise), method=method)
            slope = 2 * (path * (path - still) / scale).sum()
            torch.testing.assert_close(found[0][2], slope.detach())
    for with_scale, without in zip(found[0][:2], found[1], strict=True):
        torch.testing.assert_close(with_scale, without)


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # torch's forward mode
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_derivatives_forwards_and_batches_of_noise(method):
    noise, times = torch.randn(3, 6, 2, dtype=DOUBLE), grid(6)
    start, direction = torch.ones(2, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)

    def path(noise):
        process = Process(lambda x, t: -x, 0.7)
        return simulate(process, start.expand(*noise.shape[:-2], 2), times, noise, method=method)

    each = torch.func.vmap(path)(noise)
    torch.testing.assert_close(each, path(noise))
    slope = path(direction) - path(torch.zeros_like(direction))  # of a path linear in its noise
    torch.testing.assert_close(torch.func.jvp(path, (noise[0],), (direction,))[1], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(noise[0], direction)
        found = torch.autograd.forward_ad.unpack_dual(path(dual)).tangent
    torch.testing.assert_close(found, slope)


def test_each_step_is_told_its_context():
    told = torch.arange(3.0).reshape(3, 1)
    process = Process(lambda x, t, a, b: a + b + 0 * x, 1.0)
    path = simulate(
        process, torch.zeros(1), torch.arange(4.0), torch.zeros(3, 1), (told, torch.ones(1, 1))
    )
    assert path.flatten().tolist() == [0.0, 1.0, 3.0, 6.0]


def test_steering_adds_to_the_drift_and_passes_contexts_on():
    base = Process(lambda x, t, a: a * x, 2.0)
    steered = Steered(base, lambda x, t, c: c - x, num_contexts=1)
    x, t = torch.tensor([3.0]), torch.tensor(0.0)
    assert float(steered.drift(x, t, torch.tensor([2.0]), torch.tensor([10.0]))) == 13.0
    assert float(steered.diffusion_at(x, t)) == 2.0


@linear
def test_a_bridge_is_bayes_rule(process):
    start, end = torch.tensor([0.3], dtype=DOUBLE), torch.tensor([-1.1], dtype=DOUBLE)
    bridge = Bridge(process, end, 1.0)
    s, t = torch.tensor(0.25, dtype=DOUBLE), torch.tensor(0.6, dtype=DOUBLE)
    law = bridge.transition(start, s, t)
    x = torch.tensor([0.1], dtype=DOUBLE)
    one = torch.tensor(1.0, dtype=DOUBLE)
    expected = (
        process.transition(start, s, t).log_prob(x)
        + process.transition(x, t, one).log_prob(end)
        - process.transition(start, s, one).log_prob(end)
    )
    torch.testing.assert_close(law.log_prob(x), expected)


@linear
def test_the_drift_of_a_bridge_is_the_slope_of_its_transitions(process):
    x, end = torch.tensor([0.3], dtype=DOUBLE), torch.tensor([-1.1], dtype=DOUBLE)
    bridge, t, h = Bridge(process, end, 1.0), torch.tensor(0.4, dtype=DOUBLE), 1e-6
    law = bridge.transition(x, t, t + h)
    torch.testing.assert_close((law.mean - x) / h, bridge.drift(x, t), rtol=1e-4, atol=1e-4)
    g = process.diffusion(t)
    torch.testing.assert_close(law.variance / h, g.square().reshape(1), rtol=1e-4, atol=1e-4)


def test_bridges_end_where_they_are_told_and_vary_in_between():
    times = torch.linspace(0.0, 1.0, 9)
    bridge = Bridge(Brownian(2.0), torch.tensor([3.0]), 1.0)
    path = simulate(bridge, torch.zeros(20_000, 1), times, torch.randn(20_000, 8, 1), (), "exact")
    assert bool((path[:, -1] == 3.0).all())
    middle = path[:, 4, 0]
    assert_mean_close(middle, 1.5)
    assert_mean_close((middle - 1.5).square(), 1.0)  # 4 t (1 - t)


def test_reversal_needs_noise_without_the_state():
    process = Process(lambda x, t: x, lambda x, t: x)
    with pytest.raises(ValueError, match="reverse: expected a diffusion that does not depend"):
        process.reverse(lambda x, t: x)
    with pytest.raises(ValueError, match="'heun': expected a diffusion that does not depend"):
        simulate(process, torch.ones(1), torch.arange(2.0), torch.zeros(1, 1), method="heun")


def test_what_a_process_does_not_have_is_refused():
    process = Process(lambda x, t: x, 1.0)
    arguments = process, torch.ones(1), torch.arange(2.0), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="'exact': expected a process whose transitions"):
        simulate(*arguments, method="exact")
    with pytest.raises(ValueError, match="method: expected one of"):
        simulate(*arguments, method="rk4")
    with pytest.raises(TypeError, match="process: expected a linear process"):
        Bridge(process, torch.ones(1), 1.0)
    with pytest.raises(ValueError, match="end_time: expected a time above 0"):
        Bridge(Brownian(), torch.ones(1), 0.0)
