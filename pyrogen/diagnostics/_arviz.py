"""The one place where ArviZ 0.x and 1.x differ.

ArviZ 0.x keeps results in its own ``InferenceData``, 1.x in xarray's ``DataTree``. Both hold one
``xarray.Dataset`` per group, and those are built here, so that no converter of ArviZ is needed.
Nothing in this module knows torch or Pyro.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import xarray
from numpy.typing import ArrayLike, NDArray

__all__ = ["ArvizData", "Group", "pareto_shape", "to_arviz"]

ArvizData: TypeAlias = Any  # arviz.InferenceData (0.x) or xarray.DataTree (1.x)
Variable: TypeAlias = tuple[Sequence[str], ArrayLike]

MIN_SAMPLES = 25
"""Fewest weights from which ArviZ fits a tail: it needs five of them, and takes a fifth of all."""


@dataclass
class Group:
    """One group of a result.

    Attributes:
        variables: name -> (names of the dimensions, values).
        coords: name -> (names of the dimensions, labels). A dimension without labels gets
            0, 1, 2, ...
        attrs: attributes, of types that netCDF can hold.
    """

    variables: dict[str, Variable] = field(default_factory=dict)
    coords: dict[str, Variable] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


def to_arviz(groups: Mapping[str, Group], attrs: Mapping[str, Any]) -> ArvizData:
    """Builds the result that the installed ArviZ works with; empty groups are left out.

    Args:
        groups: group name -> :class:`Group`.
        attrs: attributes of the whole result; they are repeated on every group.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.

    Example:
        >>> import numpy as np
        >>> mu = (("chain", "draw"), np.zeros((1, 3)))
        >>> result = to_arviz({"posterior": Group({"mu": mu})}, {"inference": "svi"})
        >>> result.posterior["mu"].dims
        ('chain', 'draw')
    """
    attrs = {**_origin(), **attrs}
    datasets = {name: _dataset(g, attrs) for name, g in groups.items() if g.variables}
    arviz = _arviz()
    if _major(arviz) == 0:
        return arviz.InferenceData(attrs=attrs, **datasets)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **datasets})


def pareto_shape(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Pareto shape of the upper tail of importance weights, by ArviZ' PSIS.

    Args:
        log_weights: shape ``[*, num_samples]``, at least ``MIN_SAMPLES`` of them.

    Returns:
        Shape ``[*]``. The smaller the better; above 0.7 the weights are not to be relied on.
    """
    weights = np.array(log_weights, dtype=np.float64)
    arviz = _arviz()
    if _major(arviz) == 0:
        _, shape = arviz.psislw(weights)
    else:
        array_stats = import_module("arviz_stats.base").array_stats
        _, shape = array_stats.psislw(-weights)  # 1.x expects the log-likelihood to be left out
    return np.asarray(shape, dtype=np.float64)


def _arviz() -> ModuleType:
    with warnings.catch_warnings():
        # 0.23 announces 1.0 on import; both are supported here.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        return import_module("arviz")


def _major(arviz: ModuleType) -> int:
    return int(arviz.__version__.split(".")[0])


def _origin() -> dict[str, str]:
    return {
        "created_at": datetime.now(timezone.utc).isoformat(),
        "creation_library": "PyroGen",
        "arviz_version": version("arviz"),
    }


def _dataset(group: Group, attrs: Mapping[str, Any]) -> Any:
    dataset = xarray.Dataset(
        {
            name: (tuple(dims), np.asarray(values))
            for name, (dims, values) in group.variables.items()
        },
        coords={name: (tuple(dims), labels) for name, (dims, labels) in group.coords.items()},
        attrs={**attrs, **group.attrs},
    )
    unlabelled = [dim for dim in dataset.dims if dim not in dataset.coords]
    return dataset.assign_coords({dim: np.arange(dataset.sizes[dim]) for dim in unlabelled})
