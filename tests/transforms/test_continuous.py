"""Continuous flows against the matrix exponential, and their estimators against known moments."""

from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.errors import GraphError, NonFiniteError
from pyrogen.graph import Captured
from pyrogen.nn import TimeMLP
from pyrogen.transforms import ContinuousFlow, ContinuousSphereFlow
from pyrogen.transforms._dopri import _WEIGHTS, _moved, _Record, _stages
from pyrogen.transforms._field import Field
from tests.statistics import assert_mean_close

TIGHT = {"atol": 1e-12, "rtol": 1e-12}


class Linear(nn.Module):
    """f(x, t) = A x + b, or A x + c for a context."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, x, t, context=None):
        out = x @ self.matrix.T
        return out if context is None else out + context


class Square(nn.Module):
    """Explodes in finite time from any positive point: x(t) = x / (1 - x t)."""

    def forward(self, x, t):
        return x.square()


class Wide(nn.Module):
    """Returns one number too many."""

    def forward(self, x, t):
        return torch.cat([x, x[..., :1]], -1)


def matrix(size=3):
    return torch.randn(size, size, dtype=torch.float64)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_a_linear_flow_is_the_matrix_exponential(method):
    a, x = matrix(), torch.randn(4, 3, dtype=torch.float64)
    flow = ContinuousFlow(Linear(a), method=method, **TIGHT)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, x @ torch.matrix_exp(a).T, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(log_det, a.trace().expand(4), atol=1e-10, rtol=0)
    back, same = flow.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(same, log_det, atol=1e-10, rtol=0)


def test_a_context_shifts_a_linear_flow():
    a, x = matrix(), torch.randn(5, 1, 3, dtype=torch.float64)
    c = torch.randn(4, 3, dtype=torch.float64)
    flow = ContinuousFlow(Linear(a), context_dim=3, **TIGHT)
    y, log_det = flow.forward_and_log_det(x, c)
    shift = torch.linalg.solve(a, (torch.matrix_exp(a) - torch.eye(3)) @ c.T).T
    torch.testing.assert_close(y, x @ torch.matrix_exp(a).T + shift, atol=1e-9, rtol=0)
    assert log_det.shape == (5, 4)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_fixed_steps_converge_at_their_order(method):
    """Halving the step divides the error by 2 to the order; from 32 to 64 steps within 20 %."""
    order = {"euler": 1, "midpoint": 2, "rk4": 4}[method]
    a, x = 0.5 * matrix(), torch.randn(4, 3, dtype=torch.float64)
    exact = x @ torch.matrix_exp(a).T
    errors = [
        (ContinuousFlow(Linear(a), method=method, steps=steps)(x) - exact).norm().item()
        for steps in (32, 64)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    "options",
    [{}, {"adjoint": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
)
def test_gradients_of_a_linear_flow(options):
    """The log-determinant is tr A, whose gradient is I; that of sum(w y) by the exponential."""
    a, x, w = matrix(), torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3).double()
    a.requires_grad_()
    expected = torch.autograd.grad((w * (x @ torch.matrix_exp(a).T)).sum() + 4 * a.trace(), a)[0]
    flow = ContinuousFlow(Linear(a.detach()), atol=1e-10, rtol=1e-10, **options)
    x.requires_grad_()
    y, log_det = flow.forward_and_log_det(x)
    ((w * y).sum() + log_det.sum()).backward()
    torch.testing.assert_close(flow.dynamics.matrix.grad, expected, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(x.grad, w @ torch.matrix_exp(a.detach()), atol=1e-7, rtol=1e-7)


def test_a_step_of_dormand_and_prince_is_its_stability_polynomial():
    """For x' = x it is the series of exp(h) to order 5, and h^6 / 600."""
    x, h = torch.ones(1, dtype=torch.float64), 0.7
    stages = _stages(lambda x, t: (x,), x, (x,), _Record([], 0.0, h))
    (end,) = _moved((x,), stages, _WEIGHTS, h)
    series = sum(h**k / math.factorial(k) for k in range(6)) + h**6 / 600
    assert float(end) == pytest.approx(series, abs=1e-14)


def test_tolerances_hold_for_each_element_and_for_the_log_determinant():
    """Errors of steps add up; field and trace have slopes below 1, so they grow by at most e."""
    network = TimeMLP(3, (8, 8)).double()
    with torch.no_grad():
        network.layers[-1].weight.mul_(10)
    x = 2 * torch.randn(64, 3, dtype=torch.float64)
    worst = []
    for tolerance in (1e-3, 1e-8):
        flow = ContinuousFlow(network, atol=tolerance, rtol=tolerance)
        with torch.no_grad():
            found = flow.forward_and_log_det(x)
            exact = ContinuousFlow(network, **TIGHT).forward_and_log_det(x)
        steps = (flow.num_evaluations - 1) / 6
        excess = [((a - b).abs() / (1 + b.abs())).max() for a, b in zip(found, exact, strict=True)]
        worst.append(max(excess) / tolerance)
        assert worst[-1] < steps * math.e
    assert min(worst) > 1e-3  # and no more work is done than was asked for


@pytest.mark.parametrize(
    ("adjoint", "compile"),
    [
        (False, False),
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_a_context(adjoint, compile):
    network = TimeMLP(2, hidden=(6,), context_dim=3).double()
    x, c = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    gradients = []
    for options in (
        {"atol": 1e-9, "rtol": 1e-9, "adjoint": adjoint, "compile": compile},
        {"method": "rk4", "steps": 50},
    ):
        leaf = c.clone().requires_grad_()
        context = 2 * leaf  # computed, as that of an encoder
        flow = ContinuousFlow(network, context_dim=3, **options)
        y, log_det = flow.inverse_and_log_det(x, context)
        (y.sin().sum() + log_det.sum()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)
    assert gradients[0].abs().min() > 0


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_has_the_mean_and_variance_of_theory(probe):
    """On a linear field: mean tr A; variance 2 sum_{i≠j} S_ij² or 2 |S|²."""
    a = matrix()
    s = (a + a.T) / 2
    variance = 2 * s.square().sum()
    if probe == "rademacher":
        variance = variance - 2 * s.diagonal().square().sum()
    flow = ContinuousFlow(Linear(a), trace="hutchinson", probe=probe, method="euler", steps=1)
    _, log_det = flow.forward_and_log_det(torch.zeros(20_000, 3, dtype=torch.float64))
    deviation = log_det.detach() - a.trace()
    assert_mean_close(deviation, 0.0)
    assert_mean_close(deviation.square(), float(variance))


def test_costs_of_a_linear_flow():
    """The Jacobian's is |A|²; the kinetic one x^T (int exp(tA)^T A^T A exp(tA) dt) x."""
    a, x = matrix(), torch.randn(4, 3, dtype=torch.float64)
    solution = ContinuousFlow(Linear(a), **TIGHT).solve(x)
    times, weights = torch.as_tensor(_gauss_legendre(20)).unbind(0)
    speeds = torch.stack([(x @ torch.matrix_exp(t * a).T @ a.T).square().sum(-1) for t in times])
    torch.testing.assert_close(solution.kinetic, weights @ speeds, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(solution.jacobian, a.square().sum().expand(4), atol=1e-8, rtol=0)
    back = ContinuousFlow(Linear(a), **TIGHT).solve(solution.value, inverse=True)
    torch.testing.assert_close(back.kinetic, solution.kinetic, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(back.log_det, solution.log_det, atol=1e-8, rtol=1e-8)


def _gauss_legendre(n):
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(n)
    return np.stack([(nodes + 1) / 2, weights / 2])


def test_the_costs_are_never_negative_on_the_way_back():
    flow = ContinuousFlow(TimeMLP(2, hidden=(6,)))
    solution = flow.solve(torch.randn(5, 2), inverse=True)
    assert (solution.kinetic > 0).all()
    assert (solution.jacobian > 0).all()


@pytest.mark.parametrize("hidden", [(), (5,), (5, 7)])
def test_the_divergence_in_closed_form(hidden):
    network = TimeMLP((2, 2), hidden, context_dim=2).double()
    x, c, t = torch.randn(6, 2, 2).double(), torch.randn(6, 2).double(), torch.tensor(0.3).double()
    _, trace = network.value_and_divergence(x, t, c)
    generic = Field(network, 2, 4)(x, t, None, c)[1]
    torch.testing.assert_close(trace, generic)


def test_no_closed_form_is_said_so():
    network = TimeMLP(2, (3, 3, 3))
    assert not network.knows_divergence
    with pytest.raises(ValueError, match="at most two hidden layers"):
        network.value_and_divergence(torch.zeros(2), torch.tensor(0.0))
    assert not TimeMLP(2, (4,), activation=lambda: nn.LayerNorm(4)).knows_divergence


class Doubled(TimeMLP):
    """Another field, of which the divergence inherited is not the divergence."""

    def forward(self, x, t, context=None):
        return 2 * super().forward(x, t, context)


def test_a_field_that_overrides_the_call_alone_has_its_own_divergence():
    field = Doubled(2, (8,)).double()
    assert not field.knows_divergence
    flow, x = ContinuousFlow(field, method="rk4", steps=20), torch.randn(2, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(flow.forward_value(x), y)
    jacobian = torch.autograd.functional.jacobian(flow.forward_value, x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ContinuousFlow(TimeMLP(3, (8,)).double(), **TIGHT),
        lambda: ContinuousSphereFlow(TimeMLP(3, (8,)).double(), **TIGHT),
    ],
)
def test_the_inverse_is_as_exact_as_the_solver(make):
    flow = make()
    x = nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=-1)
    with torch.no_grad():
        y, log_det = flow.forward_and_log_det(x)
        back, same = flow.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(same, log_det, atol=1e-10, rtol=0)


def test_an_empty_batch_takes_no_step_to_adapt():
    y, log_det = ContinuousFlow(TimeMLP(2, hidden=(8,))).forward_and_log_det(torch.randn(0, 2))
    assert y.shape == (0, 2)
    assert log_det.shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_a_compiled_field_refuses_a_gradient_at_parameters_that_have_changed(method):
    flow = ContinuousFlow(TimeMLP(2, hidden=(8,)), method=method, compile=True)
    y, log_det = flow.forward_and_log_det(torch.randn(4, 2))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y.sum() + log_det.sum()).backward()


@pytest.mark.slow
def test_compiled_equals_eager():
    network = TimeMLP(2, hidden=(8, 8)).double()
    x = torch.randn(16, 2).double()
    results = []
    for compiled in (False, True):
        flow = ContinuousFlow(network, compile=compiled)
        y, log_det = flow.forward_and_log_det(x)
        network.zero_grad()
        (y.square().sum() + log_det.sum()).backward()
        results.append([y, log_det, *(p.grad.clone() for p in network.parameters())])
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)
    copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))


def test_a_density_integrates_to_one():
    """By the trapezoid rule, which is spectrally accurate for a smooth density that decays."""
    flow = ContinuousFlow(TimeMLP(2, hidden=(8, 8)).double(), method="rk4", steps=8)
    with torch.no_grad():
        flow.dynamics.layers[-1].weight.mul_(10)
    base = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
    grid = torch.linspace(-10, 10, 81).double()
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        density = FlowDistribution(base, [flow]).log_prob(points).exp()
    total = density.sum() * (grid[1] - grid[0]) ** 2
    assert abs(float(total) - 1) < 1e-3  # the error of eight steps


def test_an_adaptive_solver_cannot_be_captured():
    flow = ContinuousFlow(TimeMLP(2, hidden=(4,)))
    with pytest.raises(GraphError, match="fixed steps"):
        Captured(flow.forward_value)(torch.zeros(3, 2))


def test_a_step_budget_is_kept():
    flow = ContinuousFlow(Linear(300 * torch.eye(2)), max_steps=5)
    with pytest.raises(RuntimeError, match=r"at most max_steps = 5.*Loosen"):
        flow(torch.ones(3, 2))


def test_a_budget_of_the_adjoint_equation_is_kept():
    flow = ContinuousFlow(TimeMLP(2, hidden=(8,)).double(), max_steps=8, adjoint=True)
    y = flow(torch.randn(3, 2).double())
    flow.solver.__dict__["max_steps"] = 1
    with pytest.raises(RuntimeError, match="max_steps = 1 of the adjoint equation"):
        y.sum().backward()


def test_an_explosion_is_named():
    with pytest.raises((NonFiniteError, RuntimeError), match=r"not finite|step size"):
        ContinuousFlow(Square(), max_steps=200)(torch.full((1, 1), 2.0))
    with pytest.raises(NonFiniteError, match="not finite at t = 0"):
        ContinuousFlow(Linear(torch.full((2, 2), math.nan)))(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dynamics": lambda x, t: x}, TypeError, "dynamics: expected a torch.nn.Module"),
        ({"trace": "approximate"}, ValueError, "trace: expected one of"),
        ({"probe": "uniform"}, ValueError, "probe: expected one of"),
        ({"method": "leapfrog"}, ValueError, "method: expected one of"),
        ({"method": "rk4"}, ValueError, "steps: expected a positive integer"),
        ({"steps": 10}, ValueError, "steps: expected None"),
        ({"atol": 0.0}, ValueError, "expected atol > 0"),
        ({"max_steps": 0}, ValueError, "max_steps >= 1"),
    ],
)
def test_bad_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        ContinuousFlow(**{"dynamics": Linear(torch.eye(2)), **options})


def test_bad_inputs_are_refused():
    flow = ContinuousFlow(Linear(torch.eye(2)))
    with pytest.raises(ValueError, match="floating-point"):
        flow(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="context of size 0, got size 4"):
        flow.forward_and_log_det(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="expected the shape of x"):
        ContinuousFlow(Wide())(torch.ones(3, 2))
