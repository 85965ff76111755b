r"""Whether probabilities of classes are frequencies.

A classifier is calibrated if among all cases to which it gives its first choice the probability
:math:`c`, a share :math:`c` is right. Sorted by that probability into bins :math:`b` of equal
width, with :math:`n_b` cases, mean probability :math:`c_b` and share of right ones :math:`a_b`,
what it is off by is

.. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \lvert a_b - c_b \rvert .
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["Calibration", "calibration"]


@dataclass(frozen=True)
class Calibration:
    """How well probabilities of classes fit what happened; see :func:`calibration`.

    Attributes:
        accuracy: share of cases whose most probable class is the right one.
        expected_error: mean over the cases of the error of their bin (ECE).
        maximum_error: error of the worst bin (MCE).
        brier: mean squared distance between probabilities and indicators of the classes.
        nats: mean of minus the logarithm of the probability of the right class.
        edges: of the bins, ``[num_bins + 1]``.
        count: cases in each bin, ``[num_bins]``.
        confidence: mean probability of the first choice in each bin; NaN where it is empty.
        frequency: share of right ones in each bin; NaN where it is empty.
    """

    accuracy: float
    expected_error: float
    maximum_error: float
    brier: float
    nats: float
    edges: Tensor
    count: Tensor
    confidence: Tensor
    frequency: Tensor


def calibration(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> Calibration:
    """Compares probabilities of classes with the classes that came.

    The expected error is biased upwards: in a bin of few cases the frequency is off by chance. So
    compare classifiers on the same cases, and look at the Brier score, which has no bins.

    Args:
        probabilities: ``[n, num_classes]``, of sum 1, such as ``model.classify(x).probs``.
        labels: ``[n]``, the right classes, integers.
        num_bins: bins of equal width between 0 and 1.

    Returns:
        The errors, and the bins that :func:`plot_reliability` draws.

    Raises:
        ValueError: if shapes do not match, there is no case, or a row is no distribution.

    References:
        C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, *On calibration of modern neural networks*,
        2017, arXiv:1706.04599.

    Example:
        >>> sure = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
        >>> result = calibration(sure, torch.tensor([0, 1]))
        >>> round(result.accuracy, 3), round(result.expected_error, 3)
        (0.5, 0.4)
    """
    probabilities, labels = _checked(probabilities, labels)
    if not isinstance(num_bins, int) or num_bins < 1:
        raise ValueError(f"num_bins: expected a positive integer, got {num_bins!r}")
    first, choice = probabilities.max(-1)
    right = (choice == labels).double()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    places = torch.bucketize(first, edges[1:-1])  # a bin holds its upper edge

    def total(values: Tensor) -> Tensor:
        return torch.zeros(num_bins, dtype=torch.float64).index_add(0, places, values)

    count = total(torch.ones_like(first))
    confidence, frequency = total(first) / count, total(right) / count
    gaps = (frequency - confidence).abs().nan_to_num(0.0)
    chosen = probabilities.gather(-1, labels.unsqueeze(-1))
    indicators = one_hot(labels, probabilities.shape[-1])
    return Calibration(
        accuracy=right.mean().item(),
        expected_error=(count * gaps).sum().item() / len(labels),
        maximum_error=gaps.max().item(),
        brier=(probabilities - indicators).square().sum(-1).mean().item(),
        nats=-chosen.log().mean().item(),
        edges=edges,
        count=count.long(),
        confidence=confidence,
        frequency=frequency,
    )


def _checked(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """In double precision on the CPU, where bins are filled in one order."""
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "probabilities, labels: expected shapes [n, num_classes] and [n], n of at least 1, "
            f"got {list(probabilities.shape)} and {list(labels.shape)}"
        )
    probabilities = probabilities.detach().double().cpu()
    labels = labels.detach().long().cpu()
    sums = probabilities.sum(-1)
    if not ((probabilities >= 0).all() and (sums - 1).abs().max() < 1e-3):
        raise ValueError(
            "probabilities: expected rows of numbers of at least 0 and of sum 1, got sums from "
            f"{sums.min().item():.6g} to {sums.max().item():.6g}; take the softmax of logits"
        )
    if not ((labels >= 0) & (labels < probabilities.shape[1])).all():
        raise ValueError(
            f"labels: expected classes 0..{probabilities.shape[1] - 1}, got values from "
            f"{labels.min().item()} to {labels.max().item()}; leave out what has no label"
        )
    return probabilities, labels
