r"""Preconditioning: a network that sees and predicts numbers of size one, at any level of noise.

Of a state :math:`x = \alpha x_0 + \sigma \epsilon`, with data of standard deviation :math:`s`, the
best linear guess of the data is known. The network predicts only what is missing, in units of what
can be missing:

.. math:: \hat x_0 = \frac{\alpha s^2}{v}\, x
   + \frac{\sigma s}{\sqrt v}\, F\!\left(\frac{x}{\sqrt v}, t\right),
   \qquad v = \alpha^2 s^2 + \sigma^2 .
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Preconditioned"]


class _Noising(Protocol):
    """What is asked of a linear process."""

    def mean_scale(self, t: Tensor) -> Tensor: ...

    def std(self, t: Tensor) -> Tensor: ...


class Preconditioned(nn.Module):
    """A denoiser that predicts data (``prediction="data"``), around a network.

    For normal data of mean 0 and standard deviation ``data_std`` the best network is 0.

    Args:
        network: ``([*, *event], t) -> [*, *event]``, and a context if it takes one.
        process: how data become noise, such as :class:`pyrogen.processes.VariancePreserving`.
        data_std: standard deviation of the data about 0.
        event_dim: number of dimensions of an event; ``None`` takes it from the network's
            ``in_shape``.

    Attributes:
        in_shape: that of the network, if it has one.

    Raises:
        ValueError: if ``data_std`` is not positive, or ``event_dim`` is neither given nor known.

    References:
        T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space of diffusion-based
        generative models*, 2022, arXiv:2206.00364.

    Example:
        >>> import torch
        >>> from pyrogen.nn import ModulatedMLP
        >>> from pyrogen.processes import VarianceExploding
        >>> denoiser = Preconditioned(ModulatedMLP(2), VarianceExploding(), data_std=0.5)
        >>> denoiser(torch.randn(5, 2), torch.rand(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        process: _Noising,
        data_std: float = 1.0,
        event_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not (data_std > 0 and math.isfinite(data_std)):
            raise ValueError(f"data_std: expected a positive finite number, got {data_std!r}")
        shape: Any = getattr(network, "in_shape", None)
        if event_dim is None and shape is None:
            raise ValueError(
                "event_dim: expected the number of dimensions of an event, as the network has no "
                "in_shape, got None"
            )
        self.network = network
        self.process = process
        self.data_std = float(data_std)
        self.event_dim = len(shape) if event_dim is None else event_dim
        if shape is not None:
            self.in_shape = self.out_shape = tuple(shape)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Predicts the data.

        Args:
            x: ``[*, *event]``.
            t: scalar, or a tensor that broadcasts to ``[*]``.
            context: passed on to the network, if given.
        """
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        alpha, sigma = (
            value.reshape(*value.shape, *[1] * self.event_dim)
            for value in (self.process.mean_scale(t), self.process.std(t))
        )
        variance = alpha.square() * self.data_std**2 + sigma.square()
        given = () if context is None else (context,)
        missing: Tensor = self.network(x / variance.sqrt(), t, *given)
        guess: Tensor = alpha * self.data_std**2 / variance * x
        return guess + sigma * self.data_std / variance.sqrt() * missing
