"""Networks of a state and a time: embeddings, conditioning, preconditioning."""

from __future__ import annotations

import pytest
import torch

from pyrogen.distributions import ScoreBased
from pyrogen.nn import FourierEmbedding, ModulatedMLP, Preconditioned, SinusoidalEmbedding, UNet
from pyrogen.processes import VarianceExploding, VariancePreserving, convert

NETWORKS = {
    "modulated": lambda **options: ModulatedMLP((2, 4, 4), width=16, **options),
    "unet": lambda **options: UNet((2, 4, 4), channels=(8, 8), **options),
    "preconditioned": lambda **options: Preconditioned(
        UNet((2, 4, 4), channels=(8, 8), **options), VariancePreserving()
    ),
}
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


@networks
def test_each_row_has_its_time_and_context(make):
    network = make(context_dim=3).double()
    x, t = torch.randn(5, 2, 4, 4).double(), torch.rand(5).double()
    context = torch.randn(5, 3).double()
    together = network(x, t, context)
    rows = torch.stack([network(x[i], t[i], context[i]) for i in range(5)])
    torch.testing.assert_close(together, rows)
    grid = network(x.expand(5, 5, 2, 4, 4), t, context[:, None])  # time by column, context by row
    assert grid.shape == (5, 5, 2, 4, 4)
    torch.testing.assert_close(grid.diagonal().movedim(-1, 0), rows)
    assert (
        (network(x, t, context) - network(x, 0.9 * t, context)).flatten(1).norm(dim=1) > 0
    ).all()


@networks
def test_a_context_of_zeros_stands_for_none(make):
    """Nothing that belongs to the context moves its features, so that it can be left out."""
    network = make(context_dim=3)
    x, t = torch.randn(5, 2, 4, 4), torch.rand(5)
    with torch.no_grad():
        before = network(x, t, torch.zeros(5, 3))
        for name, parameter in network.named_parameters():
            if "of_context" in name:
                parameter.add_(1.0)
        assert torch.equal(network(x, t, torch.zeros(5, 3)), before)
        assert not torch.equal(network(x, t, torch.ones(5, 3)), before)


@networks
def test_a_wrong_context_is_refused(make):
    x, t = torch.randn(5, 2, 4, 4), torch.rand(5)
    with pytest.raises(ValueError, match=r"expected a context of size 3, got size 0"):
        make(context_dim=3)(x, t)
    with pytest.raises(ValueError, match=r"expected a context of size 0, got size 2"):
        make()(x, t, torch.zeros(5, 2))


@networks
def test_half_precision_and_graphs(make):
    network = make()
    x, t = torch.randn(5, 2, 4, 4), torch.rand(5)
    expected = network(x, t)
    assert network.to(torch.bfloat16)(x.bfloat16(), t.bfloat16()).dtype == torch.bfloat16
    network.float()
    traced = torch.fx.experimental.proxy_tensor.make_fx(network)(x, t)
    assert torch.isfinite(traced(2 * x, t)).all()
    assert expected.shape == x.shape


def test_sinusoids_are_those_of_the_steps_of_a_diffusion():
    embed = SinusoidalEmbedding(64).double()
    steps = torch.tensor([0.0, 1.0, 999.0]).double()
    j = torch.arange(32, dtype=torch.float64)
    angles = steps[:, None] * (10_000.0 ** (-j / 31))
    expected = torch.cat([angles.cos(), angles.sin()], -1)
    # The frequencies are single precision: a phase of 1000 radians is right to 1e-4.
    torch.testing.assert_close(embed(steps / 1000), expected, rtol=0, atol=2e-4)
    assert embed.state_dict() == {}


def test_the_kernel_of_random_features_is_gaussian():
    r"""The mean of cos omega (s - t) is exp(-(2 pi b (s - t))^2 / 2)."""
    embed = FourierEmbedding(40_000, bandwidth=0.7)
    t = torch.tensor([0.0, 0.1, 0.3, 0.7])
    features = embed(t)
    kernel = features @ features.T / 20_000
    expected = (-(2 * torch.pi * 0.7 * (t[:, None] - t)).square() / 2).exp()
    # A mean of 20,000 numbers in [-1, 1] is within 5 / sqrt(20,000) of its expectation.
    torch.testing.assert_close(kernel, expected, rtol=0, atol=5 / 20_000**0.5)
    assert "frequencies" in embed.state_dict()
    assert not torch.equal(embed(t), FourierEmbedding(40_000)(t))


@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding()])
@pytest.mark.parametrize("data_std", [0.3, 2.0])
def test_preconditioning_leaves_units_of_one(process, data_std):
    """Of normal data: the network sees variance 1, its target has variance 1, and the two are
    not correlated, so that 0 is the best that it can do."""
    seen = []

    def network(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    module = torch.nn.Module()
    module.forward = network
    denoiser = Preconditioned(module, process, data_std, event_dim=1)
    n, t = 200_000, torch.tensor(0.4, dtype=torch.float64)
    data, noise = data_std * torch.randn(n, 1).double(), torch.randn(n, 1).double()
    x = process.mean_scale(t) * data + process.std(t) * noise
    guess = denoiser(x, t)
    alpha, sigma = process.mean_scale(t), process.std(t)
    scale = sigma * data_std / (alpha**2 * data_std**2 + sigma**2).sqrt()
    target = (data - guess) / scale
    moments = torch.stack([seen[0].square(), target.square(), seen[0] * target])
    error = 5 * (2 / n) ** 0.5  # five standard errors of a variance
    torch.testing.assert_close(
        moments.mean((1, 2)), torch.tensor([1.0, 1.0, 0.0]).double(), rtol=0, atol=error
    )


def test_preconditioned_networks_serve_score_based_sites():
    process = VariancePreserving()
    denoiser = Preconditioned(ModulatedMLP(2, width=8), process, data_std=0.7).double()
    fn = ScoreBased(process, denoiser, 2, prediction="data")
    x, t = torch.randn(5, 2).double(), torch.tensor(0.3, dtype=torch.float64)
    expected = convert(process, denoiser(x, t.expand(5)), x, t, "data", "score")
    torch.testing.assert_close(fn.score(x, t), expected)
    assert denoiser.in_shape == (2,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinusoidalEmbedding(3), r"features: expected an even number, got 3"),
        (lambda: SinusoidalEmbedding(0), r"features: expected positive integers"),
        (lambda: SinusoidalEmbedding(4, 0.0), r"max_frequency: expected a positive"),
        (lambda: FourierEmbedding(4, float("nan")), r"bandwidth: expected a positive finite"),
        (lambda: ModulatedMLP(2, width=0), r"width, num_blocks: expected positive integers"),
        (lambda: ModulatedMLP(2, context_dim=-1), r"context_dim: expected a non-negative"),
        (lambda: UNet((8,)), r"event_shape: expected \(channels, height, width\)"),
        (lambda: UNet((1, 8, 8), channels=()), r"channels: expected at least one level"),
        (lambda: UNet((1, 8, 8), out_channels=0), r"out_channels: expected positive"),
        (
            lambda: Preconditioned(ModulatedMLP(2), VariancePreserving(), data_std=0.0),
            r"data_std: expected a positive finite number, got 0.0",
        ),
        (
            lambda: Preconditioned(torch.nn.Identity(), VariancePreserving()),
            r"event_dim: expected the number of dimensions",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
