"""The Sylvester flow; its determinant and inverse are in the conformance suite."""

from __future__ import annotations

import pyro.distributions.transforms as T
import pytest
import torch

from pyrogen.transforms import Sylvester


def test_the_basis_is_orthonormal_for_every_context():
    layer = Sylvester(5, rank=3, context_dim=2).double()
    basis = layer._matrices(torch.randn(7, 2, dtype=torch.float64)).basis
    expected = torch.eye(3, dtype=torch.float64).expand(7, 3, 3)
    torch.testing.assert_close(basis.mT @ basis, expected)


def test_what_is_orthogonal_to_the_basis_is_kept():
    layer, x = Sylvester(5, rank=2), torch.randn(8, 5)
    basis = layer._matrices(None).basis
    complement = torch.eye(5) - basis @ basis.T
    torch.testing.assert_close(layer(x) @ complement, x @ complement, atol=1e-6, rtol=1e-5)
    assert (layer(x) - x).abs().max() > 1e-3


def test_the_inverse_holds_near_the_edge_of_invertibility():
    """Diagonals of nearly opposite signs: the slope in some directions is nearly zero."""
    layer = Sylvester(4).double()
    with torch.no_grad():
        _, outer, inner, _ = layer.bias.split(layer._sizes)
        outer.reshape(4, 4).diagonal().fill_(2.0)
        inner.reshape(4, 4).diagonal().fill_(-2.0)
    x = torch.randn(50, 4, dtype=torch.float64)
    y, log_det = layer.forward_and_log_det(x)
    assert log_det.min() < -4
    torch.testing.assert_close(layer.inv(y), x, atol=1e-10, rtol=0)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_gradients_of_the_inverse(context_dim):
    layer = Sylvester(3, rank=2, context_dim=context_dim).double()
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, context_dim, dtype=torch.float64) if context_dim else None
    parameter = layer.bias.detach().clone().requires_grad_()

    def inverse(y, bias):
        return torch.func.functional_call(_Inverse(layer), {"layer.bias": bias}, (y, context))

    assert torch.autograd.gradcheck(inverse, (y, parameter))


class _Inverse(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, y, context):
        return self.layer.inverse_and_log_det(y, context)


def test_pyros_determinant_is_still_wrong():
    """The day it is right, this library's own may go."""
    layer, x = T.Sylvester(3, count_transforms=1), torch.randn(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    jacobian = torch.autograd.functional.jacobian(layer, x)
    log_det = layer.log_abs_det_jacobian(x, layer(x))
    assert (torch.linalg.slogdet(jacobian)[1] - log_det).abs() > 1e-3


def test_saturated_parameters_keep_it_invertible():
    layer = Sylvester(3)
    with torch.no_grad():
        _, outer, inner, _ = layer.bias.split(layer._sizes)
        outer.reshape(3, 3).diagonal().fill_(100.0)
        inner.reshape(3, 3).diagonal().fill_(-100.0)
    _, log_det = layer.forward_and_log_det(torch.zeros(3))
    log_det.backward()
    assert log_det.isfinite()
    assert layer.bias.grad.isfinite().all()


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at most dim = 2, got 3"):
        Sylvester(2, rank=3)
    with pytest.raises(ValueError, match="expected positive integers"):
        Sylvester(2, rank=0)
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 2\]"):
        Sylvester(2)(torch.zeros(3))
