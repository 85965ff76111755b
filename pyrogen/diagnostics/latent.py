r"""What a latent-variable model stores in its latent units.

The ELBO of a datum splits into what the code costs and what it leaves unexplained,

.. math:: -\text{ELBO} = \underbrace{\mathbb{E}_q[\log q(z|x) - \log p(z)]}_{\text{rate}}
    + \underbrace{\mathbb{E}_q[-\log p(x|z)]}_{\text{distortion}}.

A unit :math:`u` is *active* when :math:`\operatorname{Var}_x \mathbb{E}_{q}[z_u | x] > 0.01`: its
code depends on the datum. When hardly any unit is, the posterior has collapsed onto the prior.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrogen.diagnostics._draws import Pair, check_num_samples, evaluating, prepare
from pyrogen.diagnostics._record import to_numpy
from pyrogen.diagnostics._sites import (
    Site,
    arrange,
    arranged_log_prob,
    arranged_mask,
    arranged_value,
    kind,
    plates,
    scored,
)
from pyrogen.diagnostics.report import LatentReport, LatentSite, PosteriorCollapseWarning

__all__ = ["latent_report"]


def latent_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 64,
    plate: str = "data",
    **kwargs: Any,
) -> LatentReport:
    r"""Measures rate, distortion and the use of every latent unit.

    The KL divergence is the closed form where one is registered (averaged over the draws that it
    depends on), otherwise :math:`\log q - \log p` averaged over the draws. Latent sites outside
    the plate count in the rate, shared out over the data. Scales (``beta``) do not enter, masks
    do. Modules are run in evaluation mode. Numbers are those of the data passed: not of a
    subsample only if the programs take none.

    Args:
        model: a program with latent and observed sites inside the plate.
        guide: a program with the model's latent sites.
        *args: the data, and what else both programs take.
        num_samples: number of draws, at least 2. Where a posterior mean has no closed form, ``S``
            draws measure the variance over ``N`` data of a collapsed unit with a standard error
            of ``sqrt(2 / N) / S``.
        plate: name of the plate over the data.
        **kwargs: passed to both.

    Returns:
        The report; ``print`` shows it as a table.

    Raises:
        ValueError: if there are too few draws, fewer than two data, no latent site inside the
            plate, or the sites of model and guide do not match.

    Warns:
        PosteriorCollapseWarning: if fewer than a tenth of the units are active.

    References:
        Importance weighted autoencoders, Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519
        (active units). Fixing a broken ELBO, Alemi et al., 2018, arXiv:1711.00464 (rate and
        distortion).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> report = latent_report(model, guide, torch.tensor([[-1.0], [1.0]]))
        >>> report.active_units, round(report.rate, 4)  # (1/4 - 1/2 + log 2) / 2
        (1, 0.2216)
    """
    check_num_samples(num_samples, least=2)
    with evaluating(model, guide):
        pair = prepare(model, guide, args, kwargs)
        report = _measure(pair, plate, num_samples)
    if report.collapsed:
        warnings.warn(
            f"posterior collapse: {report.active_units} of {report.num_units} latent units depend "
            "on the data; a smaller beta at first, or a weaker decoder, may help",
            PosteriorCollapseWarning,
            stacklevel=2,
        )
    return report


def _measure(pair: Pair, plate: str, num_samples: int) -> LatentReport:
    model_trace = pair.first[0]
    num_data, local = _local_sites(model_trace, plate)
    units = {name: _Units(plate, num_samples) for name in local}
    rate = distortion = 0.0
    for _ in range(num_samples):
        model_trace, guide_trace = pair.draw()
        rate += float(_rate(model_trace, guide_trace)) / num_samples
        distortion += float(_distortion(model_trace)) / num_samples
        for name in local:
            units[name].add(model_trace.nodes[name], guide_trace.nodes[name])
    num_dims = _observed_numbers(model_trace) / num_data
    sites = {name: unit.result() for name, unit in units.items()}
    return LatentReport(num_data, num_dims, rate / num_data, distortion / num_data, sites)


def _local_sites(trace: poutine.Trace, plate: str) -> tuple[int, list[str]]:
    latents = {name: site for name, site in trace.nodes.items() if kind(site) == "latent"}
    sizes = {n: f.size for n, site in latents.items() for f in plates(site) if f.name == plate}
    if not sizes:
        raise ValueError(
            f"expected a latent site inside the plate {plate!r}, got the latent sites "
            f"{sorted(latents)} outside it; name the plate over the data with plate="
        )
    num_data = next(iter(sizes.values()))
    if num_data < 2:
        raise ValueError(f"expected at least 2 data in the plate {plate!r}, got {num_data}")
    return num_data, list(sizes)


def _rate(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
    """One estimate of ``E[log q - log p]`` over all latent sites, summed over the data."""
    total, closed = torch.zeros(()), set()
    for name, site in scored(model_trace).items():
        if not site["is_observed"]:
            kl = _site_kl(site, guide_trace.nodes[name])
            if kl is not None:
                closed.add(name)
            total = total + (-arranged_log_prob(site).sum() if kl is None else kl.sum())
    for name, site in scored(guide_trace).items():
        if name not in closed:
            total = total + arranged_log_prob(site).sum()
    return total


def _distortion(model_trace: poutine.Trace) -> Tensor:
    observed = [site for site in scored(model_trace).values() if site["is_observed"]]
    return -torch.stack([arranged_log_prob(site).sum() for site in observed]).sum()


def _observed_numbers(trace: poutine.Trace) -> float:
    count = 0
    for site in trace.nodes.values():
        if kind(site) == "observed":
            _, value = arranged_value(site)
            mask = arranged_mask(site)
            share = 1.0 if mask is None else float(mask.double().mean())
            count += round(value.numel() * share)
    return count


def _site_kl(model_site: Site, guide_site: Site) -> Tensor | None:
    """Closed-form KL divergence of a site, masked, of the site's batch shape."""
    if isinstance(_base(guide_site["fn"]), Delta):  # an AutoGuide's site; its density is elsewhere
        return None
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return None
    return scale_and_mask(kl, 1.0, model_site["mask"])  # type: ignore[no-any-return]


def _unit_kl(model_site: Site, guide_site: Site) -> Tensor | None:
    """Closed-form KL divergence of every number of a site, if its numbers are independent."""
    guide_fn, model_fn = _base(guide_site["fn"]), _base(model_site["fn"])
    if isinstance(guide_fn, Delta) or guide_fn.event_shape or model_fn.event_shape:
        return None
    try:
        kl = kl_divergence(guide_fn, model_fn).expand(model_site["value"].shape)
    except NotImplementedError:
        return None
    mask = model_site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * model_site["fn"].event_dim)
    return scale_and_mask(kl, 1.0, mask)  # type: ignore[no-any-return]


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


class _Units:
    """Running moments of one site, as ``[num_data, units]``."""

    def __init__(self, plate: str, num_samples: int) -> None:
        self.plate = plate
        self.num_samples = num_samples
        self.total: Any = 0.0
        self.squares: Any = 0.0
        self.kl: Any = 0.0

    def add(self, model_site: Site, guide_site: Site) -> None:
        mean = self._by_datum(model_site, _posterior_mean(model_site, guide_site))
        self.total = self.total + mean / self.num_samples
        self.squares = self.squares + mean**2 / self.num_samples
        kl = _unit_kl(model_site, guide_site)
        if kl is None or self.kl is None:
            self.kl = None
        else:
            self.kl = self.kl + self._by_datum(model_site, kl).mean(0) / self.num_samples

    def result(self) -> LatentSite:
        # The average of S draws varies by a further Var/S, which is taken off again.
        within = (self.squares - self.total**2).clamp(min=0) / (self.num_samples - 1)
        variance = (self.total.var(0) - within.mean(0)).clamp(min=0)
        kl = None if self.kl is None else to_numpy(self.kl)
        return LatentSite(kl, to_numpy(variance))

    def _by_datum(self, site: Site, value: Tensor) -> Tensor:
        axis = [frame.name for frame in plates(site)].index(self.plate)
        arranged = arrange(site, value, site["fn"].event_dim)
        return arranged.movedim(axis, 0).flatten(1) if arranged.dim() > 1 else arranged[:, None]


def _posterior_mean(model_site: Site, guide_site: Site) -> Tensor:
    """Mean of the site under the guide, given the sites before it; the draw where it is unknown."""
    value: Tensor = model_site["value"]
    if not value.is_floating_point():
        return torch.full(value.shape, math.nan, device=value.device)
    try:
        mean: Tensor = guide_site["fn"].mean
    except (NotImplementedError, AttributeError):
        return value
    return mean.expand(value.shape) if bool(mean.isfinite().all()) else value
