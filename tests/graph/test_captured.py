"""Captured functions: what they read, what they refuse, what they leave alone."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

from pyrogen.errors import GraphError
from pyrogen.graph import Captured


def test_a_captured_function_is_the_function():
    layer = nn.Linear(3, 2)
    captured = Captured(lambda x, power: {"y": layer(x) ** power, "x": x})
    x = torch.randn(4, 3)
    for power in (1, 2, 3):
        outputs = captured(x, power=power)
        torch.testing.assert_close(outputs["y"], (layer(x) ** power).detach())
        assert torch.equal(outputs["x"], x)
    assert captured.captures == 3
    assert len(captured.graphs) == 3


def test_gradients_are_those_of_autograd():
    layer = nn.Linear(3, 2)
    captured = Captured(lambda x: layer(x).tanh().sum())
    x = torch.randn(4, 3, requires_grad=True)
    value, leaves, gradients = captured.value_and_grad(x)
    layer(x).tanh().sum().backward()
    assert {id(leaf) for leaf in leaves} == {id(x), id(layer.weight), id(layer.bias)}
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)
    torch.testing.assert_close(value, layer(x).tanh().sum().detach())


def test_equal_gradients_do_not_share_memory():
    a, b = (torch.zeros(3, requires_grad=True) for _ in range(2))
    captured = Captured(lambda x: ((a + b) * x).sum())
    _, leaves, gradients = captured.value_and_grad(torch.arange(3.0))
    assert len(leaves) == 2
    gradients[0].mul_(0.0)
    assert torch.equal(gradients[1], torch.arange(3.0))


def test_operations_without_gradient_stay_without():
    weight = torch.tensor(2.0, requires_grad=True)

    def function(x):
        with torch.no_grad():
            fixed = weight * x
        return (weight * fixed + (weight * x).detach()).sum()

    captured = Captured(function)
    (gradient,) = captured.value_and_grad(torch.ones(3))[2]
    assert gradient == 6.0  # of weight * fixed alone, with fixed = 2


def test_a_custom_gradient_is_kept():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    weight = torch.tensor(1.3, requires_grad=True)
    captured = Captured(lambda x: (Straight.apply(weight * x) * 2).sum())
    value, _, (gradient,) = captured.value_and_grad(torch.ones(3))
    assert (value.item(), gradient.item()) == (6.0, 6.0)


def test_the_gradient_of_one_chain_is_vectorised():
    """As samplers use it: a function of one point, differentiated, mapped, captured."""

    def energy(x):
        return (x**4).sum() + pyro.distributions.Normal(0.0, 1.0).log_prob(x).sum()

    gradient_and_value = torch.func.vmap(torch.func.grad_and_value(energy))
    x = torch.randn(5, 2)
    gradient, value = Captured(gradient_and_value)(x)
    torch.testing.assert_close(gradient, 4 * x**3 - x)
    torch.testing.assert_close(value, torch.stack([energy(row) for row in x]))


def test_closed_over_tensors_are_read_at_every_call():
    class Module(nn.Module):
        def forward(self):
            return self.plain + self.buffer

    module = Module()
    module.plain = torch.ones(2)
    module.register_buffer("buffer", torch.ones(2))
    captured = Captured(module, compile=False)
    assert torch.equal(captured(), torch.full((2,), 2.0))
    module.plain = torch.full((2,), 5.0)
    module.buffer.fill_(3.0)
    assert torch.equal(captured(), torch.full((2,), 8.0))
    assert captured.captures == 1
    module.plain = torch.zeros(3, 2)
    assert captured().shape == (3, 2)
    assert captured.captures == 2


def test_modules_are_noted_however_they_are_wrapped():
    dropout, normalise = nn.Dropout(0.5), nn.BatchNorm1d(3)
    captured = Captured(lambda x: normalise(dropout(x)), compile=False)
    x = torch.randn(5, 3)
    captured(x)
    assert normalise.num_batches_tracked == 1
    for module in (dropout, normalise):
        module.eval()
    torch.testing.assert_close(captured(x), normalise(x).detach())


def test_noise_is_fresh_and_follows_the_seed():
    captured = Captured(lambda: torch.randn(4) + torch.rand(4))
    first, second = captured(), captured()
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    expected = torch.randn(4) + torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(captured(), expected)


def test_the_default_dtype_is_part_of_the_signature():
    captured = Captured(lambda x: x + torch.ones(2), compile=False)
    x = torch.zeros(2)
    assert captured(x).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert captured(x).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_equal_numbers_of_other_types_have_graphs_of_their_own():
    captured = Captured(lambda x, flag: x + 1 if flag is True else x, compile=False)
    x = torch.zeros(())
    assert [captured(x, flag).item() for flag in (1, True, 1.0)] == [0.0, 1.0, 0.0]


weight = nn.Parameter(torch.ones(3))
elsewhere = weight * 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[x > 0], "shape of a tensor.*tensor argument 0"),
        (lambda x: x.nonzero(), "shape of a tensor.*tensor argument 0"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
        (lambda x: nn.functional.one_hot(x.long()), "shape of a tensor"),
        (lambda x: x.new_tensor(x.tolist()), "Python value.*tensor argument 0"),
        (lambda x: torch.equal(x, x + 1) and x, "Python value.*tensor argument 0"),
        (lambda x: x * (weight.sum() > 0).item(), "a parameter"),
        (lambda x: (x * nn.Parameter(x * 2)).sum(), "cannot be recorded"),
        (lambda x: x * torch.utils.dlpack.from_dlpack(x * 2), "cannot be recorded"),
        (lambda x: (x * elsewhere).sum(), "computed, with gradient, outside"),
    ],
)
def test_what_cannot_be_captured_is_refused(function, message):
    x = torch.tensor([1.0, 0.0, 2.0])
    with pytest.raises(GraphError, match=message):
        Captured(function, compile=False).value_and_grad(x)


def test_views_of_what_is_outside_are_read_at_every_call():
    captured = Captured(lambda x: x * weight.data + weight.detach().view(3), compile=False)
    assert torch.equal(captured(torch.ones(3)), torch.full((3,), 2.0))
    with torch.no_grad():
        weight.mul_(2.0)
    assert torch.equal(captured(torch.ones(3)), torch.full((3,), 4.0))
    with torch.no_grad():
        weight.div_(2.0)


def test_constants_may_be_read():
    def function(x):
        size = torch.tensor(2.0)
        return x * (size + 3).item() if size < 4 else x

    assert Captured(function, compile=False)(torch.ones(())).item() == 5.0


def test_a_function_without_parameters_has_no_gradients():
    value, leaves, gradients = Captured(torch.sum, compile=False).value_and_grad(torch.ones(3))
    assert (value.item(), leaves, gradients) == (3.0, [], ())


def test_an_argument_given_twice_stays_two_arguments():
    """One tensor in two places, or one that the function also closes over, is not one input."""
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    captured = Captured(lambda x, y: x + 10 * y + 100 * zero, compile=False)
    assert float(captured(zero, zero)) == 0.0
    assert float(captured(one, zero)) == 1.0
    assert float(captured(zero, one)) == 10.0


def test_a_buffer_whose_elements_share_their_memory_stays_as_it_is():
    module = torch.nn.Module()
    module.register_buffer("shared", torch.tensor(2.0).expand(3))
    captured = Captured(lambda x: (x * module.shared).sum(), compile=False)
    assert float(captured(torch.ones(3))) == 6.0
    assert module.shared.stride() == (0,)
