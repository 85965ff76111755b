r"""Noise-contrastive estimation: data are told from noise, and the density falls out.

Mix each datum with :math:`\nu` draws of a known noise :math:`p_n`. Whoever knows the density
:math:`p` of the data tells them apart best, by :math:`\sigma(G(u))`, where

.. math:: G(u) = \log p(u) - \log p_n(u) - \log \nu .

So the classifier is written in terms of an unnormalised density, and trained by

.. math:: J = \mathbb{E}_x \log \sigma(G(x)) + \nu\, \mathbb{E}_{y \sim p_n} \log \sigma(-G(y)) .

Its maximum over *all* positive functions is the normalised density of the data: the constant is
learned as any other parameter is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrogen.losses._scoring import ScoringELBO, expanded

__all__ = ["NoiseContrastive"]


class NoiseContrastive(ScoringELBO):
    r"""Trains energies, their constant among them, by telling data from noise.

    The energy-based sites of the model are scored by
    :math:`\log \sigma(G(x)) + \sum_{j \le \nu} \log \sigma(-G(y_j))`, with fresh noise for each
    datum, in place of their log-density. The energy needs a free constant, such as the bias of the
    last layer of a network. After training ``unnormalized_log_prob`` is normalised, up to the error
    of the fit.

    Good noise is like the data, and lies wherever they do: a flow that was trained on them before.

    Args:
        noise: a distribution of the event shape of the site, or a function without arguments that
            returns one, as ``flow.distribution`` does. It is held fixed.
        ratio: :math:`\nu`, how many draws of noise stand against each datum.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        TypeError: if ``noise`` is neither.
        ValueError: if ``ratio`` is no positive integer; when run, if the noise has another event
            shape than the site, or a batch shape that does not broadcast to its.

    References:
        M. Gutmann, A. Hyvärinen, *Noise-contrastive estimation: a new estimation principle for
        unnormalized statistical models*, 2010, Proceedings of Machine Learning Research 9.
        R. Gao et al., *Flow contrastive estimation of energy-based models*, 2020,
        arXiv:1912.00589.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyrogen.distributions import EnergyBased
        >>> from pyrogen.guides import Empty
        >>> flat = dist.ImproperUniform(dist.constraints.real, (), ())
        >>> def model(x):
        ...     log_z = pyro.param("log_z", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", EnergyBased(lambda x: x.square() / 2 + log_z, flat), obs=x)
        >>> loss = NoiseContrastive(dist.Normal(0.0, 1.5), ratio=4)
        >>> svi = SVI(model, Empty(), pyro.optim.Adam({"lr": 0.02}), loss)
        >>> losses = [svi.step(torch.randn(500)) for _ in range(200)]
        >>> bool((pyro.param("log_z") - 0.9189).abs() < 0.05)  # log sqrt(2 pi)
        True
    """

    def __init__(
        self,
        noise: TorchDistribution | Callable[[], TorchDistribution],
        ratio: int = 1,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        if not (isinstance(noise, torch.distributions.Distribution) or callable(noise)):
            raise TypeError(
                "noise: expected a distribution or a function that returns one, got "
                f"{type(noise).__name__}"
            )
        if not isinstance(ratio, int) or ratio < 1:
            raise ValueError(f"ratio: expected a positive integer, got {ratio!r}")
        self.noise = noise
        self.ratio = ratio

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """The log-likelihood of telling a datum and its noise apart, ``[*batch]``."""
        value = expanded(fn, value)
        noise = self._noise(name, fn).expand(value.shape[: value.dim() - len(fn.event_shape)])
        with torch.no_grad():
            drawn = noise.sample((self.ratio,))
            density = noise.log_prob(torch.cat([value.unsqueeze(0).to(drawn), drawn]))
        density = density.to(value)
        model = fn.unnormalized_log_prob(torch.cat([value.unsqueeze(0), drawn.to(value)]))
        log_odds = model - density - math.log(self.ratio)
        return logsigmoid(log_odds[0]) + logsigmoid(-log_odds[1:]).sum(0)

    def _noise(self, name: str, fn: Any) -> Any:
        distribution = isinstance(self.noise, torch.distributions.Distribution)
        noise: Any = self.noise if distribution else self.noise()
        if noise.event_shape != fn.event_shape:
            raise ValueError(
                f"noise: expected event shape {list(fn.event_shape)} as at site {name!r}, got "
                f"{list(noise.event_shape)}; use .to_event"
            )
        return noise
