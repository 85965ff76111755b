"""Collecting traced draws into the groups of an ArviZ result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyrogen.diagnostics._arviz import Group
from pyrogen.diagnostics._sites import (
    Site,
    arranged_log_prob,
    arranged_mask,
    arranged_value,
    dim_names,
    kind,
    plate_indices,
    plates,
    total_log_prob,
)

__all__ = ["Recorder", "Row", "to_numpy"]

Array = NDArray[Any]
Row: TypeAlias = "dict[tuple[str, str], Tensor]"  # (group, name) -> value of one draw


def to_numpy(value: Any) -> Array:
    """A tensor, of any device and dtype, as a numpy array of its own memory."""
    tensor = torch.as_tensor(value).detach().cpu()
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return np.array(tensor.numpy())


class Recorder:
    """Takes one trace after the other and gives the groups of the result.

    Args:
        num_chains: number of chains; the draws come chain after chain.
    """

    def __init__(self, num_chains: int = 1) -> None:
        self.num_chains = num_chains
        self._draws: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(list))
        self._dims: dict[str, dict[str, list[str]]] = defaultdict(dict)
        self._masks: dict[str, Array | None] = {}
        self._points: dict[str, Array] = {}
        self._observed = Group()
        self._labels: dict[str, Array] = {}

    def draw(self, trace: poutine.Trace) -> None:
        """Records latent and deterministic values, and the log-likelihood of what is observed."""
        if not self._labels:
            self._labels = {k: to_numpy(v) for k, v in plate_indices(trace).items()}
        for name, site in trace.nodes.items():
            if kind(site) == "observed":
                self._observe(name, site)
            elif kind(site) != "hidden" and not _is_imputed(name, trace):
                self._value("posterior", site)

    def predictive(self, trace: poutine.Trace, observed: poutine.Trace) -> None:
        """Records what ``trace`` drew at the sites that are observed in ``observed``."""
        for name, site in trace.nodes.items():
            if name in observed and kind(observed.nodes[name]) == "observed":
                self._value("posterior_predictive", site)

    def statistic(self, name: str, value: Tensor) -> None:
        """Records a number about the draw."""
        self._add("sample_stats", name, [], value)

    def row(self, trace: poutine.Trace, predictive: poutine.Trace | None) -> Row:
        """What :meth:`draw` and :meth:`predictive` record, as tensors, for one draw alone.

        Without ``predictive``, only what is no number per datum. It may run under ``vmap``; a mask
        that differs from draw to draw makes that fail.
        """
        values: Row = {("sample_stats", "lp"): total_log_prob(trace)}
        for name, site in trace.nodes.items():
            if kind(site) == "observed":
                mask = arranged_mask(site)
                if predictive is not None and (mask is None or mask.any()):
                    values["log_likelihood", name] = arranged_log_prob(site)
            elif kind(site) != "hidden" and not _is_imputed(name, trace):
                values["posterior", name] = arranged_value(site)[1]
        for name, site in (predictive.nodes if predictive is not None else {}).items():
            if name in trace and kind(trace.nodes[name]) == "observed":
                values["posterior_predictive", name] = arranged_value(site)[1]
        return values

    def rows(self, values: Mapping[tuple[str, str], Array]) -> None:
        """Replaces what was recorded by the rows of all draws, ``[draws, *]`` each."""
        self._draws.clear()
        for (group, name), stacked in values.items():
            self._draws[group][name] = stacked

    def groups(self) -> dict[str, Group]:
        """The groups of the result, ``sample_stats`` included if there are any."""
        built = {name: self._group(name) for name in self._draws}
        if "log_likelihood" in built:
            self._leave_out_masked(built["log_likelihood"])
        return {**built, "observed_data": self._labelled(self._observed)}

    def _value(self, group: str, site: Site) -> None:
        names, value = arranged_value(site)
        self._add(group, site["name"], dim_names(site, names, value), value)

    def _add(self, group: str, name: str, dims: list[str], value: Tensor) -> None:
        self._dims[group].setdefault(name, dims)
        self._draws[group][name].append(to_numpy(value))

    def _observe(self, name: str, site: Site) -> None:
        density, counted = arranged_log_prob(site), arranged_mask(site)
        mask = None if counted is None else to_numpy(counted)
        if name not in self._masks:
            self._masks[name] = mask
            self._store_observed(name, site, mask)
        elif not np.array_equal(self._masks[name], mask):  # type: ignore[arg-type]
            raise ValueError(
                f"site {name!r}: expected one mask for all draws, got masks that differ; a mask "
                "must not depend on a random site"
            )
        if mask is None or mask.any():
            names = [frame.name for frame in plates(site)]
            self._add("log_likelihood", name, dim_names(site, names, density), density)

    def _store_observed(self, name: str, site: Site, mask: Array | None) -> None:
        names, value = arranged_value(site)
        array = to_numpy(value)
        if mask is not None:
            array = array.astype(np.result_type(array.dtype, np.float32))
            array[~mask] = np.nan
        self._observed.variables[name] = (dim_names(site, names, value), array)

    def _group(self, group: str) -> Group:
        variables = {}
        for name, values in self._draws[group].items():
            stacked = self._stack(name, values)
            dims = ["chain", "draw", *self._dims[group][name]]
            variables[name] = (dims, stacked)
        return self._labelled(Group(variables))  # type: ignore[arg-type]

    def _stack(self, name: str, values: list[Array] | Array) -> Array:
        if isinstance(values, np.ndarray):
            return values.reshape(self.num_chains, -1, *values.shape[1:])
        total = len(self._draws["sample_stats"]["lp"])
        shapes = {value.shape for value in values}
        if len(shapes) > 1 or len(values) != total:
            raise ValueError(
                f"site {name!r}: expected the same shape in every draw, got {sorted(shapes)} in "
                f"{len(values)} of {total} draws; the structure of the program must be fixed"
            )
        return np.stack(values).reshape(self.num_chains, -1, *values[0].shape)

    def _labelled(self, group: Group) -> Group:
        used = {dim for dims, _ in group.variables.values() for dim in dims}
        group.coords = {k: ((k,), v) for k, v in self._labels.items() if k in used}
        return group

    def _leave_out_masked(self, group: Group) -> None:
        """Replaces the axes of a masked site by one axis of the points that count."""
        for name, mask in self._masks.items():
            if mask is None or name not in group.variables:
                continue
            dims, values = group.variables[name]
            point, axes = f"{name}_point", list(dims)[2:]
            group.variables[name] = (["chain", "draw", point], np.asarray(values)[:, :, mask])
            group.coords[point] = ((point,), np.flatnonzero(mask))
            for dim, index in zip(axes, np.nonzero(mask), strict=True):
                labels = self._labels.get(dim)
                group.coords[f"{name}_{dim}"] = (
                    (point,),
                    index if labels is None else labels[index],
                )
        used = {dim for dims, _ in group.variables.values() for dim in dims}
        group.coords = {k: v for k, v in group.coords.items() if set(v[0]) <= used}


def _is_imputed(name: str, trace: poutine.Trace) -> bool:
    """Whether a site is the hidden half of ``pyro.sample(..., obs_mask=)``: the whole is reported
    under the site's own name."""
    whole = name.removesuffix("_unobserved")
    return whole != name and whole in trace and f"{whole}_observed" in trace
