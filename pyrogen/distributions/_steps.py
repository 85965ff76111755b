"""The normal law of one step of a Markov chain."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = ["Transition", "normal_step"]

Transition = Callable[..., tuple[Tensor, Tensor]]


def normal_step(transition: Transition, z: Tensor, k: int, *context: Tensor) -> TorchDistribution:
    """The law of the state after a step from ``z [n, D]``.

    Args:
        transition: ``(z, k, *context) -> (mean, std)``.
        z: states.
        k: the number of the step.
        context: what else the transition takes.

    Raises:
        ValueError: if the transition returns no pair, or a mean of another shape.
    """
    result = transition(z, k, *context)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(f"transition: expected a pair (mean, std), got {type(result).__name__}")
    mean, std = result
    if mean.shape != z.shape:
        raise ValueError(
            f"transition: expected a mean of shape {list(z.shape)}, as the state, got "
            f"{list(mean.shape)}"
        )
    std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device).expand_as(mean)
    law: TorchDistribution = dist.Normal(mean, std).to_event(1)
    return law
