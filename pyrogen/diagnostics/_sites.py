"""What a traced sample site is, and how its axes are named.

A Pyro value has shape ``[*batch, *event]``, where some of the batch axes are plates, at the
positions (``dim``, counted from the right of the batch) that the site's stack of frames records.
Here a value is *arranged* as ``[*plates, *rest]``: every plate it stands in is present, in the
order of the program, axes of size 1 that belong to no plate are gone.

Log-densities are those of the program itself: ``poutine.mask`` is honoured, ``poutine.scale``
(and the scale of a subsampled plate) is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

__all__ = [
    "Site",
    "arrange",
    "arranged_log_prob",
    "arranged_mask",
    "arranged_value",
    "common_plates",
    "dim_names",
    "kind",
    "log_weight",
    "plate_indices",
    "plates",
    "scored",
    "total_log_prob",
]

Site: TypeAlias = Any  # a node of a trace: a dict, which Pyro annotates as several things
Kind = Literal["latent", "observed", "deterministic", "hidden"]
_RESERVED = {"chain", "draw"}


class Frame(NamedTuple):
    """A vectorised plate: its name, its axis counted from the right of the batch, how many
    elements it has in the program and in all."""

    name: str
    dim: int
    size: int
    full_size: int


def kind(site: Site) -> Kind:
    """How a site is reported; factors, auxiliary and subsample sites are hidden."""
    if site["type"] != "sample" or site_is_subsample(site) or site_is_factor(site):
        return "hidden"
    if site["infer"].get("_deterministic"):
        return "deterministic"
    if site["infer"].get("is_auxiliary"):
        return "hidden"
    return "observed" if site["is_observed"] else "latent"


def scored(trace: poutine.Trace) -> dict[str, Site]:
    """The sites that contribute to the log-density of a trace."""
    nodes: Mapping[str, Any] = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def plates(site: Site) -> list[Frame]:
    """The vectorised plates of a site, outermost axis first."""
    stack = [f for f in site["cond_indep_stack"] if f.vectorized]
    frames = sorted((Frame(f.name, f.dim, f.size, f.full_size) for f in stack), key=lambda f: f.dim)
    for frame in frames:
        if frame.name in _RESERVED:
            raise ValueError(
                f"site {site['name']!r}: expected plates named neither 'chain' nor 'draw' (ArviZ "
                f"uses them), got {frame.name!r}; rename the plate"
            )
    return frames


def plate_indices(*traces: poutine.Trace) -> dict[str, Any]:
    """Plate name -> the indices it runs over."""
    return {
        name: site["value"]
        for trace in traces
        for name, site in trace.nodes.items()
        if site_is_subsample(site)
    }


def arrange(site: Site, value: Tensor, event_dim: int) -> Tensor:
    """Rearranges ``[*batch, *event]`` to ``[*plates, *rest]``."""
    frames = plates(site)
    split = value.dim() - event_dim
    batch, event = list(value.shape[:split]), list(value.shape[split:])
    depth = max([len(batch), *(-frame.dim for frame in frames)])
    batch = [1] * (depth - len(batch)) + batch
    for frame in frames:
        batch[frame.dim] = frame.size
    value = value.expand(batch + event)
    first = [depth + frame.dim for frame in frames]
    others = [axis for axis in range(depth) if axis not in first]
    value = value.permute([*first, *others, *range(depth, value.dim())])
    kept = [batch[axis] for axis in first] + [batch[a] for a in others if batch[a] != 1]
    return value.reshape(kept + event)


def arranged_value(site: Site) -> tuple[list[str], Tensor]:
    """The value of a site as ``[*plates, *rest]``, and the names of its plates."""
    value, names = torch.as_tensor(site["value"]), [frame.name for frame in plates(site)]
    event_dim = site["fn"].event_dim
    if kind(site) == "deterministic" and value.dim() == event_dim:
        # pyro.deterministic takes every axis for an event unless told otherwise.
        sizes = tuple(frame.size for frame in plates(site))
        led_by_plates = tuple(value.shape[: len(sizes)]) == sizes
        return (names, value) if led_by_plates else ([], value)
    event = value.shape[value.dim() - event_dim :]
    return names, arrange(site, value.expand(_batch(site) + event), event_dim)


def dim_names(site: Site, plate_names: Iterable[str], value: Tensor) -> list[str]:
    """Names for the axes of an arranged value: plates, then ``<site>_dim_0``, ..."""
    names = list(plate_names)
    return names + [f"{site['name']}_dim_{i}" for i in range(value.dim() - len(names))]


def arranged_mask(site: Site) -> Tensor | None:
    """Which elements of the arranged log-density count; ``None`` when all do."""
    masks = [site["mask"]]
    if isinstance(site["fn"], MaskedDistribution):
        masks.append(site["fn"]._mask)
    given = [torch.as_tensor(mask) for mask in masks if mask is not None]
    if all(bool(mask.all()) for mask in given):
        return None
    counted = torch.ones((), dtype=torch.bool)
    for mask in given:
        counted = counted.to(mask.device) & mask
    return arrange(site, counted.expand(torch.broadcast_shapes(_batch(site), counted.shape)), 0)


def _batch(site: Site) -> torch.Size:
    value, fn = torch.as_tensor(site["value"]), site["fn"]
    shape = torch.broadcast_shapes(value.shape[: value.dim() - fn.event_dim], fn.batch_shape)
    return torch.Size(shape)


def _log_prob(site: Site) -> Tensor:
    density = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(density, 1.0, site["mask"])  # type: ignore[no-any-return]


def arranged_log_prob(site: Site) -> Tensor:
    """Log-density of a site, ``[*plates, *rest]``; masked elements are 0."""
    return arrange(site, _log_prob(site), 0)


def total_log_prob(trace: poutine.Trace) -> Tensor:
    """Log-density of a trace, a scalar."""
    return torch.stack([arranged_log_prob(site).sum() for site in scored(trace).values()]).sum()


def common_plates(*traces: poutine.Trace) -> list[str]:
    """Plates that every scored site of every trace stands in: over these the program factorises."""
    stacks = [[f.name for f in plates(s)] for trace in traces for s in scored(trace).values()]
    return [name for name in stacks[0] if all(name in stack for stack in stacks)]


def log_weight(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, keep: Iterable[str] = ()
) -> Tensor:
    """``log p(x, z) - log q(z)``, summed over all but the plates ``keep``."""
    names = list(keep)
    terms = [_sum_to(site, names) for site in scored(model_trace).values()]
    terms += [-_sum_to(site, names) for site in scored(guide_trace).values()]
    return torch.stack(terms).sum(0)


def _sum_to(site: Site, keep: list[str]) -> Tensor:
    density = arranged_log_prob(site)
    present = [frame.name for frame in plates(site)]
    density = density.flatten(len(present)).sum(-1) if density.dim() > len(present) else density
    summed = [axis for axis, name in enumerate(present) if name not in keep]
    density = density.sum(summed) if summed else density
    left = [name for name in present if name in keep]
    return density.permute([left.index(name) for name in keep])
