"""What discrete energy-based sites know exactly: each variable given all others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["alternatives", "check_count", "log_odds", "num_variables_of"]


def alternatives(name: str, fn: Any) -> Tensor:
    """The values of one variable of a site, ``[levels, *shape]``.

    The variables of a site are what its base makes independent: a base
    ``Bernoulli(probs).to_event(1)`` has ``len(probs)`` of them with the values 0 and 1;
    ``OneHotCategorical(probs).to_event(1)`` has the rows of ``probs``, whose values are vectors.

    Raises:
        ValueError: if they have no finite number of values.
    """
    element = _element(fn.base)
    if getattr(element, "has_enumerate_support", False):
        values: Tensor = element.enumerate_support(expand=False)
        size = len(element.event_shape)
        return values.reshape(len(values), *values.shape[values.dim() - size :])
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return torch.arange(2)
    raise ValueError(
        f"site {name!r}: expected a base of independent discrete variables, such as "
        f"dist.Bernoulli(probs).to_event(1), got {type(element).__name__} with support "
        f"{fn.support}; use ScoreMatching for real values, ContrastiveDivergence for any"
    )


def _element(base: Any) -> Any:
    while hasattr(base, "reinterpreted_batch_ndims"):
        base = base.base_dist
    return base


def log_odds(fn: Any, value: Tensor, levels: Tensor, num_variables: int | None) -> Tensor:
    """How much more likely a datum were with one variable changed.

    Args:
        fn: the site.
        value: ``[*batch, *event]``.
        levels: the values of a variable, from :func:`alternatives`.
        num_variables: how many variables to change, drawn without replacement; ``None`` for all.

    Returns:
        ``[others, variables, *batch]``: the log-density with the variable changed less that at
        ``value``. Of two levels the other one is tried, of more than two all, and the one that the
        variable has gives 0.
    """
    levels = levels.to(value)
    within = levels.dim() - 1
    shape = fn.event_shape[: len(fn.event_shape) - within]
    count = math.prod(shape)
    chosen = torch.eye(count, dtype=torch.bool, device=value.device)
    if num_variables is not None and num_variables < count:
        chosen = chosen[torch.randperm(count, device=value.device)[:num_variables]]
    batch = value.dim() - len(fn.event_shape)
    mask = chosen.reshape(len(chosen), *[1] * batch, *shape, *[1] * within)
    if len(levels) == 2:
        others = (levels.sum(0) - value).unsqueeze(0)
    else:
        others = levels.reshape(len(levels), *[1] * (batch + len(shape)), *levels.shape[1:])
    changed = torch.where(mask, others.unsqueeze(1), value)
    density: Tensor = fn.unnormalized_log_prob(changed)
    present: Tensor = fn.unnormalized_log_prob(value)
    return density - present


def num_variables_of(fn: Any, levels: Tensor) -> int:
    """How many variables the event of a site has."""
    return math.prod(fn.event_shape[: len(fn.event_shape) - levels.dim() + 1])


def check_count(name: str, count: int | None) -> None:
    """Raises ValueError unless it is ``None`` or a positive integer."""
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(f"{name}: expected a positive integer or None for all, got {count!r}")
