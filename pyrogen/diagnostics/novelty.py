r"""Whether a score tells familiar data from foreign ones.

Any number that is high for familiar data is a score: :math:`\log p(x)` of a density, known up to a
constant or not, or the probability of a classifier's first choice. What it is worth is the
probability that it puts the right one of two first,

.. math:: \mathrm{AUROC} = P(s(x_{in}) > s(x_{out})) + \tfrac12 P(s(x_{in}) = s(x_{out})) .
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Novelty", "out_of_distribution"]


@dataclass(frozen=True)
class Novelty:
    """How well a score tells familiar data from foreign ones; see :func:`out_of_distribution`.

    Attributes:
        auroc: probability that a familiar datum scores higher than a foreign one; 0.5 is a toss.
        standard_error: of ``auroc``.
        false_positive_rate: share of foreign data taken for familiar where 95 % of the familiar
            ones are taken so.
    """

    auroc: float
    standard_error: float
    false_positive_rate: float


def out_of_distribution(inside: Tensor, outside: Tensor) -> Novelty:
    """Compares the scores of familiar and foreign data.

    Args:
        inside: ``[n]``, scores of familiar data that were not trained on, such as
            ``model.distribution().unnormalized_log_prob(x)``.
        outside: ``[m]``, scores of foreign data.

    Returns:
        The area under the receiver operating characteristic with its standard error, and the
        false positive rate at a true positive rate of 95 %.

    Raises:
        ValueError: if there are fewer than two scores of a kind, or a score is NaN.

    References:
        E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, *Comparing the areas under two or more
        correlated receiver operating characteristic curves*, 1988, doi:10.2307/2531595.
        D. Hendrycks, K. Gimpel, *A baseline for detecting misclassified and out-of-distribution
        examples in neural networks*, 2017, arXiv:1610.02136.

    Example:
        >>> out_of_distribution(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0])).auroc
        1.0
        >>> result = out_of_distribution(torch.randn(10_000) + 1, torch.randn(10_000))
        >>> abs(result.auroc - 0.7602) < 5 * result.standard_error  # Phi(1 / sqrt(2))
        True
    """
    inside, outside = _checked(inside, "inside"), _checked(outside, "outside")
    above_foreign = _share_below(inside, outside)  # for each familiar datum
    below_familiar = 1 - _share_below(outside, inside)
    variance = above_foreign.var() / len(inside) + below_familiar.var() / len(outside)
    threshold = inside.sort().values[int(0.05 * len(inside))]
    return Novelty(
        auroc=above_foreign.mean().item(),
        standard_error=variance.sqrt().item(),
        false_positive_rate=(outside >= threshold).double().mean().item(),
    )


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    """For each score the share of the others that are lower, with half of those that are equal."""
    ordered = others.sort().values
    lower = torch.searchsorted(ordered, scores, right=False)
    not_higher = torch.searchsorted(ordered, scores, right=True)
    return (lower + not_higher).double() / (2 * len(others))


def _checked(scores: Tensor, name: str) -> Tensor:
    if scores.dim() != 1 or len(scores) < 2 or scores.isnan().any():
        raise ValueError(
            f"{name}: expected at least two scores, shape [n], without NaN, got shape "
            f"{list(scores.shape)} with {int(scores.isnan().sum())} NaN"
        )
    return scores.detach().double().cpu()
