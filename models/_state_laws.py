"""Laws of discrete states: Pyro's, with divergences that stay finite and draws that compile.

A divergence that is computed from probabilities is infinite as soon as one of them rounds to 1;
from logits it is not. The laws of a guide that noises data have no parameters that could be
trained, so that a draw of theirs carries all the gradient there is, none: they count as
reparametrised, and ``TraceMeanField_ELBO`` takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import register_kl
from torch.nn.functional import logsigmoid

__all__ = ["Binary", "FixedBinary", "FixedLevels", "Levels", "remaining"]


def remaining(betas: Tensor | None, num_timesteps: int) -> Tensor:
    """Shares of noise for each step, ``[T]``, by default ``1 / (T - k + 1)``: each step forgets
    the same share of the data, and the last what is left.

    Raises:
        ValueError: unless they are one number above 0 and up to 1 for each step, below 1 except
            the last.
    """
    if betas is None:
        return 1 / torch.arange(num_timesteps, 0, -1, dtype=torch.float64)
    given = torch.as_tensor(betas).detach().double()
    if given.shape != (num_timesteps,) or not bool(
        ((given > 0) & (given <= 1)).all() & (given[:-1] < 1).all()
    ):
        raise ValueError(
            f"betas: expected {num_timesteps} numbers above 0 and below 1 (the last may be 1), "
            f"got {betas}"
        )
    return given


class Binary(dist.Bernoulli):
    """0 or 1, by logits."""


class FixedBinary(Binary):
    """The same, of logits that are not trained."""

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws, in floating point."""
        probs = self.probs.expand(self._extended_shape(Size(sample_shape)))
        draws: Tensor = (torch.rand_like(probs) < probs).to(probs.dtype)
        return draws


class Levels(dist.Categorical):
    """An integer, by logits."""


class FixedLevels(Levels):
    """The same, of logits that are not trained."""

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """The first of exponential waiting times: what has probability 0 is never drawn."""
        shape = (*self._extended_shape(Size(sample_shape)), self.logits.shape[-1])
        waiting = -torch.rand_like(self.logits.expand(shape)).log()
        draws: Tensor = (self.probs / waiting).argmax(-1)
        return draws


@register_kl(FixedBinary, Binary)  # type: ignore[untyped-decorator]
def _of_binary(p: Any, q: Any) -> Tensor:
    one: Tensor = p.probs * (logsigmoid(p.logits) - logsigmoid(q.logits))
    zero: Tensor = (1 - p.probs) * (logsigmoid(-p.logits) - logsigmoid(-q.logits))
    return one + zero


@register_kl(FixedLevels, Levels)  # type: ignore[untyped-decorator]
def _of_levels(p: Any, q: Any) -> Tensor:
    terms: Tensor = torch.where(p.probs > 0, p.probs * (p.logits - q.logits), 0.0)
    return terms.sum(-1)
