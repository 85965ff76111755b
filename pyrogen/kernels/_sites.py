"""The latent sites of a Pyro model, and its log joint as a function of unconstrained values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.enum import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyrogen.distributions import EnergyBased
from pyrogen.distributions.energy import innermost
from pyrogen.kernels._minibatch import Minibatch
from pyrogen.modes import up_to_a_constant

__all__ = ["Site", "Structure", "nonfinite_sites", "potential_of_model", "structure_of"]

_RADIUS = 2.0


@dataclass(frozen=True)
class Site:
    """One latent site: its unconstrained shape and the bijection to its support."""

    name: str
    shape: torch.Size
    transform: Transform
    prototype: Tensor


@dataclass(frozen=True)
class Structure:
    """What one run of a model shows.

    Attributes:
        sites: the continuous latent sites, sorted by name.
        enumerated: the discrete latent sites, to be summed out.
        subsampled: the plates that draw a minibatch.
        plate_nesting: how many dimensions the plates take.
    """

    sites: tuple[Site, ...]
    enumerated: tuple[str, ...]
    subsampled: dict[str, Minibatch]
    plate_nesting: int


@up_to_a_constant()
def structure_of(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Structure:
    """Runs the model and lists its latent sites.

    Raises:
        ValueError: if a latent site is neither continuous nor enumerable, if its support depends on
            other latent sites, if it stands in a plate that draws a minibatch, or if there is none.
    """
    first = _trace(model, args, kwargs)
    draws = {name: node["value"] for name, node in first.nodes.items() if _is_plate(node)}
    minibatches = {name: partial(torch.clone, value) for name, value in draws.items()}
    with _Substitution({}, minibatches):  # the same data at other latent values
        second = _trace(model, args, kwargs)
    sites: list[Site] = []
    enumerated: list[str] = []
    subsampled: dict[str, Minibatch] = {}
    for name, node in _latent(first):
        if isinstance(node["fn"], _Subsample):
            plate = node["fn"]
            if (size := plate.subsample_size or plate.size) < plate.size:
                subsampled[name] = Minibatch(plate.size, size, plate.device)
        elif node["fn"].has_enumerate_support:
            _refuse_sequential(name, node)
            enumerated.append(name)
        else:
            _refuse_moving_support(name, node, second)
            sites.append(_site(name, node))
    if not sites:
        raise ValueError(
            "expected a model with a continuous latent site, got "
            + (f"only the enumerable sites {enumerated}" if enumerated else "none")
            + "; a latent site is a pyro.sample statement without obs="
        )
    _refuse_minibatches_of_latents(first, subsampled, enumerated)
    _refuse_moving_constants(first, second)
    sites.sort(key=lambda site: site.name)
    return Structure(tuple(sites), tuple(enumerated), subsampled, _plate_nesting(first))


@up_to_a_constant()
def potential_of_model(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    enumerate_from: int | None = None,
    minibatches: Mapping[str, Callable[[], Tensor]] = {},
) -> Tensor:
    """The potential ``[]`` of one chain: minus log joint and log-determinants.

    Args:
        model: the model.
        args: its arguments.
        kwargs: likewise.
        values: the unconstrained value of each latent site.
        enumerate_from: how many dimensions the plates take, if there are discrete sites to sum out.
        minibatches: for each plate that draws a minibatch, what draws its indices.
    """
    substitution = _Substitution(values, minibatches, complete=True)
    if enumerate_from is not None:
        model = poutine.enum(config_enumerate(model), first_available_dim=-1 - enumerate_from)
    with substitution:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    if missing := sorted(values.keys() - trace.nodes.keys()):
        raise _other_sites(f"without {missing}")
    log_joint: Any
    if enumerate_from is None:
        log_joint = trace.log_prob_sum()
    else:
        log_joint = TraceEinsumEvaluator(trace, True, enumerate_from).log_prob(trace)
    potential: Tensor = -(log_joint + substitution.log_det)
    return potential


@up_to_a_constant()
def nonfinite_sites(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> list[str]:
    """The sites whose log-probability is infinite or NaN at the given unconstrained values."""
    with poutine.block(), _Substitution(values):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    nodes = trace.nodes.items()
    return [
        name
        for name, node in nodes
        if node["type"] == "sample" and not torch.isfinite(torch.as_tensor(node["log_prob_sum"]))
    ]


class _Substitution(Messenger):
    """Gives latent sites their values, sums the log-determinants, and draws minibatches."""

    def __init__(
        self,
        values: Mapping[str, Tensor],
        minibatches: Mapping[str, Callable[[], Tensor]] = {},
        complete: bool = False,
    ) -> None:
        super().__init__()
        self._complete = complete
        self._values = values
        self._minibatches = minibatches
        self.log_det: Tensor | float = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._minibatches:
            msg["value"], msg["done"] = self._minibatches[msg["name"]](), True
            return
        if msg["is_observed"]:
            return
        if msg["name"] not in self._values:
            known = isinstance(msg["fn"], _Subsample) or msg["fn"].has_enumerate_support
            if self._complete and not known:
                raise _other_sites(f"with {msg['name']!r}")
            return
        unconstrained = self._values[msg["name"]]
        transform = biject_to(msg["fn"].support)
        value = transform(unconstrained)
        self.log_det = self.log_det + transform.log_abs_det_jacobian(unconstrained, value).sum()
        msg["value"], msg["done"] = value, True


def _is_plate(node: Mapping[str, Any]) -> bool:
    return isinstance(node.get("fn"), _Subsample) and not node["is_observed"]


def _trace(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with torch.no_grad(), poutine.block():
        program = poutine.trace(InitMessenger(_initial_value)(model))
        return program.get_trace(*args, **kwargs)


def _initial_value(site: Mapping[str, Any]) -> Tensor:
    """Uniform in unconstrained space, so that improper priors have a value too."""
    fn = site["fn"]
    if fn.has_enumerate_support:
        value: Tensor = fn.sample().detach()
        return value
    transform = _transform(site["name"], fn)
    shape = transform.inverse_shape(fn.shape())
    dtype, device = _dtype_and_device(fn)
    draw = torch.empty(shape, dtype=dtype, device=device).uniform_(-_RADIUS, _RADIUS)
    result: Tensor = transform(draw)
    return result


def _dtype_and_device(fn: Any) -> tuple[torch.dtype, torch.device]:
    try:
        sample = fn.sample()
    except NotImplementedError:  # an improper prior
        return torch.get_default_dtype(), torch.get_default_device()
    return sample.dtype, sample.device


def _transform(name: str, fn: Any) -> Transform:
    try:
        transform: Transform = biject_to(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"site {name!r}: expected a continuous distribution whose support has a bijection "
            f"from the reals (or a discrete one that can be enumerated), got "
            f"{type(innermost(fn)).__name__} with support {fn.support}; sum the site out by hand, "
            "or use a continuous relaxation"
        ) from error
    return transform


def _site(name: str, node: Mapping[str, Any]) -> Site:
    transform = _transform(name, node["fn"])
    shape = torch.Size(transform.inverse_shape(node["value"].shape))
    return Site(name, shape, transform, node["value"])


def _refuse_moving_support(name: str, node: Mapping[str, Any], other: Any) -> None:
    if name not in other.nodes or other.nodes[name]["value"].shape != node["value"].shape:
        return  # another structure, which is found when the model is run
    one, two = (_transform(name, n["fn"]) for n in (node, other.nodes[name]))
    value = node["value"]
    at = torch.full(one.inverse_shape(value.shape), 0.3, dtype=value.dtype, device=value.device)
    if not torch.equal(one(at), two(at)):
        raise ValueError(
            f"site {name!r}: expected a support that is fixed, got one that depends on other "
            "latent sites; sample it on the unit scale and transform it (pyro.deterministic)"
        )


def _refuse_moving_constants(first: Any, second: Any) -> None:
    """An energy that depends on what is sampled has a constant that depends on it too."""
    for name, node in _samples(first):
        fn = innermost(node["fn"])
        if not isinstance(fn, EnergyBased) or name not in second.nodes:
            continue
        value, other = node["value"], innermost(second.nodes[name]["fn"])
        if not torch.equal(fn.log_prob(value), other.log_prob(value)):
            raise ValueError(
                f"site {name!r}: expected an energy that is fixed, got one that depends on other "
                "latent sites, and so does its unknown constant: the posterior is doubly "
                "intractable. Use a normalised density there, or fix what it depends on"
            )


def _refuse_sequential(name: str, node: Mapping[str, Any]) -> None:
    if node["infer"].get("enumerate") == "sequential":
        raise ValueError(
            f"site {name!r}: expected infer={{'enumerate': 'parallel'}} or none, got 'sequential'; "
            "discrete sites are summed out in parallel"
        )


def _refuse_minibatches_of_latents(
    trace: Any, subsampled: Mapping[str, Minibatch], enumerated: Sequence[str]
) -> None:
    """The sum over a site of a minibatch, scaled up, is no estimate of the sum over all data."""
    if subsampled and enumerated:
        raise ValueError(
            f"sites {list(enumerated)}: expected no discrete sites beside minibatches (plates "
            f"{list(subsampled)}), whose sum a minibatch does not estimate; sum them out by hand, "
            "for instance with dist.MixtureSameFamily, or use subsample_size=None"
        )
    for name, node in _latent(trace):
        plates = {frame.name for frame in node["cond_indep_stack"]} & subsampled.keys()
        if plates and not isinstance(node["fn"], _Subsample):
            raise ValueError(
                f"site {name!r}: expected latent sites outside the plates that draw a minibatch, "
                f"got one in {sorted(plates)}, where each draw would be that of other data; "
                "integrate it out, or use subsample_size=None"
            )


def _other_sites(words: str) -> ValueError:
    return ValueError(
        f"expected a model with the same latent sites at every run, got one {words} in a later "
        "run; sample all sites always, and choose among them with torch.where"
    )


def _latent(trace: Any) -> Iterator[tuple[str, Any]]:
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"]:
            yield name, node


def _plate_nesting(trace: Any) -> int:
    frames = [f for _, node in _samples(trace) for f in node["cond_indep_stack"] if f.vectorized]
    return -min((frame.dim for frame in frames), default=0)


def _samples(trace: Any) -> Iterator[tuple[str, Any]]:
    return ((name, node) for name, node in trace.nodes.items() if node["type"] == "sample")
