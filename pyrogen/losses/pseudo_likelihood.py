r"""Pseudo-likelihood: each discrete variable is predicted from all others.

The conditional of one variable is a ratio in which the constant :math:`Z` cancels. Besag's
objective is the sum of their logarithms,

.. math:: \mathrm{PL}(x) = \sum_{i=1}^d \log p(x_i \mid x_{-i}), \qquad
   p(x_i \mid x_{-i}) = \frac{p(x)}{\sum_k p(x_{-i}, x_i = k)} .

It is a consistent objective: where the model can be the law of the data, that is its maximum.
"""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO
from torch import Tensor
from torch.nn.functional import softplus

from pyrogen.losses._conditionals import alternatives, check_count, log_odds, num_variables_of
from pyrogen.losses._scoring import ScoringELBO

__all__ = ["PseudoLikelihood"]


class PseudoLikelihood(ScoringELBO):
    r"""Trains energies of discrete data by the conditionals of single variables.

    The energy-based sites of the model are scored by :math:`\mathrm{PL}(x)` in place of their
    log-density, in nats; it equals the log-density where the variables are independent. It takes
    one energy for each variable and each other level of it (for each level, if there are more than
    two), or for some of the variables:

    .. math:: \widehat{\mathrm{PL}}(x) = \frac dm \sum_{i \in S} \log p(x_i \mid x_{-i}),

    with :math:`S` a random set of :math:`m`, is unbiased.

    The variables are what the base of the site makes independent, each with finitely many values:
    ``dist.Bernoulli(probs).to_event(1)``, ``dist.Categorical(probs).to_event(1)``,
    ``dist.OneHotCategorical(probs).to_event(1)`` for groups.

    Args:
        num_variables: m, how many variables to predict for each batch; ``None`` for all.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: if ``num_variables`` is no positive integer; when run, if a site is not of
            discrete variables.

    References:
        J. Besag, *Statistical analysis of non-lattice data*, 1975, doi:10.2307/2987782.
        A. Hyvärinen, *Consistency of pseudolikelihood estimation of fully visible Boltzmann
        machines*, 2006, doi:10.1162/neco.2006.18.10.2283.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrogen.distributions import EnergyBased
        >>> from pyrogen.guides import Empty
        >>> bias = torch.tensor([0.5, -1.0])
        >>> def model(x):
        ...     base = dist.Bernoulli(torch.tensor([0.5, 0.5])).to_event(1)
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", EnergyBased(lambda x: -x @ bias, base), obs=x)
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> independent = dist.Bernoulli(logits=bias).log_prob(x).sum()
        >>> abs(PseudoLikelihood().loss(model, Empty(), x) + float(independent)) < 1e-6
        True
    """

    def __init__(self, num_variables: int | None = None, elbo: ELBO | None = None) -> None:
        super().__init__(elbo)
        check_count("num_variables", num_variables)
        self.num_variables = num_variables

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """The sum of the logarithms of the conditionals, ``[*batch]``."""
        levels = alternatives(name, fn)
        odds = log_odds(fn, value, levels, self.num_variables)
        conditional = -(softplus(odds[0]) if len(levels) == 2 else odds.logsumexp(0))
        share = num_variables_of(fn, levels) / len(conditional)
        return share * conditional.sum(0)
