r"""Flows on the torus: angles :math:`\theta \in [-\pi, \pi]^D` with both ends identified.

An angle is changed by a rational-quadratic spline of the interval whose slopes at both ends are
equal, and then turned. That is a smooth map of the circle onto itself, and as the phase is free, no
point of the circle is special. Couplings make a flow of several angles of it: some are kept, and a
network that sees their cosines and sines (and so is periodic itself) decides on the splines and
phases of the others,

.. math:: \theta'_b = s(\theta_b; \phi(\cos \theta_a, \sin \theta_a)) + \alpha(\cdot)
   \bmod 2 \pi, \qquad \log |\det| = \sum_b \log s'(\theta_b) .
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import constraints

from pyrogen.nn import MLP
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet
from pyrogen.transforms._splines import bounded_knots, spline, spline_inverse

__all__ = ["TorusFlow"]


class TorusFlow(Bijection):
    r"""Couplings of angles by circular splines.

    It starts as the identity. Each layer changes every other angle, in turn the odd and the even
    ones; a single angle is changed by every layer.

    Args:
        dim: number of angles.
        num_bins: bins of each spline.
        num_layers: number of couplings; with less than two, half of the angles stay as they are.
        hidden: widths of the hidden layers of the networks.
        context_dim: size of the context, 0 for none.

    Raises:
        ValueError: if a number is not positive; on call, for another number of angles, or, while
            Pyro's validation is on, for angles outside of :math:`[-\pi, \pi]`.

    References:
        D. J. Rezende et al., *Normalizing flows on tori and spheres*, 2020, arXiv:2002.02428.

    Example:
        >>> flow = TorusFlow(2, num_bins=5, hidden=(16,))
        >>> angles = torch.rand(4, 2) * 6.28 - 3.14
        >>> y, log_det = flow.forward_and_log_det(angles)
        >>> bool((flow.inv(y) - angles).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        num_bins: int = 8,
        num_layers: int = 2,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
    ) -> None:
        if dim < 1 or num_bins < 1 or num_layers < 1:
            raise ValueError(
                "dim, num_bins, num_layers: expected positive integers, got "
                f"{dim}, {num_bins}, {num_layers}"
            )
        super().__init__(context_dim=context_dim)
        interval = constraints.interval(-math.pi, math.pi)
        self.domain = self.codomain = constraints.independent(interval, 1)
        self.dim = dim
        self.layers = nn.ModuleList(
            _CircularCoupling(dim, layer % 2 if dim > 1 else 0, num_bins, hidden, context_dim)
            for layer in range(num_layers)
        )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps angles forward, layer by layer."""
        return self._through(list(self.layers), x, context, inverse=False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Maps angles back, layer by layer."""
        return self._through(list(self.layers)[::-1], y, context, inverse=True)

    def _through(
        self, layers: list[nn.Module], x: Tensor, context: Tensor | None, inverse: bool
    ) -> ValueAndLogDet:
        self._check(x, context)
        if context is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x, context = x.expand(*batch, -1), context.expand(*batch, -1)
        total = x.new_zeros(x.shape[:-1])
        for layer in layers:
            x, log_det = layer(x, context, inverse)
            total = total + log_det
        return x, total

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(
                f"TorusFlow: expected angles of shape [*, {self.dim}], got {list(x.shape)}"
            )
        got = 0 if context is None else context.shape[-1]
        if got != self.context_dim:
            raise ValueError(
                f"TorusFlow: expected a context of size {self.context_dim}, got size {got}"
            )
        if x.numel() and is_validation_enabled() and not self.domain.check(x).all():
            raise ValueError(
                "TorusFlow: expected angles between -pi and pi, got values from "
                f"{float(x.min()):.6g} to {float(x.max()):.6g}; wrap them by "
                "torch.remainder(x + pi, 2 * pi) - pi"
            )


class _CircularCoupling(nn.Module):
    """Changes every other angle."""

    def __init__(
        self, dim: int, first: int, num_bins: int, hidden: Sequence[int], context_dim: int
    ) -> None:
        super().__init__()
        self._change, self._keep = list(range(first, dim, 2)), list(range(1 - first, dim, 2))
        shape = len(self._change), 3 * num_bins + 1
        size = 2 * len(self._keep) + context_dim
        self.network: MLP | None = None
        if size:
            self.network = MLP(size, shape, hidden, nn.Tanh)
            nn.init.zeros_(self.network.layers[-1].weight)  # type: ignore[arg-type]
        else:  # the network of no input
            self.free = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, context: Tensor | None, inverse: bool) -> ValueAndLogDet:
        kept = [x[..., i] for i in self._keep]
        parameters = self._parameters_of(kept, context)
        knots = bounded_knots(parameters[..., :-1], math.pi, periodic=True)
        phase = parameters[..., -1]
        old = torch.stack([x[..., i] for i in self._change], dim=-1)
        if inverse:
            new, log_slope = spline_inverse(_wrapped(old - phase), knots)
        else:
            new, log_slope = spline(old, knots)
            new = _wrapped(new + phase)
        return self._joined(kept, new), log_slope.sum(-1)

    def _parameters_of(self, kept: list[Tensor], context: Tensor | None) -> Tensor:
        if self.network is None:
            return self.free
        inputs = [f(angle).unsqueeze(-1) for angle in kept for f in (torch.cos, torch.sin)]
        if context is not None:
            inputs.append(context)
        parameters: Tensor = self.network(torch.cat(inputs, dim=-1))
        return parameters

    def _joined(self, kept: list[Tensor], new: Tensor) -> Tensor:
        columns = dict(zip(self._keep, kept, strict=True))
        columns.update(zip(self._change, new.unbind(-1), strict=True))
        return torch.stack([columns[i] for i in range(len(columns))], dim=-1)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi).sub(math.pi).clamp(-math.pi, math.pi)
