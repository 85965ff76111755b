"""What holds of every transform that a flow may be made of.

The sizes are small, so that the Jacobian by autograd is the oracle of every log-determinant.
"""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformedDistribution
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.graph import Captured
from pyrogen.transforms import Bijection, Inverse
from pyrogen.transforms._bijection import forward_and_log_det, inverse_and_log_det
from tests.transforms.registry import TRANSFORMS, names

EVERY = names()
INVERTIBLE = names(inverse=True)
CONTINUOUS = names(square=True, discrete=False)
ON_THE_REALS = [name for name in CONTINUOUS if TRANSFORMS[name].draw is torch.randn]
CONDITIONAL = [name for name, entry in TRANSFORMS.items() if entry.context_dim]
LEARNED = [
    name
    for name in EVERY
    if isinstance(transform := TRANSFORMS[name].make(), nn.Module) and [*transform.parameters()]
]
OURS = [name for name in EVERY if not name.startswith("Pyro")]


def build(name, dtype=torch.float64):
    """A transform whose parameters are away from their special initial values."""
    transform = TRANSFORMS[name].make()
    if isinstance(transform, nn.Module):
        transform.to(dtype)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return transform


def events(name, *batch, dtype=torch.float64):
    entry = TRANSFORMS[name]
    return entry.draw((*batch, *entry.shape)).to(dtype)


def context_for(name, *batch, dtype=torch.float64):
    size = TRANSFORMS[name].context_dim
    return torch.randn(*batch, size, dtype=dtype) if size else None


def error(one, other):
    """The largest difference, relative where values are above 1."""
    return ((one - other).abs() / other.abs().clamp(min=1)).max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverse_after_forward_is_the_identity(name, dtype):
    transform, context = build(name, dtype), context_for(name, 50, dtype=dtype)
    x = events(name, 50, dtype=dtype)
    y, log_det = forward_and_log_det(transform, x, context)
    back, same = inverse_and_log_det(transform, y, context)
    tolerance = TRANSFORMS[name].tolerance[dtype == torch.float64]
    assert y.dtype == back.dtype == log_det.dtype == dtype
    assert error(back, x) <= tolerance
    # A log-determinant sums over dimensions and is a derivative, so it may be off by more.
    assert error(same, log_det) <= 20 * tolerance


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_determinant_is_that_of_the_jacobian(name):
    transform, x = build(name), events(name)
    context = context_for(name)
    _, log_det = forward_and_log_det(transform, x, context)

    def flat(v):
        return forward_and_log_det(transform, v.reshape(x.shape), context)[0].flatten()

    jacobian = torch.autograd.functional.jacobian(flat, x.flatten())
    expected = torch.linalg.slogdet(jacobian)[1]
    assert log_det.shape == ()
    assert error(log_det, expected) <= max(1e-9, 20 * TRANSFORMS[name].tolerance[1])


@pytest.mark.parametrize("name", names(discrete=True))
def test_a_discrete_bijection_has_no_volume(name):
    transform = build(name)
    y, log_det = forward_and_log_det(transform, events(name, 9), context_for(name, 9))
    assert (y == y.round()).all()
    assert (log_det == 0).all()


@pytest.mark.parametrize(
    ("name", "direction"),
    [(name, forward_and_log_det) for name in LEARNED]
    + [(name, inverse_and_log_det) for name in LEARNED if name in INVERTIBLE],
)
def test_every_parameter_has_a_gradient(name, direction):
    transform = build(name)
    value, log_det = direction(transform, _image(name, transform, direction), context_for(name, 20))
    (log_det.sum() + (value * torch.randn_like(value)).sum()).backward()
    for key, parameter in transform.named_parameters():
        assert parameter.grad is not None, f"{key} was not reached"
        assert parameter.grad.isfinite().all()
        if TRANSFORMS[name].reached:
            assert parameter.grad.abs().sum() > 0, f"{key} has gradient zero"


def _image(name, transform, direction):
    x = events(name, 20)
    if direction is forward_and_log_det:
        return x
    torch.manual_seed(1)
    with torch.no_grad():
        return forward_and_log_det(transform, x, context_for(name, 20))[0]


@pytest.mark.parametrize("name", EVERY)
def test_batches_of_any_rank(name):
    transform = build(name)
    x, context = events(name, 2, 3), context_for(name, 2, 3)
    y, log_det = forward_and_log_det(transform, x, context)
    assert log_det.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            c = None if context is None else context[i, j]
            one, its_log_det = forward_and_log_det(transform, x[i, j], c)
            assert one.shape == y.shape[2:]
            assert error(y[i, j], one) <= 1e-7
            assert error(log_det[i, j], its_log_det) <= 1e-7


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("batch", [(0,), (0, 3)])
def test_a_batch_may_be_empty(name, batch):
    """As the data that a mask has left are, now and then."""
    transform = build(name)
    if isinstance(transform, Inverse) and not isinstance(transform.transform, Bijection):
        pytest.skip("Pyro's networks take no empty batch")
    x, context = events(name, *batch), context_for(name, *batch)
    y, log_det = forward_and_log_det(transform, x, context)
    assert log_det.shape == batch
    assert y.shape[: len(batch)] == batch
    if TRANSFORMS[name].inverse:
        back, log_det = inverse_and_log_det(transform, y, context)
        assert log_det.shape == batch
        assert back.shape == x.shape


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_forms_agree(name):
    transform = build(name)
    x, context = events(name, 4, 3), context_for(name, 3)
    conditioned = transform.condition(context)
    y, log_det = forward_and_log_det(transform, x, context)
    assert torch.equal(conditioned(x), transform.forward_value(x, context))
    assert torch.equal(conditioned.log_abs_det_jacobian(x, y), log_det)
    assert error(conditioned.inv(y), x) <= TRANSFORMS[name].tolerance[1]
    assert error(y[:, 1], forward_and_log_det(transform, x[:, 1], context[1])[0]) <= 1e-7
    other, _ = forward_and_log_det(transform, x, context_for(name, 3))
    assert error(other, y) > 1e-3


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_wrong_context_is_refused(name):
    transform, size = build(name), TRANSFORMS[name].context_dim
    with pytest.raises(ValueError, match=rf"expected a context of shape \[\*, {size}\]"):
        transform.condition(torch.zeros(size + 1))
    with pytest.raises(ValueError, match=rf"expected a context of size {size}, got none"):
        transform(events(name))
    with pytest.raises(ValueError, match="got none"):
        FlowDistribution(base_for(name), [transform])


def base_for(name):
    shape = torch.zeros(TRANSFORMS[name].shape, dtype=torch.float64)
    return dist.Normal(shape, 1.0).to_event(shape.dim())


@pytest.mark.parametrize("name", [n for n in CONDITIONAL if n in ON_THE_REALS])
def test_conditional_distributions_of_pyro(name):
    """The same transform in Pyro's distribution and in ours, one context for each datum."""
    transform, context = build(name), context_for(name, 4)
    ours = FlowDistribution(base_for(name), [transform.condition(context)])
    pyros = ConditionalTransformedDistribution(base_for(name), [transform]).condition(context)
    y = ours.sample((7,))
    assert ours.batch_shape == (4,)
    assert y.shape[:2] == (7, 4)
    # Pyro's takes the log-determinant of the forward map at the inverse, ours of the inverse.
    assert error(ours.log_prob(y), pyros.log_prob(y)) <= max(
        1e-7, 20 * TRANSFORMS[name].tolerance[1]
    )


@pytest.mark.parametrize("name", [n for n in OURS if n not in CONDITIONAL and n in ON_THE_REALS])
def test_unconditional_transforms_in_pyros_distribution(name):
    transform = build(name)
    assert not isinstance(transform, Bijection) or transform.condition(torch.zeros(3)) is transform
    ours = FlowDistribution(base_for(name), [transform])
    pyros = dist.TransformedDistribution(base_for(name), [transform])
    y = pyros.rsample((5,))
    assert ours.batch_shape == pyros.batch_shape
    assert ours.event_shape == pyros.event_shape == y.shape[1:]
    # Pyro's takes the log-determinant of the forward map at the inverse, ours of the inverse.
    assert error(ours.log_prob(y), pyros.log_prob(y)) <= max(
        1e-7, 20 * TRANSFORMS[name].tolerance[1]
    )


@pytest.mark.parametrize("name", names(capturable=True))
def test_captured_equals_eager(name):
    transform = build(name)
    x, context = events(name, 6), context_for(name, 6)

    def run(x, context):
        y, log_det = forward_and_log_det(transform, x, context)
        if not TRANSFORMS[name].inverse:
            return y, log_det
        return y, log_det, *inverse_and_log_det(transform, y, context)

    with torch.no_grad():
        expected = run(x, context)
    for one, other in zip(Captured(run, compile=False)(x, context), expected, strict=True):
        assert error(one, other) <= 1e-7


@pytest.mark.parametrize("name", [name for name in LEARNED if name in names(capturable=True)])
def test_captured_gradients_equal_eager_ones(name):
    """Of the pass that training takes: the density of data, or of draws where there is no other."""
    transform, context = build(name), context_for(name, 6)
    direction = inverse_and_log_det if TRANSFORMS[name].inverse else forward_and_log_det
    value = events(name, 6)
    if direction is inverse_and_log_det:
        with torch.no_grad():
            value, _ = forward_and_log_det(transform, value, context)

    def loss(value, context):
        image, log_det = direction(transform, value, context)
        return 0.5 * image.square().sum() + log_det.sum()

    result, leaves, gradients = Captured(loss, compile=False).value_and_grad(value, context)
    expected = loss(value, context)
    assert error(result, expected.detach()) <= 1e-7
    assert {*map(id, leaves)} == {*map(id, transform.parameters())}
    for one, other in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        assert error(one, other) <= 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", names(capturable=True))
def test_compiled_equals_eager(name):
    transform = build(name)
    x, context = events(name, 6), context_for(name, 6)
    captured = Captured(lambda x, context: forward_and_log_det(transform, x, context))
    for one, other in zip(
        captured(x, context), forward_and_log_det(transform, x, context), strict=True
    ):
        assert error(one, other.detach()) <= 1e-7


# Which way each transform goes without looking at values.
ONE_WAY = {
    "MaskedAutoregressive": inverse_and_log_det,
    "MaskedAutoregressive context": inverse_and_log_det,
    "InverseAutoregressive": forward_and_log_det,
}


@pytest.mark.parametrize("name", [name for name in OURS if name in names(capturable=True)])
def test_it_runs_where_its_parameters_are(name):
    """On torch's device without values, where a tensor of another device raises an error."""
    transform = build(name).to("meta")
    x, context = events(name, 5), context_for(name, 5)
    context = None if context is None else context.to("meta")
    y, _ = forward_and_log_det(build(name), x, context_for(name, 5))
    for direction, value in ((forward_and_log_det, x), (inverse_and_log_det, y)):
        if ONE_WAY.get(name, direction) is direction:
            with pyro.validation_enabled(False):
                image, log_det = direction(transform, value.to("meta"), context)
            assert image.device.type == log_det.device.type == "meta"
            assert image.shape == (y if direction is forward_and_log_det else x).shape


@pytest.mark.parametrize("name", EVERY)
def test_copies_are_equal_and_apart(name):
    transform, x, context = build(name), events(name, 5), context_for(name, 5)
    forward_and_log_det(transform, x, context)  # what a call leaves behind must not hinder copies
    y, log_det = forward_and_log_det(transform, x, context)
    rebuilt = TRANSFORMS[name].make()
    if isinstance(rebuilt, nn.Module):
        rebuilt.double().load_state_dict(transform.state_dict())
    copies = [pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform), rebuilt]
    for other in copies if isinstance(transform, nn.Module) else copies[:2]:
        same, same_log_det = forward_and_log_det(other, x, context)
        assert torch.equal(same, y)
        assert torch.equal(same_log_det, log_det)
        ids = {id(parameter) for parameter in getattr(transform, "parameters", list)()}
        assert not ids & {id(parameter) for parameter in getattr(other, "parameters", list)()}


@pytest.mark.parametrize("name", [n for n in INVERTIBLE if n in CONTINUOUS and n in LEARNED])
def test_nothing_stale_after_an_optimiser_step(name):
    """The same tensors before and after parameters change, as a cache would recognise them."""
    transform = build(name)
    x, context = events(name, 5), context_for(name, 5)
    y, _ = forward_and_log_det(transform, x, context)
    inverse_and_log_det(transform, y, context)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fresh = copy.deepcopy(transform)
    for direction, value in ((forward_and_log_det, x), (inverse_and_log_det, y)):
        for one, other in zip(
            direction(transform, value, context),
            direction(fresh, value.clone(), context),
            strict=True,
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", OURS)
def test_the_inverse_is_a_module_with_the_same_parameters(name):
    transform, context = build(name), context_for(name, 5)
    inverse = transform.inv
    if isinstance(transform, Inverse):
        assert inverse is transform.transform
        return
    assert inverse.inv is transform
    assert {*map(id, inverse.parameters())} == {*map(id, transform.parameters())}
    assert transform.with_cache(1) is transform
    x = events(name, 5)
    y, log_det = forward_and_log_det(transform, x, context)
    back, negative = forward_and_log_det(inverse, y, context)
    assert error(back, x) <= TRANSFORMS[name].tolerance[1]
    assert error(-negative, log_det) <= 20 * TRANSFORMS[name].tolerance[1]
    assert math.prod(inverse.forward_shape(y.shape)) == math.prod(x.shape)
