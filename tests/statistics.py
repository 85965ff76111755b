"""Statistical assertions with a known rate of false alarms."""

from __future__ import annotations

import scipy.stats
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit

TEST_FAILURE_RATE = 2e-5
"""Probability that one assertion fails although the code is right."""


def assert_mean_close(samples, expected, failure_rate=TEST_FAILURE_RATE):
    """Asserts that independent ``samples [n, *event]`` have the mean ``expected [*event]``.

    Two-sided t-test on each element. Together the elements fail at ``failure_rate`` at most
    (Bonferroni), if the sample mean is close to normal. The rounding error of a mean of ``n``
    floats is allowed for.
    """
    samples = torch.as_tensor(samples).detach().double()
    expected = torch.as_tensor(expected).detach().double().expand(samples.shape[1:])
    n = len(samples)
    if n < 2:
        raise ValueError(f"expected at least 2 samples, got {n}")
    quantile = scipy.stats.t.isf(failure_rate / 2 / max(expected.numel(), 1), n - 1)
    rounding = torch.finfo(torch.float32).eps * samples.abs().mean(0)
    allowed = quantile * samples.std(0) / n**0.5 + rounding
    error = (samples.mean(0) - expected).abs()
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), (
        f"mean {samples.mean(0).flatten()[worst]:.6g}, expected {expected.flatten()[worst]:.6g}: "
        f"off by {error.flatten()[worst]:.3g}, allowed {allowed.flatten()[worst]:.3g} ({n} samples)"
    )


def assert_follows(samples, log_prob, dim=None, failure_rate=TEST_FAILURE_RATE):
    """Asserts that independent ``samples [n, *event]`` follow the density they were given.

    Args:
        log_prob: ``[n]``, the normalised log-density at each sample.
        dim: dimension of the manifold that the samples lie on, where it is not that of the event.
    """
    p_value = auto_goodness_of_fit(samples.detach(), log_prob.detach().exp(), dim=dim)
    assert p_value > failure_rate, f"goodness of fit: p = {p_value:.3g} <= {failure_rate}"


def assert_frequencies(states, table, probabilities, failure_rate=TEST_FAILURE_RATE):
    """Asserts that independent ``states [n, *event]`` have the probabilities of a table's rows.

    Pearson's test, with the rarest states pooled until at least 10 are expected.

    Args:
        states: ``[n, *event]``, each a row of the table.
        table: ``[states, *event]``, all states.
        probabilities: ``[states]``.
    """
    n, count = len(states), len(table)
    same = (states.reshape(n, 1, -1) == table.reshape(1, count, -1)).all(-1)
    assert (same.sum(1) == 1).all(), "a state that is not in the table"
    observed, expected = same.double().sum(0), n * probabilities.double()
    order = expected.argsort()
    pool = order[: int((expected[order].cumsum(0) < 10).sum()) + 1]
    kept = order[len(pool) :]
    observed = torch.cat([observed[kept], observed[pool].sum().reshape(1)])
    expected = torch.cat([expected[kept], expected[pool].sum().reshape(1)])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    p_value = scipy.stats.chi2.sf(statistic, len(expected) - 1)
    assert p_value > failure_rate, f"frequencies: p = {p_value:.3g} <= {failure_rate}"
