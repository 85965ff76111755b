"""Numbers that many elements share are in memory before they meet them."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyrogen.graph import Captured
from pyrogen.graph._broadcast import compute_before_broadcast

X = torch.linspace(-1, 1, 32 * 64).reshape(32, 64)


def of_number(x, t):
    """An exponential of one time, used twice, once as a column."""
    decay = t[2].exp()
    return decay * x + torch.cat([x, decay.sqrt().expand(32, 1)], 1).sum(1, keepdim=True)


def of_row(x, t):
    """One time for each row, which comes from the middle of a longer tensor."""
    some = t[3:35].log1p().unsqueeze(-1)
    return some * x + some.squeeze(-1).sum()


def of_every_element(x, t):
    """Nothing is shared."""
    return x.exp() + (2 * x).tanh().sum(1, keepdim=True)


def of_few(x, t):
    """Too few elements share a number."""
    return t[:32].exp() * x[:2, :32]


CASES = {of_number: 2, of_row: 1, of_every_element: 0, of_few: 0}


@pytest.mark.parametrize(
    ("function", "count"), CASES.items(), ids=lambda x: getattr(x, "__name__", x)
)
def test_what_is_shared_is_computed_once(function, count):
    t = torch.linspace(0.1, 1, 40)
    module = make_fx(function, tracing_mode="real")(X, t)
    before = module(X, t)
    compute_before_broadcast(module)
    kept = [n for n in module.graph.nodes if n.target is torch.ops.aten.as_strided.default]
    assert len(kept) == count
    for node in kept:
        assert list(node.args[0].users) == [node]
    assert torch.equal(module(X, t), before)


@pytest.mark.parametrize("function", CASES)
def test_compiled_results_are_the_same(function):
    t = torch.linspace(0.1, 1, 40)
    torch.testing.assert_close(Captured(function)(X, t), function(X, t))
