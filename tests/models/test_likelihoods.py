"""The likelihoods by themselves; their densities are held by ``test_programs``."""

from __future__ import annotations

import pytest
import torch

from pyrogen.models import LIKELIHOODS, Categorical, Likelihood, Normal
from pyrogen.models.likelihoods import as_likelihood


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("event_shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("batch_shape", [(), (4,), (7, 4)])
def test_event_dimensions_become_dependent(name, event_shape, batch_shape):
    likelihood = as_likelihood(name)
    parameters = torch.randn(batch_shape + event_shape + (6,) * likelihood.parameter_dim)
    distribution = likelihood(parameters, len(event_shape))
    assert distribution.batch_shape == batch_shape
    assert distribution.event_shape == event_shape
    assert likelihood.mean(distribution).shape == batch_shape + event_shape
    draws = distribution.sample()
    assert draws.dtype == likelihood.data_dtype(parameters.dtype)
    supported, _ = likelihood.supports(draws, (*event_shape, 6))
    assert supported.all()


def test_expected_level_is_the_weighted_sum_of_levels():
    probs = torch.tensor([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]], dtype=torch.float64)
    likelihood = Categorical()
    expected = torch.tensor([0.2 + 2 * 0.7, 0.0], dtype=torch.float64)
    torch.testing.assert_close(likelihood.mean(likelihood(probs.log(), 1)), expected)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), torch.tensor([1.0, 0.0])])
def test_scale_must_be_positive_and_finite(scale):
    with pytest.raises(ValueError, match=r"scale: expected positive finite numbers, got"):
        Normal(scale)


@pytest.mark.parametrize("scale", [2, 0.3, torch.tensor([0.5, 2.0]), torch.tensor(3)])
@pytest.mark.parametrize("learned", [True, False])
def test_scale_is_a_parameter_only_if_learned(scale, learned):
    likelihood = Normal(scale, learned=learned)
    torch.testing.assert_close(
        likelihood.scale, torch.as_tensor(scale, dtype=torch.get_default_dtype())
    )
    assert [p.requires_grad for p in likelihood.parameters()] == [True] * learned


def test_scale_is_copied():
    scale = torch.ones(2)
    likelihood = Normal(scale, learned=False)
    scale.fill_(5.0)
    assert (likelihood.scale == 1).all()


def test_a_new_likelihood_must_define_its_methods():
    with pytest.raises(NotImplementedError, match="Likelihood defines no forward"):
        Likelihood()(torch.zeros(1), 0)
    with pytest.raises(NotImplementedError, match="Likelihood defines no supports"):
        Likelihood().supports(torch.zeros(1), ())
