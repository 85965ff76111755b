"""Linear inverse problems with mixtures of normal distributions as priors, solved exactly."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyrogen.distributions import ScoreBased
from pyrogen.processes import VariancePreserving


class Mixture:
    """A mixture of normal distributions, its score-based site, and its posteriors.

    Args:
        weights: ``[k]``.
        means: ``[k, d]``.
        covariances: ``[k, d, d]``.
    """

    def __init__(self, weights, means, covariances):
        self.weights, self.means, self.covariances = weights, means, covariances
        self.eigenvalues, self.axes = torch.linalg.eigh(covariances)

    def denoise(self, process, x, t):
        """The mean of the data given ``x [n, d]`` at times ``t [n]``."""
        alpha, variance = process.mean_scale(t)[:, None, None], process.variance(t)[:, None, None]
        spread = alpha.square() * self.eigenvalues + variance
        error = (x[:, None] - alpha * self.means).unsqueeze(-2)
        along = (error @ self.axes).squeeze(-2)
        log_joint = self.weights.log() - 0.5 * (along.square() / spread + spread.log()).sum(-1)
        pull = self.axes @ (alpha * self.eigenvalues / spread * along).unsqueeze(-1)
        return (log_joint.softmax(-1).unsqueeze(-1) * (self.means + pull.squeeze(-1))).sum(1)

    def prior(self, process=None, **options):
        process = process or VariancePreserving()
        return ScoreBased(
            process,
            lambda x, t: self.denoise(process, x, t),
            self.means.shape[-1],
            "data",
            **options,
        )

    def posterior(self, matrix, scale, y):
        """The mixture given ``y ~ N(matrix x, scale^2)``, and the logarithm of ``p(y)``."""
        noise = scale**2 * torch.eye(len(y)).to(y)
        innovation = matrix @ self.covariances @ matrix.T + noise
        gain = self.covariances @ matrix.T @ torch.linalg.inv(innovation)
        error = y - self.means @ matrix.T
        means = self.means + (gain @ error.unsqueeze(-1)).squeeze(-1)
        covariances = self.covariances - gain @ matrix @ self.covariances
        evidence = dist.MultivariateNormal(self.means @ matrix.T, innovation).log_prob(y)
        joint = self.weights.log() + evidence
        return Mixture(joint.softmax(0), means, covariances), joint.logsumexp(0)

    def mean(self):
        return self.weights @ self.means

    def covariance(self):
        away = self.means - self.mean()
        between = (self.weights[:, None, None] * away[:, :, None] * away[:, None, :]).sum(0)
        return (self.weights[:, None, None] * self.covariances).sum(0) + between

    def responsibility(self, x):
        """The probability ``[n, k]`` of each part at ``x [n, d]``."""
        parts = dist.MultivariateNormal(self.means, self.covariances)
        return (parts.log_prob(x.unsqueeze(1)) + self.weights.log()).softmax(-1)

    def sample(self, n):
        part = torch.multinomial(self.weights, n, replacement=True)
        return dist.MultivariateNormal(self.means[part], self.covariances[part]).sample()


def covariance(*scales):
    """A covariance with the given standard deviations along axes that are no one's own."""
    size = len(scales)
    turned, _ = torch.linalg.qr(torch.arange(1.0, size**2 + 1).reshape(size, size).sin())
    return turned @ torch.diag(torch.tensor(scales).square()) @ turned.T


GAUSSIAN = Mixture(
    torch.ones(1), torch.tensor([[0.5, -1.0, 0.3]]), covariance(1.2, 0.7, 0.4).unsqueeze(0)
)
MIXTURE = Mixture(
    torch.tensor([0.7, 0.3]),
    torch.tensor([[-1.0, 0.0, 0.5], [1.2, 0.8, -0.5]]),
    torch.stack([covariance(0.7, 0.4, 0.3), covariance(0.4, 0.3, 0.6)]),
)
MATRIX = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -0.5]])
SCALE = 0.5
OBSERVED = torch.tensor([0.4, 0.6])


def observed_by(prior):
    """A program that observes a linear map of the prior's draw, under noise."""

    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(MATRIX.to(x) @ x, SCALE).to_event(1), obs=y)

    return model
