"""The flows that guides know by name.

All are run from noise to latent in one pass, and start near the identity, so that a guide starts
near its Gaussian base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions.transforms import (
    ConditionalPlanar,
    ConditionalRadial,
    Planar,
    Radial,
)
from torch import Tensor

from pyrogen.nn import TimeMLP
from pyrogen.transforms import ContinuousFlow, Inverse, SplineCoupling, Sylvester
from pyrogen.transforms._amortized import Amortized
from pyrogen.transforms._elementwise import ElementwiseSpline
from pyrogen.transforms._networks import masked

__all__ = ["FLOWS", "make_flow"]

Flow = str | Callable[..., Iterable[Any]]
_NUM_BINS = 8


def make_flow(flow: Flow, dim: int, num_flows: int, context_dim: int = 0) -> list[Any]:
    """Returns ``num_flows`` layers on ``[*, dim]``, by the name of the flow.

    Args:
        flow: a name in ``FLOWS``, or a function of ``dim`` (and of ``context_dim``, where that is
            not 0) that returns transforms.
        dim: number of dimensions.
        num_flows: number of layers.
        context_dim: size of the context, 0 for none.

    Raises:
        TypeError: if ``flow`` is neither a name nor a function.
        ValueError: if the name is unknown, ``num_flows`` is not positive, or the flow needs more
            dimensions.
    """
    if not isinstance(num_flows, int) or num_flows < 1:
        raise ValueError(f"num_flows: expected a positive integer, got {num_flows!r}")
    if isinstance(flow, str):
        if flow not in FLOWS:
            raise ValueError(f"flow: expected one of {sorted(FLOWS)} or a function, got {flow!r}")
        return [layer for i in range(num_flows) for layer in FLOWS[flow](dim, context_dim, i)]
    if not callable(flow):
        raise TypeError(f"flow: expected a name or a function, got {type(flow).__name__}")
    return list(flow(dim, context_dim) if context_dim else flow(dim))


def planar(dim: int, context_dim: int, index: int) -> list[Any]:
    """One planar unit. It is the identity where softplus(u · w) = 1."""
    w = torch.randn(dim) / math.sqrt(dim)
    along = math.log(math.e - 1) + 0.1 * torch.randn(())
    u = along * w / w.square().sum()
    if context_dim:
        return [ConditionalPlanar(Amortized([torch.zeros(1), u, w], context_dim, 0.01))]
    return [_with(Planar(dim), bias=torch.zeros(1), u=u, w=w)]


def radial(dim: int, context_dim: int, index: int) -> list[Any]:
    """One radial unit. It is the identity where alpha = beta."""
    centre, size = torch.randn(dim), torch.zeros(1)
    shift = size + 0.1 * torch.randn(1)
    if context_dim:
        return [ConditionalRadial(Amortized([centre, size, shift], context_dim, 0.01))]
    return [_with(Radial(dim), x0=centre, alpha_prime=size, beta_prime=shift)]


def sylvester(dim: int, context_dim: int, index: int) -> list[Any]:
    """As many hidden units as dimensions."""
    return [Sylvester(dim, context_dim=context_dim)]


def iaf(dim: int, context_dim: int, index: int) -> list[Any]:
    """An inverse autoregressive layer, in an order that is reversed from one to the next."""
    if dim < 2:
        raise ValueError(f"flow: expected at least 2 dimensions for 'iaf', got {dim}; use 'spline'")
    return [Inverse(masked(dim, _hidden(dim), context_dim, reverse=bool(index % 2)))]


def spline(dim: int, context_dim: int, index: int) -> list[Any]:
    """Splines of each half given the other half; of each element, where there is only one."""
    layers: list[Any] = [ElementwiseSpline(dim, _NUM_BINS, context_dim=context_dim)]
    for swap in (False, True) if dim > 1 else ():
        layers.append(
            SplineCoupling(
                dim,
                num_bins=_NUM_BINS,
                split=dim // 2,
                swap=swap,
                context_dim=context_dim,
                hidden=_hidden(dim),
            )
        )
    return layers


def continuous(dim: int, context_dim: int, index: int) -> list[Any]:
    """A neural differential equation.

    Its steps adapt: with few fixed ones training would widen the solver's error in the
    log-determinant until the bound is none.
    """
    field = TimeMLP(dim, hidden=_hidden(dim), context_dim=context_dim)
    return [ContinuousFlow(field, context_dim=context_dim)]


def _hidden(dim: int) -> tuple[int, int]:
    width = max(32, 4 * dim)
    return width, width


def _with(transform: Any, **values: Tensor) -> Any:
    with torch.no_grad():
        for name, value in values.items():
            getattr(transform, name).copy_(value)
    return transform


FLOWS: dict[str, Callable[[int, int, int], list[Any]]] = {
    "continuous": continuous,
    "iaf": iaf,
    "planar": planar,
    "radial": radial,
    "spline": spline,
    "sylvester": sylvester,
}
