r"""Flows on a sphere: densities of directions.

.. math:: x = f(\epsilon) \in S^D, \qquad \epsilon \sim \mathrm{Uniform}(S^D), \qquad
   \log p(x) = -\log |S^D| - \log \left| \det \frac{\partial f}{\partial \epsilon} \right| ,

where density and determinant are those of the surface, not of the space around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import FlowDistribution, UniformSphere
from pyrogen.distributions._base import as_base
from pyrogen.models.flow import dtype_of, num_events, probe_event_shape, refuse_num_samples
from pyrogen.transforms._chain import Chain

__all__ = ["SphericalFlow"]


class SphericalFlow(PyroModule):
    """Flow on the sphere as a Pyro model with site ``"x"`` in plate ``"data"``.

    Its guide is :class:`pyrogen.guides.Empty`.

    Args:
        dim: dimension D of the sphere; a datum is a unit vector ``[D + 1]``.
        transforms: bijections of the sphere onto itself, in order of application from base to data.
        base: ``None`` for the uniform distribution; a distribution on the sphere of batch shape
            ``[]``; or a module that returns one when called without arguments.

    Attributes:
        event_shape: ``(dim + 1,)``.

    Raises:
        TypeError: if ``base`` or a transform is none.
        ValueError: if ``dim`` is not positive, a transform needs a context, or shapes do not fit.

    References:
        M. C. Gemici, D. J. Rezende, S. Mohamed, *Normalizing flows on Riemannian manifolds*, 2016,
        arXiv:1611.02304.
        D. J. Rezende et al., *Normalizing flows on tori and spheres*, 2020, arXiv:2002.02428.

    Example:
        >>> import torch
        >>> model = SphericalFlow(2)
        >>> torch.allclose(model(None, num_samples=5).norm(dim=-1), torch.ones(5))
        True
    """

    def __init__(self, dim: int, transforms: Iterable[Any] = (), base: Any = None) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim: expected a positive integer, got {dim!r}")
        self.base = _Uniform(dim) if base is None else as_base(base)
        self.transforms = Chain(transforms)
        if self.transforms.conditional:
            raise ValueError("transforms: expected transforms without a context, got one with")
        self.event_shape = probe_event_shape(self.distribution)
        if self.event_shape != (dim + 1,):
            raise ValueError(
                f"base, transforms: expected events of shape [{dim + 1}] (unit vectors of S^{dim}),"
                f" got {list(self.event_shape)}"
            )

    def distribution(self) -> FlowDistribution:
        """Returns the density of a datum with respect to the surface of the sphere."""
        return FlowDistribution(self.base(), self.transforms.condition())

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws.

        Args:
            data: unit vectors ``[n, D + 1]``, or ``None`` to draw. Outer plates stand to the left
                of ``n``.
            num_samples: how many events to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, D + 1]``.

        Raises:
            ValueError: if data have another dtype or shape, are empty or, with validation on, not
                of unit norm; or if data and ``num_samples`` are both given.
        """
        flow = self.distribution()
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            check_data(data, self.event_shape, dtype=dtype_of(flow))
            _check_norm(data)
            size = data.shape[-2]
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", flow, obs=data)
        return x


class _Uniform(nn.Module):
    """The uniform distribution, in the dtype of the module."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("_zeros", torch.zeros(dim + 1), persistent=False)
        self._zeros: Tensor

    def forward(self) -> TorchDistribution:
        return UniformSphere(self._zeros)


def _check_norm(data: Tensor) -> None:
    """Reads values, so it runs only while Pyro validates; as strict as Pyro's own support."""
    if not is_validation_enabled():
        return
    error = (data.norm(dim=-1) - 1).abs().max().item()
    allowed = 10 * torch.finfo(data.dtype).eps * data.shape[-1] ** 0.5
    if error > allowed:
        raise ValueError(
            f"data: expected unit vectors, got lengths that differ from 1 by up to {error:.3g}; "
            "divide each by its norm, data / data.norm(dim=-1, keepdim=True)"
        )
