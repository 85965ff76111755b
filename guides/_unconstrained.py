r"""The latent sites of a program side by side in one vector, constrained and unconstrained.

A site of value :math:`z_i` in the support :math:`S_i` is written :math:`z_i = g_i(u_i)` with an
unconstrained :math:`u_i` and the bijection :math:`g_i` that ``biject_to`` knows for :math:`S_i`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, constraints

from pyrogen.transforms import Bijection
from pyrogen.transforms._bijection import forward_and_log_det, inverse_and_log_det
from pyrogen.transforms._moved import moved, tensors

__all__ = ["Constrain", "Frame", "Latent", "latents"]


@dataclass(frozen=True)
class Frame:
    """A plate: its name, its axis counted from the right of the batch, its size."""

    name: str
    dim: int
    size: int


@dataclass
class Latent:
    """A latent site, without reference to the program it was found in.

    Attributes:
        name: of the site.
        support: of its distribution.
        transform: from the reals to the support.
        shape: of the value, plates included.
        event_dim: number of its dimensions that belong to the event.
        frames: the plates it stands in, outermost first.
        initial: a value in the support.
    """

    name: str
    support: constraints.Constraint
    transform: Transform
    shape: Size
    event_dim: int
    frames: tuple[Frame, ...]
    initial: Tensor

    @property
    def unconstrained_shape(self) -> Size:
        """Shape of the unconstrained value, plates included."""
        shape: Size = self.transform.inverse_shape(self.shape)
        return shape


def latents(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    init_loc_fn: Callable[..., Any],
) -> list[Latent]:
    """Runs a model twice and returns its continuous latent sites, in the order of the program.

    Raises:
        ValueError: if there is none; if one is discrete and not enumerated, or stands in a
            subsampled or sequential plate; or if sites, shapes or supports change between the runs.
    """
    found = [_find(model, args, kwargs, init) for init in (init_loc_fn, init_to_sample)]
    first, second = found
    if [site.name for site in first] != [site.name for site in second]:
        raise ValueError(
            f"model: expected the same latent sites in every run, got {[s.name for s in first]} "
            f"and {[s.name for s in second]}"
        )
    if not first:
        raise ValueError("model: expected latent sites, got none; its guide is guides.Empty()")
    for one, other in zip(first, second, strict=True):
        if one.shape != other.shape or not _same(one.support, other.support):
            raise ValueError(
                f"site {one.name!r}: expected one shape and support in every run, got "
                f"{list(one.shape)}, {one.support} and {list(other.shape)}, {other.support}; "
                "reparametrise it so that its support does not depend on other sites"
            )
    return first


def _centre(fn: Any) -> Tensor:
    """The image of zero in the support, for improper distributions, which cannot be drawn from."""
    transform = biject_to(fn.support)
    centre: Tensor = transform(torch.zeros(transform.inverse_shape(fn.shape())))
    return centre


def _find(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    init: Callable[..., Any],
) -> list[Latent]:
    def initial(site: Any) -> Any:
        try:
            return site["fn"].sample() if site["fn"].support.is_discrete else init(site)
        except NotImplementedError:
            return _centre(site["fn"])

    with poutine.block(), pyro.get_param_store().scope(), torch.no_grad():
        trace = poutine.trace(InitMessenger(initial)(model)).get_trace(*args, **kwargs)
    nodes: Mapping[str, Any] = trace.nodes
    return [
        _latent(site)
        for site in nodes.values()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and site["infer"].get("enumerate") is None
    ]


def _latent(site: Any) -> Latent:
    name, fn, value = site["name"], site["fn"], site["value"]
    if fn.support.is_discrete:
        raise ValueError(
            f"site {name!r}: expected a continuous distribution, got {type(fn).__name__}; sum the "
            "site out with pyro.infer.config_enumerate and TraceEnum_ELBO"
        )
    frames = []
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized or frame.size != frame.full_size:
            raise ValueError(
                f"site {name!r}: expected vectorised plates without subsampling, got plate "
                f"{frame.name!r} of size {frame.size} out of {frame.full_size}; a joint flow holds "
                "all elements, so give local latents an amortised guide"
            )
        frames.append(Frame(frame.name, frame.dim, frame.size))
    support, event_dim = moved(fn.support, torch.detach), len(fn.event_shape)
    try:
        transform = biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"site {name!r}: expected a support with a bijection from the reals, got {support} of "
            f"{type(fn).__name__}; give this site a guide of its own"
        ) from error
    return Latent(name, support, transform, value.shape, event_dim, tuple(frames), value.detach())


def _same(one: constraints.Constraint, other: constraints.Constraint) -> bool:
    pairs = list(tensors(one)), list(tensors(other))
    return (repr(one) == repr(other) if not any(pairs) else len(pairs[0]) == len(pairs[1])) and all(
        torch.equal(a, b) for a, b in zip(*pairs, strict=False)
    )


class Constrain(Bijection):
    """From the unconstrained vector of all sites to the vector of their values.

    Args:
        sites: what :func:`latents` returns.
    """

    def __init__(self, sites: Iterable[Latent]) -> None:
        super().__init__(event_dim=1)
        self.sites = list(sites)
        self._from = [site.unconstrained_shape.numel() for site in self.sites]
        self._to = [site.shape.numel() for site in self.sites]
        self.codomain = _Supports(self.sites)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps ``[*batch, unconstrained size]`` to ``[*batch, size]``."""
        return self._each(forward_and_log_det, x, self._from, True)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps ``[*batch, size]`` to ``[*batch, unconstrained size]``."""
        return self._each(inverse_and_log_det, y, self._to, False)

    def _each(
        self, run: Callable[..., Any], x: Tensor, sizes: list[int], forward: bool
    ) -> tuple[Tensor, Tensor]:
        batch, values, total = x.shape[:-1], [], x.new_zeros(x.shape[:-1])
        for site, part in zip(self.sites, x.split(sizes, -1), strict=True):
            shape = site.unconstrained_shape if forward else site.shape
            value, log_det = run(site.transform, part.reshape((*batch, *shape)))
            values.append(value.reshape(*batch, -1))
            total = total + sum_rightmost(log_det, log_det.dim() - len(batch))
        return torch.cat(values, -1), total

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the values."""
        return Size((*shape[:-1], sum(self._to)))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the unconstrained vector."""
        return Size((*shape[:-1], sum(self._from)))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Constrain:
        super()._apply(fn, recurse)
        for site in self.sites:
            site.support, site.initial = moved(site.support, fn), fn(site.initial)
            site.transform = biject_to(site.support)
        return self


class _Supports(constraints.Constraint):
    """The vectors whose parts lie in the supports of their sites."""

    event_dim = 1

    def __init__(self, sites: list[Latent]) -> None:
        self._sites = sites
        super().__init__()

    def check(self, value: Tensor) -> Any:
        inside = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
        sizes = [site.shape.numel() for site in self._sites]
        for site, part in zip(self._sites, value.split(sizes, -1), strict=True):
            checked = site.support.check(part.reshape((*value.shape[:-1], *site.shape)))
            inside = inside & checked.flatten(value.dim() - 1).all(-1)
        return inside
