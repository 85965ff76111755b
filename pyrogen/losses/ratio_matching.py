r"""Ratio matching: score matching for binary data.

What partial derivatives are to a density of real data, ratios :math:`p(x) / p(x^{(i)})` are to one
of binary data, with :math:`x^{(i)}` the datum with bit :math:`i` flipped: they know no constant and
determine the density. Fitting those of the model to those of the data, squashed by
:math:`g(u) = 1 / (1 + u)`, comes down to

.. math:: J = \mathbb{E}_x \sum_{i=1}^d g\!\left(\frac{p(x)}{p(x^{(i)})}\right)^2
   = \mathbb{E}_x \sum_{i=1}^d \left[1 - p(x_i \mid x_{-i})\right]^2 .
"""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO
from torch import Tensor

from pyrogen.losses._conditionals import alternatives, check_count, log_odds, num_variables_of
from pyrogen.losses._scoring import ScoringELBO

__all__ = ["RatioMatching"]


class RatioMatching(ScoringELBO):
    r"""Trains energies of binary data by the ratios between neighbours.

    The energy-based sites of the model are scored by :math:`-J` in place of their log-density,
    which is no number of nats. As for :class:`PseudoLikelihood` it takes one energy for each bit,
    and like it is consistent; a bit that the model thinks nearly impossible costs at most 1.

    Args:
        num_variables: how many bits to flip for each batch, drawn at random; the estimate is
            unbiased. ``None`` for all.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: if ``num_variables`` is no positive integer; when run, if a site is not of
            binary variables that its base makes independent.

    References:
        A. Hyvärinen, *Some extensions of score matching*, 2007, doi:10.1016/j.csda.2006.09.003.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrogen.distributions import EnergyBased
        >>> from pyrogen.guides import Empty
        >>> def model(x):
        ...     base = dist.Bernoulli(torch.tensor([0.8, 0.5])).to_event(1)
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", EnergyBased(lambda x: 0.0 * x.sum(-1), base), obs=x)
        >>> loss = RatioMatching().loss(model, Empty(), torch.tensor([[1.0, 0.0]]))
        >>> round(loss, 4)  # 0.2 squared and 0.5 squared
        0.29
    """

    def __init__(self, num_variables: int | None = None, elbo: ELBO | None = None) -> None:
        super().__init__(elbo)
        check_count("num_variables", num_variables)
        self.num_variables = num_variables

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """Minus the sum of the squares, ``[*batch]``."""
        levels = alternatives(name, fn)
        if len(levels) != 2:
            raise ValueError(
                f"site {name!r}: expected binary variables, got {len(levels)} levels; use "
                "PseudoLikelihood"
            )
        (odds,) = log_odds(fn, value, levels, self.num_variables)
        share = num_variables_of(fn, levels) / len(odds)
        squares: Tensor = odds.sigmoid().square().sum(0)
        return -share * squares
