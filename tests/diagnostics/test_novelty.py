"""Telling familiar from foreign: against scikit-learn, a closed form, and repetition."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score

from pyrogen.diagnostics import out_of_distribution
from tests.statistics import assert_mean_close


def test_auroc_is_scikit_learns_with_ties():
    inside = torch.randint(6, (40,)).double() + 1
    outside = torch.randint(6, (70,)).double()
    kinds = [1] * 40 + [0] * 70
    expected = roc_auc_score(kinds, torch.cat([inside, outside]).numpy())
    assert out_of_distribution(inside, outside).auroc == pytest.approx(expected, rel=1e-12)


def test_the_standard_error_is_that_of_repetition():
    """Mean and variance of the AUROC of two normal scores over 400 repetitions."""
    results = [out_of_distribution(torch.randn(80) + 1, torch.randn(50)) for _ in range(400)]
    auroc = torch.tensor([result.auroc for result in results], dtype=torch.float64)
    assert_mean_close(auroc, scipy.stats.norm.cdf(0.5**0.5))
    squared = torch.tensor([result.standard_error**2 for result in results]).mean()
    ratio = float(auroc.var() / squared)  # close to chi-squared over its 399 degrees of freedom
    low, high = scipy.stats.chi2.ppf([1e-5, 1 - 1e-5], 399) / 399
    assert low < ratio < high


def test_false_positives_at_95_percent():
    inside = torch.arange(100.0)  # 95 % are at least 5
    outside = torch.tensor([4.0, 5.0, 6.0, -1.0])
    assert out_of_distribution(inside, outside).false_positive_rate == 0.5


def test_wrong_scores_are_refused():
    with pytest.raises(ValueError, match="inside: expected at least two scores"):
        out_of_distribution(torch.zeros(1), torch.zeros(5))
    with pytest.raises(ValueError, match="outside: expected at least two scores"):
        out_of_distribution(torch.zeros(5), torch.tensor([1.0, torch.nan]))
