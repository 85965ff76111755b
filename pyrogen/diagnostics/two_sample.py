r"""Whether draws can be told from data.

A classifier is trained to tell draws of a model from data on one half of both, and judged by its
accuracy on the other. If both come from one law no classifier is right more often than

.. math:: \tfrac12 \pm \tfrac{1.96}{2 \sqrt n}

of the time (95 %), and the better the classifier, the more an accuracy near a half says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

__all__ = ["TwoSampleTest", "two_sample_test"]


@dataclass(frozen=True)
class TwoSampleTest:
    """How well draws are told from data; see :func:`two_sample_test`.

    Attributes:
        accuracy: share of the held-out events that were told right; 0.5 is a toss.
        interval: where the accuracy lies with 95 % confidence (Wilson's interval).
        p_value: probability of such an accuracy, or a higher one, if both have one law.
    """

    accuracy: float
    interval: tuple[float, float]
    p_value: float


def two_sample_test(data: Tensor, draws: Tensor, neighbours: int = 5) -> TwoSampleTest:
    """Tells draws from data by their nearest neighbours.

    As many of the one as of the other are taken, in random order. A held-out event is told by the
    majority of its nearest neighbours among the others.

    Args:
        data: ``[n, *event]``, none of which the model was trained on.
        draws: ``[m, *event]``.
        neighbours: how many, an odd number.

    Returns:
        The accuracy with its interval.

    Raises:
        ValueError: if events differ in shape or are not finite, there are fewer than
            ``2 * neighbours`` of a kind, or ``neighbours`` is no odd number.

    References:
        D. Lopez-Paz, M. Oquab, *Revisiting classifier two-sample tests*, 2017, arXiv:1610.06545.

    Example:
        >>> same = two_sample_test(torch.randn(500, 2), torch.randn(500, 2))
        >>> other = two_sample_test(torch.randn(500, 2), torch.randn(500, 2) + 1)
        >>> same.p_value > 0.01, other.p_value < 0.01
        (True, True)
    """
    _check(data, draws, neighbours)
    half = min(len(data), len(draws)) // 2
    exact = torch.promote_types(data.dtype, torch.float32)
    parts = [
        x[torch.randperm(len(x), device=x.device)[: 2 * half]].reshape(2 * half, -1).to(exact)
        for x in (data, draws)
    ]
    known = torch.cat([part[:half] for part in parts])
    asked = torch.cat([part[half:] for part in parts])
    is_data = torch.arange(2 * half, device=data.device) < half
    nearest = torch.cdist(asked, known).topk(neighbours, largest=False).indices
    told = is_data[nearest].sum(-1) * 2 > neighbours
    right = int((told == is_data).sum())
    return TwoSampleTest(right / (2 * half), _wilson(right, 2 * half), _tail(right, 2 * half))


def _wilson(right: int, count: int) -> tuple[float, float]:
    z = 1.96
    share = right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    width = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return middle - width, middle + width


def _tail(right: int, count: int) -> float:
    """P(at least ``right`` of ``count`` tosses)."""
    return float(binom.sf(right - 1, count, 0.5))


def _check(data: Tensor, draws: Tensor, neighbours: int) -> None:
    if data.shape[1:] != draws.shape[1:]:
        raise ValueError(
            f"draws: expected events of shape {list(data.shape[1:])}, got {list(draws.shape[1:])}"
        )
    if not isinstance(neighbours, int) or neighbours < 1 or neighbours % 2 == 0:
        raise ValueError(f"neighbours: expected a positive odd number, got {neighbours!r}")
    if min(len(data), len(draws)) < 2 * neighbours:
        raise ValueError(
            f"expected at least {2 * neighbours} events of each kind, got {len(data)} and "
            f"{len(draws)}"
        )
    for name, x in (("data", data), ("draws", draws)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got infinite or NaN ones")
