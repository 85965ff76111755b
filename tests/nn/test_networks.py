"""What every network must do; runs over a registry of constructors."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyrogen.nn import (
    EGNN,
    MLP,
    ConvDecoder,
    ConvEncoder,
    DistanceScore,
    ModulatedMLP,
    OneHot,
    Preconditioned,
    TimeMLP,
    UNet,
)
from pyrogen.processes import VarianceExploding


class AtOneTime(nn.Module):
    """A network of state and time as one of the state alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.in_shape = network.in_shape
        self.out_shape = getattr(network, "out_shape", network.in_shape)

    def forward(self, x):
        dtype = next(self.network.parameters()).dtype
        return self.network(x, torch.tensor(0.3, dtype=dtype))


NETWORKS = {
    "mlp": lambda: MLP(6, 4, hidden=(8, 8)),
    "mlp_events": lambda: MLP((2, 3), (4, 1, 5), hidden=(8,)),
    "affine": lambda: MLP(6, (2, 2), hidden=()),
    "encoder": lambda: ConvEncoder((2, 8, 8), 5, channels=(4, 4)),
    "encoder_without_channels": lambda: ConvEncoder((7, 9), 5, channels=(4, 4, 4)),
    "encoder_affine": lambda: ConvEncoder((3, 4, 4), 5, channels=()),
    "decoder": lambda: ConvDecoder(3, (2, 8, 8), channels=(4, 4)),
    "decoder_without_channels": lambda: ConvDecoder(3, (7, 9), channels=(4, 4, 4)),
    "decoder_classes": lambda: ConvDecoder(3, (2, 6, 5), channels=(4,), num_classes=3),
    "decoder_affine": lambda: ConvDecoder(3, (2, 4, 4), channels=()),
    "field": lambda: AtOneTime(TimeMLP(3, hidden=(8, 8))),
    "field_events": lambda: AtOneTime(TimeMLP((2, 3), hidden=(8,))),
    "field_affine_constant": lambda: AtOneTime(TimeMLP(3, hidden=(), frequencies=0)),
    "decoder_affine_classes": lambda: ConvDecoder(3, (4, 4), channels=(), num_classes=3),
    "modulated": lambda: AtOneTime(ModulatedMLP(3, width=8, num_blocks=2)),
    "modulated_events": lambda: AtOneTime(ModulatedMLP((2, 3), (4, 5), width=9, num_blocks=1)),
    "egnn": lambda: AtOneTime(EGNN((4, 3), torch.eye(4), torch.eye(4).unsqueeze(-1), width=8)),
    "egnn_alike": lambda: AtOneTime(EGNN((3, 2), width=8, num_layers=1)),
    "distances": lambda: AtOneTime(DistanceScore((4, 3), torch.eye(4), width=8, num_layers=1)),
    "unet": lambda: AtOneTime(UNet((2, 8, 8), channels=(8, 12), attention=True)),
    "unet_without_channels": lambda: AtOneTime(UNet((7, 5), channels=(4, 8, 8), num_blocks=2)),
    "unet_flat": lambda: AtOneTime(UNet((1, 3, 3), channels=(4,), out_channels=2)),
    "unet_classes": lambda: AtOneTime(UNet((2, 4, 4), channels=(4, 4), num_classes=3)),
    "preconditioned": lambda: AtOneTime(
        Preconditioned(UNet((2, 4, 4), channels=(4, 4)), VarianceExploding(), data_std=0.5)
    ),
}

networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


@networks
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 3)])
def test_leading_dimensions_are_independent_rows(make, batch):
    network = make().double()
    x = torch.randn(batch + network.in_shape, dtype=torch.float64)
    out = network(x)
    assert out.shape == batch + network.out_shape
    rows = torch.stack([network(row) for row in x.reshape(-1, *network.in_shape)])
    torch.testing.assert_close(out.reshape(rows.shape), rows)


@networks
def test_gradients_reach_every_parameter_and_input(make):
    network = make().double()
    x = torch.randn(16, *network.in_shape, dtype=torch.float64, requires_grad=True)
    network(x).square().sum().backward()
    assert x.grad.any()
    for name, parameter in network.named_parameters():
        assert parameter.grad.any(), name


@networks
def test_every_output_depends_on_the_input(make):
    network = make().double()
    out = network(torch.randn(64, *network.in_shape, dtype=torch.float64))
    assert (out.std(0) > 0).all()


@networks
def test_copies_and_states(make):
    network, other = make(), make()
    x = torch.randn(3, *network.in_shape)
    assert not torch.equal(network(x), other(x))
    other.load_state_dict(network.state_dict())
    for twin in (other, copy.deepcopy(network)):
        assert torch.equal(network(x), twin(x))


@networks
@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(0, 4), max_size=4))
def test_another_trailing_shape_is_refused(make, shape):
    network = make()
    if tuple(shape[len(shape) - len(network.in_shape) :]) == network.in_shape:
        return
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, .*got \["):
        network(torch.zeros(shape))


@networks
def test_integers_are_refused(make):
    network = make()
    with pytest.raises(ValueError, match=r"expected input of floating point, got torch.int64"):
        network(torch.zeros(2, *network.in_shape, dtype=torch.int64))


@settings(max_examples=25, deadline=None)
@given(
    image=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)),
    levels=st.integers(0, 4),
)
def test_convolutions_reach_any_image_size(image, levels):
    channels = (2,) * levels
    x = ConvDecoder(3, image, channels=channels)(torch.randn(2, 3))
    assert x.shape == (2, *image)
    assert ConvEncoder(image, 5, channels=channels)(x).shape == (2, 5)


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_initial_weights_keep_the_size_of_the_signal(depth):
    network = MLP(256, 256, hidden=(256,) * depth).double()
    out = network(torch.randn(2000, 256, dtype=torch.float64))
    # The expectation is exactly one: rectified layers keep E a^2, the last layer has gain one. For
    # one draw of the weights its logarithm varies by about sqrt(5 / width) from each layer.
    deviation = ((depth + 1) * 5 / 256) ** 0.5
    assert out.square().mean().log().abs() < 5 * deviation


@pytest.mark.parametrize("channels", [(8, 8), (32, 32, 32)])
def test_initial_convolutions_neither_vanish_nor_explode(channels):
    decoder = ConvDecoder(32, (1, 32, 32), channels=channels)
    encoder = ConvEncoder((1, 32, 32), 32, channels=channels)
    images = decoder(torch.randn(200, 32))
    codes = encoder(torch.randn(200, 1, 32, 32))
    # Padding and the uneven overlap of strided kernels cost factors, but no power of ten.
    assert 0.1 < images.std() < 10**0.5
    assert 0.1 < codes.std() < 10**0.5


def test_activation_is_used_between_the_layers_only():
    network = MLP(3, 2, hidden=(5, 4), activation=nn.Tanh)
    kinds = [type(layer) for layer in network.layers]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    first, _, second, _, third = network.layers
    x = torch.randn(7, 3)
    torch.testing.assert_close(network(x), third(second(first(x).tanh()).tanh()))


def test_classes_of_the_decoder_belong_to_their_pixels():
    decoder = ConvDecoder(2, (2, 4, 4), channels=(3,), num_classes=5)
    plain = decoder.layers(torch.ones(1, 2))[0]  # [5 * 2, 4, 4]
    torch.testing.assert_close(decoder(torch.ones(2)), plain.reshape(5, 2, 4, 4).movedim(0, -1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_one_hot(dtype):
    levels = torch.tensor([[0, 2], [1, 1]], dtype=dtype)
    assert torch.equal(OneHot(3)(levels), torch.eye(3)[levels.long()])
    assert torch.equal(OneHot(3).double()(levels), torch.eye(3).double()[levels.long()])
    assert OneHot(3).state_dict() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, 3), r"in_shape: expected positive integers, got \(0,\)"),
        (lambda: MLP(3, (2, -1)), r"out_shape: expected positive integers, got \(2, -1\)"),
        (lambda: MLP(3, 3, hidden=(0,)), r"hidden: expected positive integers, got \(0,\)"),
        (lambda: MLP(3, 3, hidden=8), r"hidden: expected positive integers, got 8"),
        (lambda: MLP(3, 3, hidden=(2.5,)), r"hidden: expected positive integers, got \(2.5,\)"),
        (lambda: ConvEncoder((8,), 3), r"event_shape: expected \(channels, height, width\)"),
        (lambda: ConvEncoder((1, 1, 8, 8), 3), r"event_shape: expected .*got \(1, 1, 8, 8\)"),
        (lambda: ConvEncoder((8, 0), 3), r"event_shape: expected positive integers"),
        (lambda: ConvEncoder((8, 8), 0), r"out_features: expected positive integers"),
        (lambda: ConvEncoder((8, 8), 3, channels=(0,)), r"channels: expected positive integers"),
        (lambda: ConvDecoder(0, (8, 8)), r"in_features: expected positive integers"),
        (lambda: ConvDecoder(3, 8), r"event_shape: expected positive integers, got 8"),
        (lambda: ConvDecoder(3, (8, 8), num_classes=0), r"num_classes: expected positive"),
        (lambda: OneHot(0), r"num_classes: expected positive integers"),
        (lambda: OneHot(3)(torch.zeros(2)), r"OneHot: expected integer levels, got torch.float32"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
