"""The guide as a distribution, and its errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrogen.guides import AmortizedNormal
from pyrogen.nn import MLP, OneHot
from tests.statistics import assert_mean_close


def test_posterior_splits_the_output_into_mean_and_raw_scale():
    encoder = nn.Linear(4, 6).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    posterior = AmortizedNormal(encoder, 3).posterior(x)
    out = encoder(x)
    assert posterior.batch_shape == (5, 3)
    assert posterior.event_shape == (3,)
    torch.testing.assert_close(posterior.mean, out[..., :3])
    torch.testing.assert_close(posterior.stddev, torch.log1p(out[..., 3:].exp()))


def test_draws_follow_the_posterior():
    guide = AmortizedNormal(nn.Linear(4, 6), 3)
    row = torch.randn(1, 4)
    z = guide(row.expand(50_000, 4)).detach()
    posterior = guide.posterior(row)
    assert_mean_close(z, posterior.mean[0])
    assert_mean_close((z - posterior.mean) ** 2, posterior.variance[0])


def test_event_shape_comes_from_the_encoder_or_the_argument():
    assert AmortizedNormal(MLP((4, 5), 6), 3).event_shape == (4, 5)
    assert AmortizedNormal(nn.Linear(4, 6), 3).event_shape is None
    assert AmortizedNormal(nn.Linear(4, 6), 3, event_shape=[4]).event_shape == (4,)


def test_integers_reach_the_encoder_as_they_are():
    encoder = nn.Sequential(OneHot(3), nn.Flatten(-2), nn.Linear(6, 4))
    levels = torch.tensor([[0, 2], [1, 1]])
    expected = encoder[2](torch.eye(3)[levels].flatten(1))
    torch.testing.assert_close(AmortizedNormal(encoder, 2).posterior(levels).mean, expected[:, :2])


@pytest.mark.parametrize("arguments", [(), (None,), (None, 64)])
def test_without_data_it_points_to_the_model(arguments):
    with pytest.raises(ValueError, match=r"expected data .*got no data; .*model\(None, num_samp"):
        AmortizedNormal(nn.Linear(4, 6), 3)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": "mlp"}, TypeError, r"encoder: expected a torch.nn.Module, got str"),
        ({"latent_dim": 0}, ValueError, r"latent_dim: expected a positive integer, got 0"),
        ({"beta": 0}, ValueError, r"beta: expected a positive finite number, got 0"),
        ({"beta": float("inf")}, ValueError, r"beta: expected a positive finite number, got inf"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        AmortizedNormal(**{"encoder": nn.Linear(4, 6), "latent_dim": 3, **arguments})


@pytest.mark.parametrize(
    ("encoder", "data", "message"),
    [
        (nn.Linear(4, 3), torch.zeros(5, 4), r"expected output \[\*, 6\].*got \[5, 3\]"),
        (nn.Linear(4, 7), torch.zeros(5, 4), r"expected output \[\*, 6\].*got \[5, 7\]"),
        (nn.Flatten(0), torch.zeros(2, 3), r"expected output \[\*, 6\].*got \[6\]"),
        (nn.Linear(4, 6), torch.zeros(5, 4).double(), r"expected dtype torch.float32, got .*64"),
        (nn.Linear(4, 6), torch.full((5, 4), torch.inf), r"expected finite values, got 20"),
        (nn.Linear(4, 6), torch.zeros(0, 4), r"expected at least one datum, got shape \[0, 4\]"),
        (nn.Linear(4, 6), None, r"expected .*got no data"),
        (nn.Linear(4, 6), [[0.0] * 4], r"expected a torch.Tensor, got list"),
        (MLP(4, 6), torch.zeros(5, 3), r"expected shape \[\*, 4\].*got \[5, 3\]"),
    ],
)
def test_unusable_data_and_encoders_are_refused(encoder, data, message):
    with pytest.raises(ValueError, match=message):
        AmortizedNormal(encoder, 3)(data)


def test_a_number_of_samples_is_refused():
    with pytest.raises(ValueError, match=r"no num_samples, got num_samples=3"):
        AmortizedNormal(nn.Linear(4, 6), 3)(torch.zeros(5, 4), num_samples=3)
