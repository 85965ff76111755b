"""The invertible convolution against torch's own convolution and determinant."""

from __future__ import annotations

import pytest
import torch

from pyrogen.transforms import InvertibleConvolution


def perturbed(*args, **kwargs):
    layer = InvertibleConvolution(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def test_it_is_a_convolution_with_the_determinant_of_its_matrix():
    layer, x = perturbed(4, event_dim=3), torch.randn(5, 4, 3, 2, dtype=torch.float64)
    y, log_det = layer.forward_and_log_det(x)
    weight = layer.matrix()
    torch.testing.assert_close(y, torch.conv2d(x, weight[:, :, None, None]))
    torch.testing.assert_close(log_det, 6 * torch.linalg.slogdet(weight)[1].expand(5))


def test_vectors_are_multiplied_by_the_matrix():
    layer, x = perturbed(4), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.matrix().T)


def test_it_begins_with_a_rotation():
    matrix = InvertibleConvolution(12).double().matrix()
    identity = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, atol=1e-6, rtol=0)
    assert (matrix - identity).abs().max() > 0.1


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match=r"expected 4 channels in dimension -3, got shape \[3, 2"):
        InvertibleConvolution(4, event_dim=3)(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="expected positive integers"):
        InvertibleConvolution(0)
