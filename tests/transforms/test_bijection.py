"""What runs any transform in one pass: ours, torch's and Pyro's, against their own methods."""

from __future__ import annotations

import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions import ComposeTransformModule
from torch import nn
from torch.distributions import constraints

from pyrogen.transforms import ActNorm, AdditiveCoupling, Bijection, Inverse, initialize
from pyrogen.transforms._bijection import forward_and_log_det, inverse_and_log_det

# Transforms of torch and Pyro that contain others, with an event they take.
NESTED = {
    "compose": (T.ComposeTransform([T.ExpTransform(), T.affine_coupling(4, [8])]), 4),
    "compose of vectors and scalars": (
        T.ComposeTransform([T.affine_coupling(4, [8]), T.SigmoidTransform()]),
        4,
    ),
    "compose that reduces": (T.ComposeTransform([T.StickBreakingTransform()]), 4),
    "independent": (T.IndependentTransform(T.ExpTransform(), 1), 4),
    "inverse": (T.affine_coupling(4, [8]).inv, 4),
    "inverse of a composition": (
        T.ComposeTransform([T.affine_coupling(4, [8]), T.affine_coupling(4, [8])]).inv,
        4,
    ),
    "stack": (T.StackTransform([T.ExpTransform(), T.AffineTransform(1.0, 2.0)], dim=-1), 2),
    "cat": (T.CatTransform([T.ExpTransform(), T.SigmoidTransform()], dim=-1, lengths=[1, 2]), 3),
    "module": (ComposeTransformModule([T.Householder(4), T.affine_coupling(4, [8])]), 4),
}


@pytest.mark.parametrize("name", NESTED)
def test_one_pass_agrees_with_torchs_own_two(name):
    transform, size = NESTED[name]
    x = torch.rand(5, size)
    y, log_det = forward_and_log_det(transform, x)
    torch.testing.assert_close(y, transform(x))
    torch.testing.assert_close(log_det, transform.log_abs_det_jacobian(x, y))
    back, same = inverse_and_log_det(transform, y)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, log_det, atol=1e-4, rtol=1e-4)


def test_the_network_of_a_coupling_runs_once():
    transform = T.affine_coupling(4, [8])
    calls = []
    transform.nn.register_forward_hook(lambda *_: calls.append(1))
    forward_and_log_det(transform, torch.randn(3, 4))
    inverse_and_log_det(transform, torch.randn(3, 4))
    assert len(calls) == 2


def test_pyros_caches_are_left_empty():
    transform = ComposeTransformModule([T.affine_coupling(4, [8]), T.spline_coupling(4)])
    y, _ = forward_and_log_det(transform, torch.randn(3, 4))
    inverse_and_log_det(transform, y)
    for module in transform.modules():
        for name, value in vars(module).items():
            if name.startswith("_cached") or name == "_cache_log_detJ":
                assert value in (None, (None, None)), name


def test_pyros_own_cache_goes_stale_and_ours_does_not():
    """The bug that all this is for; the day Pyro mends it, the helpers may become simpler."""
    transform = T.affine_coupling(4, [8])
    x = torch.randn(3, 4)
    y = transform(x)
    before = transform.log_abs_det_jacobian(x, y)
    forward, _ = forward_and_log_det(transform, x)
    transform(x)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(1.0)
    fresh = T.affine_coupling(4, [8])
    fresh.load_state_dict(transform.state_dict())
    assert torch.equal(transform(x), forward)  # stale
    assert not torch.allclose(fresh(x), forward)
    y, log_det = forward_and_log_det(transform, x)
    assert torch.equal(y, fresh(x))
    assert not torch.allclose(log_det, before)


def test_the_inverse_keeps_parameters_registered():
    holder = nn.ModuleList([T.affine_coupling(4, [8]), Inverse(T.affine_coupling(4, [8]))])
    assert len(list(holder.parameters())) == 2 * len(list(holder[0].parameters()))
    assert isinstance(AdditiveCoupling(4).inv, nn.Module)


def test_the_inverse_of_what_is_no_transform_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.distributions\.Transform, got Linear"):
        Inverse(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"an \.inv of their own"):
        Inverse(T.conditional_affine_coupling(4, 2))


def test_initialize_reaches_nested_layers():
    """Every ActNorm, wherever it stands, sees standardised data pass on."""
    layers = [ActNorm(2) for _ in range(4)]
    nested = [
        layers[0],
        ComposeTransformModule(
            [layers[1], T.SigmoidTransform().inv, Inverse(T.affine_coupling(2))]
        ),
        layers[2],
        T.AffineTransform(3.0, 2.0),
        layers[3],
    ]
    data = torch.randn(500, 2).exp()
    latent = initialize(nested, data)
    torch.testing.assert_close(latent.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.std(0, correction=0), torch.ones(2))
    expected, _ = inverse_and_log_det(T.ComposeTransform(nested), data)
    torch.testing.assert_close(latent, expected)
    assert all(layer.loc.abs().sum() > 0 for layer in layers[1:])


def test_event_dimensions_are_those_asked_for():
    class Identity(Bijection):
        def forward_and_log_det(self, x, context=None):
            return x, x.new_zeros(x.shape[:-2])

        inverse_and_log_det = forward_and_log_det

    identity = Identity(event_dim=2)
    assert identity.domain.event_dim == identity.codomain.event_dim == identity.event_dim == 2
    assert isinstance(identity.domain.base_constraint, type(constraints.real))
    with pytest.raises(ValueError, match="expected non-negative integers"):
        Identity(event_dim=-1)
    with pytest.raises(TypeError, match="abstract"):
        Bijection()
