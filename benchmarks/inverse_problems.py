"""Inverse problems that are solved exactly: how far each guidance is from the posterior.

The prior is a normal distribution, or a mixture of two, in three dimensions, with its score known
exactly at every level of noise. Two linear functions of a draw are observed under normal noise, so
that the posterior is known. Each method draws from it through the model alone,

    def inverse(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(matrix @ x, scale).to_event(1), obs=y)

and of the draws are reported

* mean: the distance of their mean from that of the posterior, in its standard deviations,
* covariance: the norm of their covariance less that of the posterior, in units of the latter,
* weight: the weight of the first part of the mixture less what it should be.

The row of exact draws says what of that is chance. The methods called exact are so in the limit of
many steps (and particles), the others are approximations.

    python benchmarks/inverse_problems.py [--draws 2000] [--steps 300]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.kernels import DPS, MALA, MCMC, MMPS, PiGDM, ReverseDiffusion, TwistedSMC
from pyrogen.processes import VariancePreserving

PROCESS = VariancePreserving()
MATRIX = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -0.5]])
SCALE = 0.5
OBSERVED = torch.tensor([0.4, 0.6])


@dataclass
class Mixture:
    """A mixture of normal distributions: ``[k]``, ``[k, d]`` and ``[k, d, d]``."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """The mean of the data given ``x [n, d]`` at times ``t [n]``."""
        values, axes = torch.linalg.eigh(self.covariances)
        alpha, variance = (f(t)[:, None, None] for f in (PROCESS.mean_scale, PROCESS.variance))
        spread = alpha.square() * values + variance
        along = ((x[:, None] - alpha * self.means).unsqueeze(-2) @ axes).squeeze(-2)
        log_joint = self.weights.log() - 0.5 * (along.square() / spread + spread.log()).sum(-1)
        pull = (axes @ (alpha * values / spread * along).unsqueeze(-1)).squeeze(-1)
        return (log_joint.softmax(-1).unsqueeze(-1) * (self.means + pull)).sum(1)

    def posterior(self) -> Mixture:
        """The mixture given the observation."""
        innovation = MATRIX @ self.covariances @ MATRIX.T + SCALE**2 * torch.eye(2)
        gain = self.covariances @ MATRIX.T @ torch.linalg.inv(innovation)
        error = OBSERVED - self.means @ MATRIX.T
        means = self.means + (gain @ error.unsqueeze(-1)).squeeze(-1)
        evidence = dist.MultivariateNormal(self.means @ MATRIX.T, innovation).log_prob(OBSERVED)
        weights = (self.weights.log() + evidence).softmax(0)
        return Mixture(weights, means, self.covariances - gain @ MATRIX @ self.covariances)

    def mean(self) -> Tensor:
        """``[d]``."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """``[d, d]``."""
        away = self.means - self.mean()
        between = away.unsqueeze(2) * away.unsqueeze(1)
        return (self.weights[:, None, None] * (self.covariances + between)).sum(0)

    def sample(self, n: int) -> Tensor:
        """``[n, d]``."""
        part = torch.multinomial(self.weights, n, replacement=True)
        drawn: Tensor = dist.MultivariateNormal(self.means[part], self.covariances[part]).sample()
        return drawn

    def first(self, x: Tensor) -> Tensor:
        """The probability ``[n]`` that ``x [n, d]`` is of the first part."""
        parts = dist.MultivariateNormal(self.means, self.covariances)
        return (parts.log_prob(x.unsqueeze(1)) + self.weights.log()).softmax(-1)[:, 0]


def rotated(*scales: float) -> Tensor:
    """A covariance with the given standard deviations along axes that are no one's own."""
    size = len(scales)
    turned, _ = torch.linalg.qr(torch.arange(1.0, size**2 + 1).reshape(size, size).sin())
    return turned @ torch.diag(torch.tensor(scales).square()) @ turned.T


PRIORS = {
    "normal": Mixture(
        torch.ones(1), torch.tensor([[0.5, -1.0, 0.3]]), rotated(1.2, 0.7, 0.4).unsqueeze(0)
    ),
    "mixture": Mixture(
        torch.tensor([0.7, 0.3]),
        torch.tensor([[-1.0, 0.0, 0.5], [1.2, 0.8, -0.5]]),
        torch.stack([rotated(0.7, 0.4, 0.3), rotated(0.4, 0.3, 0.6)]),
    ),
}


def inverse(prior: ScoreBased) -> Callable[[Tensor], None]:
    """The program."""

    def model(y: Tensor) -> None:
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(MATRIX @ x, SCALE).to_event(1), obs=y)

    return model


def guided(guidance: Any, **options: Any) -> Callable[[Mixture, int, int], Tensor]:
    """Draws by the reverse diffusion."""

    def draw(law: Mixture, draws: int, steps: int) -> Tensor:
        prior = ScoreBased(PROCESS, law.denoise, 3, "data")
        kernel = ReverseDiffusion(
            inverse(prior), steps, grid="karras", guidance=guidance, compile=False, **options
        )
        mcmc = MCMC(kernel, 1, 0, num_chains=draws, disable_progbar=True)
        mcmc.run(OBSERVED)
        drawn: Tensor = mcmc.get_samples()["x"]
        return drawn

    return draw


def chains(law: Mixture, draws: int, steps: int) -> Tensor:
    """Langevin chains with a Metropolis test on the density of the probability flow, from draws of
    the prior; steps are those of the chains."""
    prior = ScoreBased(PROCESS, law.denoise, 3, "data", min_time=1e-3, atol=1e-3, rtol=1e-3)
    kernel = MALA(inverse(prior), step_size=0.15, adapt_step_size=False, compile=False)
    count = min(draws, 1000)
    initial = {"x": law.sample(count)}
    mcmc = MCMC(kernel, 1, 300, num_chains=count, initial_params=initial, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "runs without a graph")
        mcmc.run(OBSERVED)
    drawn: Tensor = mcmc.get_samples()["x"]
    return drawn


MULTISTEP = {"method": "multistep"}
METHODS: dict[str, tuple[str, Callable[[Mixture, int, int], Tensor]]] = {
    "exact draws": ("exact", lambda law, draws, steps: law.posterior().sample(draws)),
    "prior alone": ("none", lambda law, draws, steps: law.sample(draws)),
    "dps": ("approximate", guided(DPS(), **MULTISTEP)),
    "dps, step 0.02": ("approximate", guided(DPS(step_size=0.02))),
    "pigdm": ("approximate", guided(PiGDM(), **MULTISTEP)),
    "mmps": ("exact if normal", guided(MMPS(), **MULTISTEP)),
    "twisted-smc, 16 particles": ("exact", guided(TwistedSMC(16))),
    "twisted-smc, 64 particles": ("exact", guided(TwistedSMC(64))),
    "the same, not tempered": ("exact", guided(TwistedSMC(64, DPS()))),
    "the same, pigdm's twist": ("exact", guided(TwistedSMC(64, PiGDM()))),
    "MALA on log_prob": ("exact", chains),
}


def errors(x: Tensor, posterior: Mixture) -> tuple[float, float, float]:
    """Of mean, covariance and weight."""
    root = torch.linalg.cholesky(posterior.covariance())
    white = torch.linalg.solve_triangular(root, (x - posterior.mean()).T, upper=False)
    excess = white.cov() - torch.eye(x.shape[1])
    weight = posterior.first(x).mean() - posterior.weights[0]
    return float(white.mean(1).norm()), float(torch.linalg.matrix_norm(excess)), float(weight)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pyro.set_rng_seed(arguments.seed)
    head = ["prior", "guidance", "kind", "mean", "covariance", "weight", "seconds"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, law in PRIORS.items():
        posterior = law.posterior()
        for method in arguments.methods:
            kind, draw = METHODS[method]
            begin = time.perf_counter()
            x = draw(law, arguments.draws, arguments.steps)
            seconds = time.perf_counter() - begin
            mean, covariance, weight = errors(x, posterior)
            shown = f"{weight:+.3f}" if len(law.weights) > 1 else ""
            row = [name, method, kind, f"{mean:.3f}", f"{covariance:.3f}", shown, f"{seconds:.0f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
