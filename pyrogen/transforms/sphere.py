r"""Flows on the sphere :math:`S^D = \{x \in \mathbb{R}^{D+1} : \|x\| = 1\}`.

Densities and log-determinants are with respect to the surface measure. Two ways lead there.

*Through the plane.* The stereographic projection :math:`u = x_{1:D} / (1 - x_{D+1})` stretches
areas by :math:`(1 - x_{D+1})^{-D}`, so a flow :math:`v = f(u)` of :math:`\mathbb{R}^D` becomes one
of the sphere with

.. math:: \log |\det| = \log \left|\det \frac{\partial f}{\partial u}\right|
   + D \log \frac{1 - y_{D+1}}{1 - x_{D+1}} .

Its pole, the point :math:`x_{D+1} = 1`, is infinity in the plane: where ``f`` does not tend to the
identity there, the density at the pole is zero, infinite or depends on the direction. The pole
itself has no image, and is refused.

*Along the surface.* A field :math:`v(x, t)` projected on the tangent plane,
:math:`g(x, t) = (I - \hat x \hat x^\top)\, v(\hat x, t)` with :math:`\hat x = x / \|x\|`, carries
the sphere into itself. It does not change along the radius, so the trace of its Jacobian in
:math:`\mathbb{R}^{D+1}` is its divergence on the surface, and the density is smooth everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import Transform

from pyrogen.transforms._bijection import (
    Bijection,
    ValueAndLogDet,
    forward_through,
    inverse_through,
)
from pyrogen.transforms._chain import Chain
from pyrogen.transforms.continuous import ContinuousFlow

__all__ = ["ContinuousSphereFlow", "SphereFlow"]


class SphereFlow(Bijection):
    r"""Any flow of :math:`\mathbb{R}^D`, wrapped around the sphere by stereographic projection.

    Args:
        transforms: one transform of vectors of size ``D``, or several in order; of this library, of
            torch or of Pyro.

    Raises:
        TypeError: if ``transforms`` holds something else than transforms.
        ValueError: if a conditional transform of Pyro is among them, which does not tell the size
            of its context; on call, while Pyro's validation is on, if a point is not of unit norm,
            or is the pole.

    References:
        M. C. Gemici, D. J. Rezende, S. Mohamed, *Normalizing flows on Riemannian manifolds*, 2016,
        arXiv:1611.02304.

    Example:
        >>> flow = SphereFlow(dist.transforms.Planar(2))
        >>> x = dist.ProjectedNormal(torch.zeros(3)).sample((5,))
        >>> y, log_det = flow.forward_and_log_det(x)
        >>> bool((y.norm(dim=-1) - 1).abs().max() < 1e-6)
        True
    """

    def __init__(self, transforms: Transform | Iterable[Any]) -> None:
        chain = Chain(transforms)
        super().__init__(context_dim=max((getattr(t, "context_dim", 0) for t in chain), default=0))
        if chain.conditional and not self.context_dim:
            raise ValueError(
                "transforms: expected conditional transforms that tell their context_dim, got one "
                "of Pyro's; use those of pyrogen.transforms"
            )
        self.domain = self.codomain = dist.constraints.sphere
        self.transforms = chain

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Projects, maps forward in the plane, and projects back."""
        _check_on_sphere(x, "x")
        u, shrunk = _to_plane(x, "x")
        v, log_det = forward_through(self.transforms.condition(context), u, 1, context)
        y, shrinks = _to_sphere(v)
        return y, log_det + shrinks - shrunk

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Projects, maps back in the plane, and projects back."""
        _check_on_sphere(y, "y")
        v, shrinks = _to_plane(y, "y")
        u, log_det = inverse_through(self.transforms.condition(context), v, 1, context)
        x, shrunk = _to_sphere(u)
        return x, log_det + shrinks - shrunk


class ContinuousSphereFlow(Bijection):
    r"""The flow of a field along the sphere, from t = 0 to 1, without an exceptional point.

    Args:
        dynamics: module that maps ``x [*batch, D + 1]`` and the scalar tensor ``t`` (and a context,
            with ``context_dim > 0``) to the shape of ``x``; what points off the tangent plane is
            removed.
        context_dim: size of the context, 0 for none.
        **options: trace and solver, as in :class:`~pyrogen.transforms.ContinuousFlow`; the same
            warning holds of coarse fixed steps, which leave the sphere besides.

    Raises:
        TypeError: if ``dynamics`` is no module.
        ValueError: as :class:`~pyrogen.transforms.ContinuousFlow`; on call, while Pyro's validation
            is on, if a point is not of unit norm.

    References:
        A. Lou et al., *Neural manifold ordinary differential equations*, 2020, arXiv:2006.10254.
        E. Mathieu, M. Nickel, *Riemannian continuous normalizing flows*, 2020, arXiv:2006.10605.

    Example:
        >>> from pyrogen.nn import TimeMLP
        >>> flow = ContinuousSphereFlow(TimeMLP(3, hidden=(16,)))
        >>> x = dist.ProjectedNormal(torch.zeros(3)).sample((5,))
        >>> y, log_det = flow.forward_and_log_det(x)
        >>> bool((flow.inv(y) - x).abs().max() < 1e-3)
        True
    """

    def __init__(self, dynamics: nn.Module, context_dim: int = 0, **options: Any) -> None:
        super().__init__(context_dim=context_dim)
        if not isinstance(dynamics, nn.Module):
            raise TypeError(
                f"dynamics: expected a torch.nn.Module, got {type(dynamics).__name__}; the "
                "parameters of a plain function would not be trained"
            )
        self.domain = self.codomain = dist.constraints.sphere
        self.flow = ContinuousFlow(_Tangent(dynamics), 1, context_dim, **options)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Solves from 0 to 1."""
        _check_on_sphere(x, "x")
        y, log_det = self.flow.forward_and_log_det(x, context)
        return _normalized(y), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Solves from 1 to 0."""
        _check_on_sphere(y, "y")
        x, log_det = self.flow.inverse_and_log_det(y, context)
        return _normalized(x), log_det

    def forward_value(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Solves from 0 to 1, without the trace."""
        _check_on_sphere(x, "x")
        return _normalized(self.flow.forward_value(x, context))

    def inverse_value(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Solves from 1 to 0, without the trace."""
        _check_on_sphere(y, "y")
        return _normalized(self.flow.inverse_value(y, context))


class _Tangent(nn.Module):
    """A field, projected on the tangent planes of the spheres and constant along the radius."""

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        x = _normalized(x)
        v = self.dynamics(x, t, *context)
        tangent: Tensor = v - (v * x).sum(-1, keepdim=True) * x
        return tangent


def _to_plane(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Stereographic projection, and the logarithm by which its inverse shrinks areas there."""
    head, last = x[..., :-1], x[..., -1:]
    # Two forms of 1 - last; the first does not cancel near the pole.
    near = head.square().sum(-1, keepdim=True) / (1 + last).clamp_min(1.0)
    distance = torch.where(last > 0, near, 1 - last)
    if is_validation_enabled() and not (distance > 0).all():
        raise ValueError(
            f"{name}: expected points other than the pole of the projection, [0, ..., 0, 1], got "
            f"{int((distance <= 0).sum())} there; turn the data by a rotation, or use "
            "ContinuousSphereFlow, which has no pole"
        )
    return head / distance, head.shape[-1] * distance.squeeze(-1).log()


def _to_sphere(u: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse projection, and the logarithm by which it shrinks areas."""
    square = u.square().sum(-1, keepdim=True)
    x = torch.cat([2 * u, square - 1], dim=-1) / (square + 1)
    return _normalized(x), u.shape[-1] * (2 / (square + 1)).squeeze(-1).log()


def _normalized(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def _check_on_sphere(x: Tensor, name: str) -> None:
    if is_validation_enabled() and not dist.constraints.sphere.check(x).all():
        worst = float((x.norm(dim=-1) - 1).abs().max())
        raise ValueError(
            f"{name}: expected points of unit norm, got norms that are off by up to {worst:.1e}; "
            "divide by x.norm(dim=-1, keepdim=True)"
        )
