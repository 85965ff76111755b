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
