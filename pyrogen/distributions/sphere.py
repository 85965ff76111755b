r"""The uniform distribution on a sphere.

On :math:`S^D = \{x \in \mathbb{R}^{D+1} : \|x\| = 1\}` the density with respect to its surface is

.. math:: p(x) = \frac{1}{|S^D|}, \qquad
   |S^D| = \frac{2 \pi^{(D+1)/2}}{\Gamma((D+1)/2)} .
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions import constraints as pyro_constraints
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["UniformSphere"]


class UniformSphere(TorchDistribution):
    """Unit vectors, each as likely as any other.

    Args:
        like: a tensor of shape ``[D + 1]`` whose dtype and device the samples have; its values do
            not matter.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if ``like`` is no vector of at least 2 elements in floating point; with
            validation on, if a scored value is not of unit norm.

    Example:
        >>> import torch
        >>> sphere = UniformSphere(torch.zeros(3))
        >>> torch.allclose(sphere.sample((5,)).norm(dim=-1), torch.ones(5))
        True
        >>> sphere.log_prob(torch.tensor([0.0, 0.0, 1.0])).exp()  # 1 / (4 pi)
        tensor(0.0796)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = pyro_constraints.sphere
    has_rsample = True  # nothing to differentiate

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        if like.dim() != 1 or len(like) < 2 or not like.is_floating_point():
            raise ValueError(
                "like: expected shape [D + 1] with D at least 1, in floating point, got "
                f"{list(like.shape)} of {like.dtype}"
            )
        self._like = like
        super().__init__(Size(), like.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformSphere:
        """Returns the distribution with ``batch_shape``."""
        new: UniformSphere = self._get_checked_instance(UniformSphere, _instance)
        new._like = self._like
        super(UniformSphere, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws ``[*sample_shape, *batch_shape, D + 1]``: normal vectors of length one."""
        shape = self._extended_shape(Size(sample_shape))
        normal = torch.randn(shape, dtype=self._like.dtype, device=self._like.device)
        unit: Tensor = normal / normal.norm(dim=-1, keepdim=True)
        return unit

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats with respect to the surface, ``[*]`` for ``[*, D + 1]``."""
        if self._validate_args:
            self._validate_sample(value)
        half = value.shape[-1] / 2
        log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full((), -log_area).expand(shape)
