"""Checks at the boundary: what a user passes in is found wanting before it is computed with.

Checks that look at shapes and names always run. Checks that read tensor *values* run only while
Pyro's validation is on (``pyro.enable_validation``), as Pyro's own do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine, validation_enabled
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen.errors import NonFiniteError
from pyrogen.modes import up_to_a_constant

__all__ = ["check_data", "check_pair", "nonfinite_site"]

Program = Callable[..., Any]


def check_data(
    data: Any, event_shape: Sequence[int], dtype: torch.dtype | None = None, name: str = "data"
) -> Tensor:
    """Returns ``data`` if it is a usable batch of events of one shape.

    Args:
        data: what the user passed; expected ``[*batch, *event_shape]`` with at least one batch
            dimension.
        event_shape: shape of one datum.
        dtype: the dtype expected, or ``None`` for any.
        name: what to call the argument in messages.

    Raises:
        ValueError: if ``data`` is no tensor, is empty, holds NaN or infinity, or has another dtype
            or event shape than expected.

    Example:
        >>> check_data(torch.zeros(3, 2), event_shape=(4,))
        Traceback (most recent call last):
        ...
        ValueError: data: expected shape [*, 4] (a batch of events of shape [4]), got [3, 2]
    """
    event_shape = tuple(event_shape)
    if not isinstance(data, Tensor):
        raise ValueError(
            f"{name}: expected a torch.Tensor, got {type(data).__name__}; "
            "convert with torch.as_tensor"
        )
    split = data.dim() - len(event_shape)
    if split < 1 or tuple(data.shape[split:]) != event_shape:
        expected = ", ".join(["*", *map(str, event_shape)])
        raise ValueError(
            f"{name}: expected shape [{expected}] (a batch of events of shape "
            f"{list(event_shape)}), got {list(data.shape)}"
        )
    if dtype is not None and data.dtype != dtype:
        raise ValueError(f"{name}: expected dtype {dtype}, got {data.dtype}; use .to({dtype})")
    if data.numel() == 0:
        raise ValueError(f"{name}: expected at least one datum, got shape {list(data.shape)}")
    if is_validation_enabled() and not data.isfinite().all():
        bad = int((~data.isfinite()).sum())
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite among {data.numel()}; "
            "remove them or mask the site"
        )
    return data


def check_pair(
    model: Program, guide: Program, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
) -> tuple[poutine.Trace, poutine.Trace]:
    """Runs the guide, then the model on its draws, and compares their latent sites.

    Returns:
        The traces of model and guide.

    Raises:
        ValueError: if a latent site stands in one of them only, or differs in event shape or in
            ``poutine.scale`` between the two (a scale on one side alone is no weight on the KL).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0))
        >>> check_pair(model, guide)
        Traceback (most recent call last):
        ...
        ValueError: the guide must sample the model's latent sites: expected ['z'], got ['w']; \
only in the model: ['z'], only in the guide: ['w']
    """
    guide_trace = _guide_trace(model, guide, args, kwargs)
    with poutine.block():
        try:
            model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(
                *args, **kwargs
            )
        except (RuntimeError, ValueError):
            # The draws of the guide may not fit the model: say so rather than what broke.
            _compare(poutine.trace(model).get_trace(*args, **kwargs), guide_trace)
            raise
    _compare(model_trace, guide_trace)
    return model_trace, guide_trace


def _compare(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    proposed = _latents(guide_trace, auxiliary=False)
    # A discrete latent may be missing from the guide: TraceEnum_ELBO sums it out in the model.
    expected = {
        name: site
        for name, site in _latents(model_trace).items()
        if name in proposed or site["infer"].get("enumerate") is None
    }
    if set(expected) != set(proposed):
        raise ValueError(
            f"the guide must sample the model's latent sites: expected {sorted(expected)}, "
            f"got {sorted(proposed)}; only in the model: {sorted(set(expected) - set(proposed))}, "
            f"only in the guide: {sorted(set(proposed) - set(expected))}"
        )
    for name, site in expected.items():
        _check_site(name, site, proposed[name])


def _guide_trace(
    model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> poutine.Trace:
    try:
        return poutine.trace(guide).get_trace(*args, **kwargs)
    except RuntimeError:
        # A network of the guide may choke on data of a wrong shape or dtype. The model knows what
        # its data look like and says so; where it has no objection, the fault is the guide's.
        with poutine.block():
            model(*args, **kwargs)
        raise


def _latents(trace: poutine.Trace, auxiliary: bool = True) -> dict[str, dict[str, Any]]:
    nodes: dict[str, Any] = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not poutine.util.site_is_subsample(site)
        and (auxiliary or not site["infer"].get("is_auxiliary"))
    }


def _check_site(name: str, expected: dict[str, Any], got: dict[str, Any]) -> None:
    if expected["fn"].event_shape != got["fn"].event_shape:
        raise ValueError(
            f"site {name!r}: expected event shape {list(expected['fn'].event_shape)} as in the "
            f"model, got {list(got['fn'].event_shape)} in the guide"
        )
    if not _same_scale(expected["scale"], got["scale"]):
        raise ValueError(
            f"site {name!r}: expected scale {expected['scale']} as in the model, got "
            f"{got['scale']} in the guide; give both the same beta (or poutine.scale)"
        )


def _same_scale(one: Any, other: Any) -> bool:
    """Compares numbers or tensors on any device, up to rounding to single precision."""
    one, other = (torch.as_tensor(scale, dtype=torch.float64).cpu() for scale in (one, other))
    return bool(torch.isclose(one, other, rtol=1e-6, atol=0.0).all())


def nonfinite_site(
    model: Program, guide: Program, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
) -> str | None:
    """Runs guide and model once and names the first sample site whose value or log-density is
    not finite, or returns ``None`` if there is none.

    Pyro's validation is off meanwhile: it would stop at the first fault without naming the site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> nonfinite_site(model, lambda x: None, (torch.tensor(float("nan")),))
        'x'
    """
    with torch.no_grad(), validation_enabled(False), up_to_a_constant():
        return _nonfinite_site(model, guide, args, kwargs)


def _has_density(site: Mapping[str, Any]) -> bool:
    """Whether the log-density of a site is finite, which a density may say itself."""
    try:
        return _finite(site["fn"].log_prob(site["value"]))
    except (NonFiniteError, RuntimeError):  # as a solver's that gets nowhere
        return False


def _nonfinite_site(
    model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    for trace in (guide_trace, model_trace):
        nodes: dict[str, Any] = trace.nodes
        for name, site in nodes.items():
            if site["type"] != "sample" or poutine.util.site_is_subsample(site):
                continue
            if not (_finite(site["value"]) and _has_density(site)):
                return str(name)
    return None


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
