"""Cheaper operations in place of equal ones."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyrogen.graph import Captured
from pyrogen.graph._product import is_large, product
from pyrogen.graph._rewrite import rewritten

aten = torch.ops.aten


def energy_and_gradient(network):
    """A function of points, as samplers differentiate it."""

    def function(x):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            energy = network(at).squeeze(-1)
            (gradient,) = torch.autograd.grad(energy.sum(), at)
        return energy.detach(), gradient + torch.randn_like(x)

    return function


def operations(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dimensions", [1, 2, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_stays_the_same(dimensions, dtype):
    network = nn.Sequential(
        nn.Linear(dimensions, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)
    ).to(dtype)
    x = 3 * torch.randn(20, dimensions, dtype=dtype)
    function = energy_and_gradient(network)
    module = make_fx(function)(x)
    cheaper = rewritten(module, [x])

    counts = [operations(cheaper).count(target) for target in (aten.silu.default, aten.mm.default)]
    assert counts[0] == operations(cheaper).count(aten.silu_backward.default) == 0
    assert operations(cheaper).count(aten.sigmoid.default) == 2  # one for each layer
    assert counts[1] == (1 if dimensions <= 4 else 2)  # products of 8 x 8, and of 8 x 5
    results = []
    for run in (function, cheaper):
        pyro.set_rng_seed(0)
        results.append(run(x))
    rounding = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_large_products_go_to_onednn(bias):
    network = nn.Sequential(nn.Linear(200, 100, bias), nn.Tanh(), nn.Linear(100, 200, bias))

    def function(x):
        with torch.enable_grad():
            loss = network(x).square().sum()
            return loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))

    for rows, dtype, count in (
        (100, torch.float32, 5),
        (50, torch.float32, 0),
        (100, torch.float64, 0),
    ):
        network.to(dtype)
        x = torch.randn(rows, 200, dtype=dtype)
        module = make_fx(function)(x)
        cheaper = rewritten(module, [x])
        assert operations(cheaper).count(torch.ops.pyrogen.product.default) == count
        assert (
            operations(cheaper).count(aten.mm.default)
            + operations(cheaper).count(aten.addmm.default)
            == 5 - count
        )
        for got, expected in zip(cheaper(x), function(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("shape", [(256, 256, 64), (100, 150, 130)])
def test_products_of_onednn(shape):
    """Whatever the strides."""
    rows, terms, columns = shape
    x, y, bias = torch.randn(rows, terms), torch.randn(terms, columns), torch.randn(columns)
    assert is_large(x, y)
    for a in (x, x.T.contiguous().T):
        for b in (y, y.T.contiguous().T):
            for shift in (bias, None):
                added = 0.0 if shift is None else shift
                expected = a.double() @ b.double() + added
                # What rounding does to a sum of so many terms, at most.
                bound = (terms + 1) * 2**-24 * (a.abs() @ b.abs() + abs(added)).double()
                assert bool(((product(a, b, shift) - expected).abs() <= bound).all())
    torch.library.opcheck(torch.ops.pyrogen.product.default, (x, y.T, bias))


def test_a_value_changed_in_place_is_another():
    def function(x):
        first = nn.functional.silu(x)
        x = x.clone()
        second = nn.functional.silu(x)
        x.view(-1)[1:].add_(1.0)
        return first, second, nn.functional.silu(x)

    x = torch.randn(5)
    cheaper = rewritten(make_fx(function)(x), [x])
    assert aten.silu.default not in operations(cheaper)
    for got, expected in zip(cheaper(x), function(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_draws_in_new_memory_are_no_writing():
    def function(x):
        return nn.functional.silu(x) + torch.empty_like(x).normal_()

    x = torch.zeros(3)
    assert aten.silu.default not in operations(rewritten(make_fx(function)(x), [x]))


def test_a_graph_that_writes_is_run_once():
    total = torch.zeros(())

    def function(x):
        total.add_(x.sum())
        return nn.functional.silu(x)

    x = torch.ones(3)
    module = make_fx(function)(x)
    before = total.clone()
    assert rewritten(module, [x]) is module
    assert torch.equal(total, before)


WRITING = {
    "view": lambda x: x.view(-1)[1:].add_(1.0),
    "part": lambda x: x.split(2)[0].add_(1.0),
    "list": lambda x: torch._foreach_add_([x], 1.0),
    "keyword": lambda x: torch.add(x, 1.0, out=x),
}


@pytest.mark.parametrize("write", WRITING.values(), ids=list(WRITING))
def test_arguments_are_not_written_to(write):
    def function(x):
        write(x)
        return nn.functional.silu(x)

    x = torch.zeros(4)
    module = make_fx(function)(x.clone())
    assert rewritten(module, [x]) is module
    assert torch.equal(x, torch.zeros(4))


def test_few_digits_stay_as_they_are():
    x = torch.randn(20, 2, dtype=torch.bfloat16)
    module = make_fx(lambda x: nn.functional.silu(x) @ x.T)(x)
    targets = operations(rewritten(module, [x]))
    assert aten.silu.default in targets
    assert aten.mm.default in targets


def test_compiled_gradients_in_a_plane():
    network = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 3)).double()
    captured = Captured(lambda x: network(x).square().sum())
    x = torch.randn(17, 2, dtype=torch.float64)
    value, leaves, gradients = captured.value_and_grad(x)
    loss = network(x).square().sum()
    loss.backward()
    torch.testing.assert_close(value, loss.detach())
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)
