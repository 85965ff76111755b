"""Score-based laws that are known exactly."""

from __future__ import annotations

import torch

from pyrogen.distributions import ScoreBased
from pyrogen.processes import VariancePreserving

DOUBLE = torch.float64


class GaussianData:
    """Data of ``N(mean, variance)``, elementwise; or of ``N(context, variance)``."""

    def __init__(self, process, mean=1.5, variance=0.25):
        self.process, self.mean, self.variance = process, mean, variance

    def __call__(self, x, t, context=None):
        shape = (-1, *[1] * (x.dim() - 1))
        alpha, var = (f(t).reshape(shape) for f in (self.process.mean_scale, self.process.variance))
        mean = self.mean if context is None else context.reshape(x.shape)
        return mean + alpha * self.variance * (x - alpha * mean) / self.total(alpha, var)

    def total(self, alpha, var):
        return alpha.square() * self.variance + var


def gaussian(process=None, event_shape=(), **options):
    process = process or VariancePreserving()
    return ScoreBased(process, GaussianData(process), event_shape, "data", **options)


class MixtureData:
    """Data of a skewed mixture on the plane: what its score says at every level of noise."""

    weights = torch.tensor([0.7, 0.3])
    means = torch.tensor([[-1.0, 0.0], [1.5, 1.0]])
    variances = torch.tensor([0.16, 0.36])

    def __init__(self, process):
        self.process = process

    def law(self, t):
        """The law of ``x_t``."""
        alpha, var = self.process.mean_scale(t), self.process.variance(t)
        alpha, var = alpha.reshape(-1, 1, 1), var.reshape(-1, 1)
        std = (alpha.squeeze(-1).square() * self.variances + var).sqrt().unsqueeze(-1)
        parts = torch.distributions.Normal(alpha * self.means, std.expand(*std.shape[:-1], 2))
        mixing = torch.distributions.Categorical(self.weights.expand(len(alpha), 2))
        return torch.distributions.MixtureSameFamily(
            mixing, torch.distributions.Independent(parts, 1), validate_args=False
        )

    def responsibility(self, x, t):
        """The probability that ``x_t [n, 2]`` is of the first part."""
        law = self.law(t)
        joint = law.component_distribution.log_prob(x.unsqueeze(1)) + self.weights.log()
        return joint.softmax(-1)[:, 0]

    def __call__(self, x, t):
        law = self.law(t)
        parts = law.component_distribution.base_dist
        joint = law.component_distribution.log_prob(x.unsqueeze(1)) + self.weights.log()
        pull = (parts.loc - x.unsqueeze(1)) / parts.scale.square()
        return (joint.softmax(-1).unsqueeze(-1) * pull).sum(1)

    def sample(self, n):
        part = torch.multinomial(self.weights, n, replacement=True)
        return self.means[part] + self.variances[part].sqrt().unsqueeze(-1) * torch.randn(n, 2)

    def mean(self):
        return self.weights @ self.means

    def covariance(self):
        away = self.means - self.mean()
        within = (self.weights * self.variances).sum() * torch.eye(2)
        return within + (self.weights[:, None, None] * away[:, :, None] * away[:, None, :]).sum(0)


def mixture(process=None, **options):
    process = process or VariancePreserving()
    return ScoreBased(process, MixtureData(process), 2, "score", **options)
