r"""The Metropolis test, for each chain by itself.

A proposal :math:`x'` replaces :math:`x` with probability :math:`\min(1, e^{-\Delta})`, where
:math:`\Delta` is the change of energy (plus, for a proposal that is not symmetric,
:math:`\log q(x'|x) - \log q(x|x')`). A proposal whose energy or gradient is not finite is rejected.

References:
    Metropolis, Rosenbluth, Rosenbluth, Teller, Teller, *Equation of State Calculations by Fast
    Computing Machines*, 1953, doi:10.1063/1.1699114. Hastings, *Monte Carlo sampling methods using
    Markov chains and their applications*, 1970, doi:10.1093/biomet/57.1.97.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["MAX_ENERGY_CHANGE", "Decision", "decide", "finite_rows", "select"]

MAX_ENERGY_CHANGE = 1000.0
"""A larger change of energy counts as a divergence."""

StateT = TypeVar("StateT", bound=tuple[Tensor, ...])


class Decision(NamedTuple):
    """Outcome of the test, one number per chain."""

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor


def decide(change: Tensor, *must_be_finite: Tensor) -> Decision:
    """Accepts each proposal with probability ``exp(-change)``.

    Args:
        change: ``[chains]``, the change of energy.
        must_be_finite: ``[chains, *]``, what else of a proposal has to be finite.
    """
    finite = finite_rows(change, *must_be_finite)
    change = torch.where(finite, change, torch.inf)
    accept_prob = torch.exp(-change.clamp(min=0.0))
    accepted = torch.rand_like(accept_prob) < accept_prob
    return Decision(accepted, accept_prob, change > MAX_ENERGY_CHANGE)


def finite_rows(*tensors: Tensor) -> Tensor:
    """Which chains ``[chains]`` have only finite numbers in all ``tensors [chains, *]``."""
    finite = [torch.isfinite(x).reshape(len(x), -1).all(1) for x in tensors]
    return torch.stack(finite).all(0)


def select(accepted: Tensor, proposed: StateT, current: StateT) -> StateT:
    """The proposed state of the chains that accepted, the current one of the others."""
    chosen = (
        torch.where(accepted.reshape(-1, *[1] * (new.dim() - 1)), new, old)
        for new, old in zip(proposed, current, strict=True)
    )
    return type(current)(*chosen)
