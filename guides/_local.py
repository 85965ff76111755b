"""What guides for one latent site for each datum have in common."""

from __future__ import annotations

from collections.abc import Callable

import pyro
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = ["sample_local"]


def sample_local(
    site: str,
    posterior: Callable[[Tensor], TorchDistribution],
    data: Tensor | None,
    num_samples: int | None,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Samples a site given data, in plate ``"data"``.

    Args:
        site: name of the site.
        posterior: from data to the distribution of the site.
        data: what the site is inferred from.
        num_samples: only for the model's signature; must be ``None``.
        scale: of the site.

    Raises:
        ValueError: if there are no data, or ``num_samples`` is given.
    """
    if data is None or num_samples is not None:
        got = "no data" if data is None else f"num_samples={num_samples}"
        raise ValueError(
            f"guide: expected data to infer {site} from and no num_samples, got {got}; to draw "
            "events call the model without data: model(None, num_samples=...)"
        )
    distribution = posterior(data)
    with pyro.plate("data", distribution.batch_shape[-1], dim=-1), poutine.scale(scale=scale):
        value: Tensor = pyro.sample(site, distribution)
    return value
