r"""A shift and a scale for each channel, to begin with those of the data.

.. math:: y = b + e^{s} x, \qquad
   \log \left|\det \frac{\partial y}{\partial x}\right| = n \sum_c s_c

with :math:`n` positions to a channel. Before training, :meth:`ActNorm.initialize` sets :math:`b`
and :math:`e^s` to mean and standard deviation of a batch, so that what the layers before it see is
standardised, as batch normalisation would do, but for good and for any batch size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform

from pyrogen.nn.shapes import positive_ints
from pyrogen.transforms._bijection import Bijection, ValueAndLogDet, inverse_and_log_det

__all__ = ["ActNorm", "initialize"]


class ActNorm(Bijection):
    r"""Shifts and scales each channel: :math:`y = b + e^{s} x`.

    Args:
        num_channels: number of channels :math:`C`.
        event_dim: 1 for vectors ``[C]``, 3 for images ``[C, H, W]``: the channels come first.

    Attributes:
        loc: :math:`b`, ``[C]``; zero at first.
        log_scale: :math:`s`, ``[C]``; zero at first.

    Raises:
        ValueError: if ``num_channels`` or ``event_dim`` is not positive; on call, if the channels
            are not ``num_channels``.

    References:
        D. P. Kingma, P. Dhariwal, *Glow: generative flow with invertible 1×1 convolutions*, 2018,
        arXiv:1807.03039.

    Example:
        >>> layer = ActNorm(2)
        >>> data = 5 + 3 * torch.randn(1000, 2)
        >>> latent = layer.initialize(data)
        >>> latent.std(0, correction=0)
        tensor([1.0000, 1.0000])
    """

    def __init__(self, num_channels: int, event_dim: int = 1) -> None:
        positive_ints((num_channels, event_dim), "num_channels, event_dim")
        super().__init__(event_dim=event_dim)
        self.loc = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Scales and shifts."""
        loc, log_scale = self._along(x)
        return loc + log_scale.exp() * x, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Standardises."""
        loc, log_scale = self._along(y)
        return (y - loc) * (-log_scale).exp(), self._log_det(y)

    @torch.no_grad()
    def initialize(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Sets shift and scale to mean and standard deviation of a batch of data.

        Args:
            y: ``[*batch, C, *rest]``; more than one value in each channel.
            context: ignored.

        Returns:
            The data standardised, of the same shape.

        Raises:
            ValueError: if a channel is constant or not finite.
        """
        self._along(y)
        values = y.movedim(-self.domain.event_dim, 0).flatten(1)
        std = values.std(1, correction=0)
        if not (std.isfinite() & (std > 0)).all():
            bad = (~(std.isfinite() & (std > 0))).nonzero().flatten().tolist()
            raise ValueError(
                f"ActNorm: expected finite channels that vary over the batch, got constant or "
                f"non-finite channels {bad}; add noise (dequantise), remove them, or use more data"
            )
        self.loc.copy_(values.mean(1))
        self.log_scale.copy_(std.log())
        return self.inverse_value(y)

    def _along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale in the shape that broadcasts along the channels of ``x``."""
        event_dim = self.domain.event_dim
        if x.dim() < event_dim or x.shape[-event_dim] != len(self.loc):
            raise ValueError(
                f"ActNorm: expected shape [*, {', '.join([str(len(self.loc)), *'HWD'][:event_dim])}"
                f"], got {list(x.shape)}"
            )
        shape = (-1, *(1 for _ in range(event_dim - 1)))
        return self.loc.reshape(shape), self.log_scale.reshape(shape)

    def _log_det(self, x: Tensor) -> Tensor:
        event_dim = self.domain.event_dim
        positions = x.shape[x.dim() - event_dim + 1 :].numel()
        return (positions * self.log_scale.sum()).expand(x.shape[: x.dim() - event_dim])


@torch.no_grad()
def initialize(
    transforms: Transform | Iterable[Transform], data: Tensor, context: Tensor | None = None
) -> Tensor:
    """Data-dependent initialisation of a flow: each layer by the data as it sees them.

    The data run from the last transform back to the base. :class:`ActNorm` takes their mean and
    scale, :class:`~pyrogen.transforms.Gaussianization` their marginals, containers pass them to
    their parts; every other transform just maps them.

    Args:
        transforms: from base to data, as for :class:`~pyrogen.distributions.FlowDistribution`.
        data: a batch, ``[n, *event]``.
        context: ``[n, context_dim]``, for conditional transforms.

    Returns:
        The data mapped to the base, ``[n, *latent_event]``.

    Example:
        >>> first, last = ActNorm(2), torch.distributions.ExpTransform()
        >>> latent = initialize([first, last], torch.randn(1000, 2).exp())
        >>> latent.mean(0).abs() < 1e-5
        tensor([True, True])
    """
    parts = [transforms] if isinstance(transforms, Transform) else list(transforms)
    for part in reversed(parts):
        if isinstance(part, ComposeTransform):
            data = initialize(part.parts, data, context)
        elif isinstance(part, Bijection):
            data = part.initialize(data, context if part.context_dim else None)
        else:
            data, _ = inverse_and_log_det(part, data, context)
    return data
