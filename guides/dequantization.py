r"""Guides for the continuous value behind a level.

A :class:`pyrogen.models.Flow` or :class:`pyrogen.models.ConditionalFlow` with ``levels=K`` rounds a
latent value ``v`` down to a level. Given the level ``x``, the value is

.. math:: v = (x + u) / K, \qquad u \sim q(u \mid x) \text{ on } [0, 1]^D ,

with :math:`q` uniform, or a flow that a network conditions on the data. The ELBO is the
dequantisation bound

.. math:: \log p(x) \ge \mathbb{E}_{q(u \mid x)}
   \left[\log p\!\left(\tfrac{x + u}{K}\right) - D \log K - \log q(u \mid x)\right] .
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import AffineTransform, SigmoidTransform, Transform

from pyrogen.checks import check_data
from pyrogen.distributions import FlowDistribution
from pyrogen.guides._local import sample_local
from pyrogen.transforms._chain import Chain

__all__ = ["UniformDequantization", "VariationalDequantization"]


class _Dequantization(PyroModule):
    """What the two have in common; a subclass defines ``_noise``."""

    def __init__(self, levels: int, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels: expected an integer above 1, got {levels!r}")
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"event_shape: expected positive integers, got {event_shape!r}")
        self.levels, self.event_shape = levels, shape
        self.register_buffer("_zeros", torch.zeros(shape), persistent=False)
        self._zeros: Tensor

    def _noise(self, data: Tensor) -> tuple[Any, list[Transform]]:
        """Returns what the noise u in [0, 1] starts from, and the transforms that make it."""
        raise NotImplementedError(f"{type(self).__name__} defines no _noise")

    def posterior(self, data: Tensor) -> FlowDistribution:
        """Returns q(v | x) for each datum.

        Args:
            data: levels, int64 ``[*, *event_shape]``.

        Returns:
            A distribution of batch shape ``[*]`` and event shape ``event_shape``.

        Raises:
            ValueError: if data are no int64 levels ``0..levels-1`` of that event shape.
        """
        self._check(data)
        base, transforms = self._noise(data)
        level = data.to(self._zeros.dtype)
        batch = data.shape[: data.dim() - len(self.event_shape)]
        shift = AffineTransform(level / self.levels, 1 / self.levels, len(self.event_shape))
        return FlowDistribution(base.expand(batch), [*transforms, shift])

    def forward(
        self, *args: Tensor | None, data: Tensor | None = None, num_samples: int | None = None
    ) -> Tensor:
        """Samples ``"v"`` given data.

        Args:
            args: what the model takes: data, or a context and data. Only the data, which come
                last, are looked at: levels, int64 ``[n, *event_shape]``. Outer plates stand to the
                left of ``n``.
            data: the same by name.
            num_samples: only for the model's signature; must be ``None``.

        Returns:
            The value of site ``"v"``, ``[n, *event_shape]``.

        Raises:
            ValueError: if there are no data, or ``num_samples`` is given; see also
                :meth:`posterior`.
        """
        given = args[-1] if args and data is None else data
        return sample_local("v", self.posterior, given, num_samples)

    def _check(self, data: Tensor) -> None:
        check_data(data, self.event_shape, dtype=torch.int64)
        if is_validation_enabled() and not ((data >= 0) & (data < self.levels)).all():
            raise ValueError(
                f"data: expected levels 0..{self.levels - 1}, got values from "
                f"{data.min().item()} to {data.max().item()}; number the levels from 0"
            )


class UniformDequantization(_Dequantization):
    r"""Guide for site ``"v"`` of a flow with levels: uniform within the bin of the level.

    It has no parameters. The bound it gives is the usual likelihood of data with uniform noise
    added.

    Args:
        levels: the model's number K of levels.
        event_shape: shape of one datum.

    Raises:
        ValueError: if ``levels`` is no integer above 1 or a size is not positive.

    References:
        L. Theis, A. van den Oord, M. Bethge, *A note on the evaluation of generative models*, 2016,
        arXiv:1511.01844.

    Example:
        >>> import torch
        >>> guide = UniformDequantization(levels=4, event_shape=(2,))
        >>> (4 * guide(torch.tensor([[0, 3], [1, 2]]))).floor()
        tensor([[0., 3.],
                [1., 2.]])
    """

    def _noise(self, data: Tensor) -> tuple[Any, list[Transform]]:
        uniform = dist.Uniform(self._zeros, torch.ones_like(self._zeros))
        return uniform.to_event(len(self.event_shape)), []


class VariationalDequantization(_Dequantization):
    r"""Guide for site ``"v"`` of a flow with levels: a learned flow within the bin.

    .. math:: u = \sigma(f(\epsilon; c)), \qquad \epsilon \sim N(0, I), \qquad
       c = \mathrm{encoder}(2 x / (K - 1) - 1) .

    Args:
        levels: the model's number K of levels.
        event_shape: shape of one datum.
        transforms: what carries :math:`\epsilon` to the logits of :math:`u`; those with a context
            are given :math:`c`.
        encoder: network from the levels, scaled to [-1, 1], ``[*, *event_shape]``, to the context
            ``[*, context_dim]``. Needed if a transform has a context.

    Raises:
        TypeError: if ``encoder`` is no ``torch.nn.Module`` or a transform is none.
        ValueError: if ``levels`` is no integer above 1, a size is not positive, or a transform
            needs a context and there is no encoder.

    References:
        J. Ho et al., *Flow++: improving flow-based generative models with variational
        dequantization and architecture design*, 2019, arXiv:1902.00275.

    Example:
        >>> import torch
        >>> from pyrogen.nn import MLP
        >>> from pyrogen.transforms import AffineCoupling
        >>> coupling = AffineCoupling(2, context_dim=8)
        >>> guide = VariationalDequantization(4, (2,), [coupling], encoder=MLP(2, 8, (32,)))
        >>> (4 * guide(torch.tensor([[0, 3], [1, 2]]))).floor()
        tensor([[0., 3.],
                [1., 2.]], grad_fn=<FloorBackward0>)
    """

    def __init__(
        self,
        levels: int,
        event_shape: int | Sequence[int],
        transforms: Iterable[Any],
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(levels, event_shape)
        if encoder is not None and not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}")
        self.encoder = encoder
        self.transforms = Chain(transforms)
        if self.transforms.conditional and encoder is None:
            raise ValueError(
                "encoder: expected a network, as a transform needs a context, got None"
            )

    def _noise(self, data: Tensor) -> tuple[Any, list[Transform]]:
        normal = dist.Normal(self._zeros, torch.ones_like(self._zeros))
        context = None
        if self.encoder is not None:
            scaled = data.to(self._zeros.dtype) * (2 / (self.levels - 1)) - 1
            context = self.encoder(scaled)
        transforms = [*self.transforms.condition(context), SigmoidTransform()]
        return normal.to_event(len(self.event_shape)), transforms
