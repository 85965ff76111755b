"""Distributions with exact draws, to start chains from and to hold them against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.stats
import torch

from tests.statistics import TEST_FAILURE_RATE, assert_follows


@dataclass(frozen=True)
class Exact:
    """A density on the plane, with exact draws.

    Attributes:
        energy: ``[n, 2] -> [n]``, up to a constant.
        log_z: the logarithm of the integral of ``exp(-energy)``.
        draw: ``n -> [n, 2]``.
        uniforms: ``[n, 2] -> [n, 2]``, Rosenblatt's transform: uniform on the square for draws.
    """

    energy: object
    log_z: float
    draw: object
    uniforms: object

    def assert_follows(self, samples):
        """Goodness of fit of independent ``samples [n, 2]``: jointly, and in each coordinate."""
        assert_follows(samples, -self.energy(samples) - self.log_z, failure_rate=RATE)
        for uniform in self.uniforms(samples).T:
            p_value = scipy.stats.kstest(uniform.numpy(), "uniform").pvalue
            assert p_value > RATE, f"Kolmogorov-Smirnov: p = {p_value:.3g}"


RATE = TEST_FAILURE_RATE / 3  # three tests at a time


def _gaussian_energy(x):
    return (x[..., 0].square() - 1.6 * x[..., 0] * x[..., 1] + x[..., 1].square()) / 0.72


def _gaussian_draw(n):
    z = torch.randn(n, 2)
    return torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)


def _normal_cdf(x):
    return torch.special.ndtr(x)


GAUSSIAN = Exact(
    energy=_gaussian_energy,
    log_z=math.log(2 * math.pi * 0.6),
    draw=_gaussian_draw,
    uniforms=lambda x: _normal_cdf(torch.stack([x[:, 0], (x[:, 1] - 0.8 * x[:, 0]) / 0.6], 1)),
)


def _skewed_draw(n):
    x = torch.distributions.Gamma(2.0, 1.0).sample((n,)).log()
    return torch.stack([x, 0.5 * x.square() + torch.randn(n)], 1)


# x0 is the logarithm of a Gamma(2, 1) variable, x1 given x0 is N(x0^2 / 2, 1).
SKEWED = Exact(
    energy=lambda x: (
        x[..., 0].exp() - 2 * x[..., 0] + 0.5 * (x[..., 1] - 0.5 * x[..., 0].square()).square()
    ),
    log_z=0.5 * math.log(2 * math.pi),
    draw=_skewed_draw,
    uniforms=lambda x: torch.stack(
        [
            torch.special.gammainc(torch.tensor(2.0), x[:, 0].exp()),
            _normal_cdf(x[:, 1] - 0.5 * x[:, 0].square()),
        ],
        1,
    ),
)

EXACT = {"gaussian": GAUSSIAN, "skewed": SKEWED}
