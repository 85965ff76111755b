"""What guides have in common whose parameters a network reads off the data."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.guides._local import sample_local

__all__ = ["Amortized"]


class Amortized(PyroModule):
    """Guide for a site ``"z"`` in plate ``"data"``; a subclass defines :meth:`posterior`.

    Args:
        encoder: network ``[*, *event_shape] -> [*, width]``.
        latent_dim: number of latent dimensions.
        beta: weight of the KL term, > 0.
        event_shape: shape of one datum; ``None`` takes the encoder's ``in_shape`` if it has one.
    """

    beta: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        latent_dim: int,
        beta: float = 1.0,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(encoder, latent_dim, beta)
        self.latent_dim = latent_dim
        self.encoder = encoder
        shape = getattr(encoder, "in_shape", None) if event_shape is None else event_shape
        self.event_shape = None if shape is None else tuple(shape)
        reference = next(encoder.parameters(), torch.empty(0))
        self.register_buffer("beta", reference.new_tensor(beta))

    @abstractmethod
    def posterior(self, data: Tensor) -> TorchDistribution:
        """Returns q(z | x) for each datum, of batch shape ``[*]`` and event ``[latent_dim]``."""

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Samples ``"z"`` given data.

        Args:
            data: ``[n, *event_shape]``. Outer plates stand to the left of ``n``.
            num_samples: only for the model's signature; must be ``None``.

        Returns:
            The value of site ``"z"``, ``[n, latent_dim]``.

        Raises:
            ValueError: if there are no data, or ``num_samples`` is given; see also
                :meth:`posterior`.
        """
        return sample_local("z", self.posterior, data, num_samples, self.beta)

    def _encode(self, data: Tensor, width: int, words: str) -> Tensor:
        """Returns the encoder's output ``[*, width]``; ``words`` say what the width is."""
        self._check(data)
        parameters: Tensor = self.encoder(data)
        batch = parameters.shape[:-1]
        if not batch or batch != data.shape[: len(batch)] or parameters.shape[-1] != width:
            raise ValueError(
                f"encoder: expected output [*, {width}] ({words}) for data {list(data.shape)}, got "
                f"{list(parameters.shape)}"
            )
        return parameters

    def _check(self, data: Tensor) -> None:
        shape = self.event_shape
        if shape is None:
            shape = tuple(data.shape[1:]) if isinstance(data, Tensor) else ()
        check_data(data, shape)
        if data.is_floating_point() and data.dtype != self.beta.dtype:
            raise ValueError(
                f"data: expected dtype {self.beta.dtype}, got {data.dtype}; use "
                f".to({self.beta.dtype}), or convert the guide with guide.to({data.dtype})"
            )


def _check_arguments(encoder: nn.Module, latent_dim: int, beta: float) -> None:
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}")
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim: expected a positive integer, got {latent_dim!r}")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta: expected a positive finite number, got {beta}")
