r"""The importance-weighted bound on the log evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pyrogen.diagnostics._draws import (
    check_num_samples,
    check_subsampling,
    evaluating,
    prepare,
)
from pyrogen.diagnostics._sites import common_plates, log_weight, plates, scored

__all__ = ["iwae_bound"]


def iwae_bound(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 50,
    **kwargs: Any,
) -> float:
    r"""Estimates the importance-weighted bound, in nats per datum.

    .. math:: \mathcal{L}_K = \mathbb{E} \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k)}
        \le \log p(x), \qquad z_k \sim q

    It grows with :math:`K`, from the ELBO at :math:`K = 1` to the log evidence. Where all sites
    are inside the same plates, the logarithm is taken for each of their elements. Otherwise there
    is one bound for everything, and it is divided by the number of elements of the plate
    ``"data"``, if there is one.

    ``pyro.infer.RenyiELBO(alpha=0)`` computes the same, summed over the data, for programs without
    scales. With ``beta`` or a subsampled plate it raises the weights to the power of the scale
    first, and its value is then no bound on the log evidence; here scales do not enter.

    Args:
        model: a program with at least one latent and one observed site.
        guide: a program with the model's latent sites.
        *args: passed to both.
        num_particles: :math:`K`, the number of draws.
        **kwargs: passed to both.

    Returns:
        The bound in nats per datum.

    Raises:
        ValueError: if ``num_particles < 1``, the sites of model and guide do not match, or a plate
            is subsampled that not all sites are inside.

    References:
        Importance weighted autoencoders, Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def posterior(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> round(iwae_bound(model, posterior, torch.zeros(3)), 4)  # -log(4 pi) / 2
        -1.2655
    """
    check_num_samples(num_particles, name="num_particles")
    with evaluating(model, guide):
        pair = prepare(model, guide, args, kwargs)
        common = common_plates(*pair.first)
        check_subsampling(pair, common)
        total = log_weight(*pair.draw(), common)
        for _ in range(num_particles - 1):
            total = torch.logaddexp(total, log_weight(*pair.draw(), common))
    bound = total - math.log(num_particles)
    if common:
        return float(bound.mean())
    frames = [frame for site in scored(pair.first[0]).values() for frame in plates(site)]
    sizes = [frame.size for frame in frames if frame.name == "data"]
    return float(bound) / (sizes[0] if sizes else 1)
