r"""The guide of a model without latent sites.

Where nothing is latent the evidence is a density that the model itself evaluates, and every ELBO is
the log-likelihood:

.. math:: \mathrm{ELBO} = \log p(x) - \log 1 .
"""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule

__all__ = ["Empty"]


class Empty(PyroModule):
    """Guide without sites, for models whose likelihood is exact, such as a flow.

    It takes whatever the model takes, so that ``SVI(model, Empty(), ...)`` is maximum likelihood.

    Example:
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Exponential(1.0), obs=x)
        >>> Trace_ELBO().loss(model, Empty(), torch.tensor([1.0, 2.0]))
        3.0
    """

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Samples nothing."""
