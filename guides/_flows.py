"""The flows that guides know by name.

All are run from noise to latent in one pass, and start near the identity, so that a guide starts
near its Gaussian base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions.transforms import ConditionalPlanar, ConditionalRadial, Planar, Radial
from torch import Tensor

from pyrogen.transforms._amortized import Amortized
from pyrogen.transforms.sylvester import Sylvester

__all__ = ["FLOWS", "make_flow"]

Flow = str | Callable[..., Iterable[Any]]


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
        ValueError: if the name is unknown or ``num_flows`` is not positive.
    """
    if not isinstance(num_flows, int) or num_flows < 1:
        raise ValueError(f"num_flows: expected a positive integer, got {num_flows!r}")
    if isinstance(flow, str):
        if flow not in FLOWS:
            raise ValueError(f"flow: expected one of {sorted(FLOWS)} or a function, got {flow!r}")
        return [layer for _ in range(num_flows) for layer in FLOWS[flow](dim, context_dim)]
    if not callable(flow):
        raise TypeError(f"flow: expected a name or a function, got {type(flow).__name__}")
    return list(flow(dim, context_dim) if context_dim else flow(dim))


def planar(dim: int, context_dim: int) -> list[Any]:
    """One planar unit. It is the identity where softplus(u · w) = 1."""
    w = torch.randn(dim) / math.sqrt(dim)
    along = math.log(math.e - 1) + 0.1 * torch.randn(())
    u = along * w / w.square().sum()
    if context_dim:
        return [ConditionalPlanar(Amortized([torch.zeros(1), u, w], context_dim, 0.01))]
    return [_with(Planar(dim), bias=torch.zeros(1), u=u, w=w)]


def radial(dim: int, context_dim: int) -> list[Any]:
    """One radial unit. It is the identity where alpha = beta."""
    centre, size = torch.randn(dim), torch.zeros(1)
    shift = size + 0.1 * torch.randn(1)
    if context_dim:
        return [ConditionalRadial(Amortized([centre, size, shift], context_dim, 0.01))]
    return [_with(Radial(dim), x0=centre, alpha_prime=size, beta_prime=shift)]


def sylvester(dim: int, context_dim: int) -> list[Any]:
    """As many units as dimensions."""
    return [Sylvester(dim, context_dim=context_dim)]


def _with(transform: Any, **values: Tensor) -> Any:
    with torch.no_grad():
        for name, value in values.items():
            getattr(transform, name).copy_(value)
    return transform


FLOWS: dict[str, Callable[[int, int], list[Any]]] = {
    "planar": planar,
    "radial": radial,
    "sylvester": sylvester,
}
