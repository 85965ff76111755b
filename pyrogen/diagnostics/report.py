"""The report on the latent units of a model: its numbers and its tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LatentReport", "LatentSite", "PosteriorCollapseWarning"]

ACTIVE_VARIANCE = 0.01
COLLAPSED_SHARE = 0.1
_ROWS = 24

Array = NDArray[Any]


class PosteriorCollapseWarning(UserWarning):
    """Fewer than a tenth of the latent units depend on the data."""


@dataclass(frozen=True)
class LatentSite:
    """The units of one latent site; a unit is one number of the site's value per datum.

    Attributes:
        kl: KL divergence from the prior per unit, in nats averaged over the data; ``None`` where
            it has no closed form per unit.
        variance: variance over the data of the unit's posterior mean; NaN for a site without
            real values.
    """

    kl: Array | None
    variance: Array

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which units depend on the data."""
        return np.asarray(self.variance > ACTIVE_VARIANCE)


@dataclass(frozen=True)
class LatentReport:
    """Rate, distortion and latent units of a model and its guide on some data.

    Attributes:
        num_data: number of data.
        num_dims: observed numbers per datum.
        rate: what the code costs, in nats per datum.
        distortion: what the code leaves unexplained, in nats per datum.
        sites: name -> units of a local latent site.
    """

    num_data: int
    num_dims: float
    rate: float
    distortion: float
    sites: dict[str, LatentSite]

    @property
    def elbo(self) -> float:
        """``-(rate + distortion)``, in nats per datum."""
        return -(self.rate + self.distortion)

    @property
    def bits_per_dim(self) -> float:
        """``-ELBO`` in bits per observed number."""
        return self._bits(-self.elbo)

    @property
    def num_units(self) -> int:
        """Number of latent units per datum."""
        return sum(site.variance.size for site in self.sites.values())

    @property
    def active_units(self) -> int:
        """Number of active units."""
        return int(sum(site.active.sum() for site in self.sites.values()))

    @property
    def collapsed(self) -> bool:
        """Whether fewer than a tenth of the units are active, or none."""
        defined = sum(int(np.isfinite(site.variance).sum()) for site in self.sites.values())
        return defined > 0 and self.active_units < max(1.0, COLLAPSED_SHARE * defined)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python, for JSON."""
        units = {
            name: {
                "kl": None if site.kl is None else site.kl.tolist(),
                "variance": [None if math.isnan(v) else v for v in site.variance.tolist()],
                "active": site.active.tolist(),
            }
            for name, site in self.sites.items()
        }
        names = ["num_data", "num_dims", "rate", "distortion", "elbo", "bits_per_dim"]
        names += ["num_units", "active_units", "collapsed"]
        return {**{name: getattr(self, name) for name in names}, "sites": units}

    def to_markdown(self) -> str:
        """The report as markdown tables."""
        lines = ["| | nats per datum | bits per dimension |", "|---|---:|---:|"]
        lines += [f"| {name} | {n:.3f} | {b:.4f} |" for name, n, b in self._totals()]
        lines += ["", self._verdict(), ""]
        lines += ["| unit | KL (nats) | variance of the mean | active |", "|---|---:|---:|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in self._units()]
        return "\n".join([*lines, ""])

    def __str__(self) -> str:
        lines = [f"{'':<12}{'nats per datum':>16}{'bits per dimension':>20}"]
        lines += [f"{name:<12}{n:>16.3f}{b:>20.4f}" for name, n, b in self._totals()]
        lines += ["", self._verdict(), ""]
        lines += [f"{'unit':<12}{'KL (nats)':>12}{'variance':>12}{'active':>10}"]
        lines += ["{:<12}{:>12}{:>12}{:>10}".format(*row) for row in self._units()[:_ROWS]]
        rest = self.num_units - _ROWS
        return "\n".join([*lines, f"... and {rest} more units"] if rest > 0 else lines)

    def _bits(self, nats: float) -> float:
        return nats / (self.num_dims * math.log(2))

    def _totals(self) -> list[tuple[str, float, float]]:
        values = {"ELBO": self.elbo, "rate": self.rate, "distortion": self.distortion}
        return [(name, nats, self._bits(nats)) for name, nats in values.items()]

    def _verdict(self) -> str:
        collapsed = "; the posterior has collapsed" if self.collapsed else ""
        return f"{self.active_units} of {self.num_units} units active{collapsed}"

    def _units(self) -> list[tuple[str, str, str, str]]:
        """One row per unit, the most informative first."""
        rows = []
        for name, site in self.sites.items():
            kl = np.full(site.variance.size, np.nan) if site.kl is None else site.kl
            for unit, (nats, variance) in enumerate(zip(kl, site.variance, strict=True)):
                key = -variance if math.isnan(nats) else -nats
                active = "yes" if site.active[unit] else "no"
                label = f"{name}[{unit}]"
                rows.append((key, (label, _number(nats), _number(variance), active)))
        return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
