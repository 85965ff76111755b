"""The score-based site of a model: where it is, and what its network says of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._one_site import distribution_at
from pyrogen.kernels._target import Layout, Target
from pyrogen.modes import up_to_a_constant
from pyrogen.processes import LinearProcess, Prediction
from pyrogen.processes.solver import Predict

__all__ = [
    "Denoising",
    "ScoreSite",
    "elementary",
    "score_site",
    "target_of_distribution",
    "target_of_site",
]


class Denoising:
    """What a sampler knows of a target: what a network predicts of a state.

    Samplers ask nothing else, so that whoever guides them puts another object in its place.

    Args:
        fn: the distribution of the site.
        shape: of the site's value, ``[*batch, *event]``.
    """

    def __init__(self, fn: ScoreBased, shape: Sequence[int]) -> None:
        self.fn = fn
        self.shape = tuple(shape)

    @property
    def process(self) -> LinearProcess:
        """By which the data are noised."""
        return self.fn.process

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        """Data and noise in states ``x [chains, *shape]`` at time ``t``, a scalar."""
        return Prediction.of(self.process, self.fn.raw(x, t), x, t, self.fn.prediction)

    def predictor(self, until: Tensor) -> Predict:
        """As :meth:`predict`, on the way to the time ``until``."""
        return self.predict

    def draw(self, num_chains: int) -> Tensor:
        """Draws at the last time, ``[num_chains, *shape]``."""
        batch = self.shape[: len(self.shape) - len(self.fn.event_shape)]
        noise: Tensor = self.fn.terminal().sample((num_chains, *batch))
        return noise


_ARRANGED = (torch.distributions.Independent, dist.MaskedDistribution, ExpandedDistribution)


def elementary(fn: Any) -> Any:
    """The law of the very values of a site: inside masks, plates and event dimensions, but not
    inside a transform."""
    while isinstance(fn, _ARRANGED):
        fn = fn.base_dist
    return fn


@dataclass(frozen=True)
class ScoreSite:
    """The score-based site of a model.

    Attributes:
        name: of the site.
        fn: its distribution.
        shape: of its value.
        observed: names of the observed sites of the model.
    """

    name: str
    fn: ScoreBased
    shape: tuple[int, ...]
    observed: tuple[str, ...]


def score_site(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ScoreSite:
    """Runs a model and finds its one latent site, which has to be score-based.

    Raises:
        ValueError: if there are other latent sites, or none.
    """
    with torch.no_grad(), poutine.block(), up_to_a_constant(), _AnyValue():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    nodes: Any = trace.nodes.items()
    sites = [
        (name, node)
        for name, node in nodes
        if node["type"] == "sample"
        and not poutine.util.site_is_subsample(node)
        and not node["infer"].get("_deterministic")
    ]
    latent = [(name, node) for name, node in sites if not node["is_observed"]]
    found = {name: type(elementary(node["fn"])).__name__ for name, node in latent}
    if list(found.values()) != ["ScoreBased"]:
        raise ValueError(
            "expected a model with one latent site, a ScoreBased one, got "
            + (f"the latent sites {found}" if found else "no latent site")
        )
    ((name, node),) = latent
    observed = tuple(name for name, node in sites if node["is_observed"])
    return ScoreSite(name, elementary(node["fn"]), tuple(node["value"].shape), observed)


def target_of_site(model: Any, site: ScoreSite, args: Any, kwargs: Any) -> Target:
    """The site of a model as a target, without regard to what is observed."""
    return _target(site.name, site.fn, site.shape, _OfModel(model, site.name), (args, kwargs))


def target_of_distribution(fn: ScoreBased) -> Target:
    """A distribution as a target. Its chains are as many points as one likes; if points of its
    batch have laws of their own, any number of whole batches."""
    shape = fn.shape() if fn.is_conditional else fn.event_shape
    return _target("x", fn, shape, _OfDistribution(fn), (fn.context,))


def _target(
    name: str, fn: ScoreBased, shape: Sequence[int], make: Any, arguments: tuple[Any, ...]
) -> Target:
    like = fn.like
    layout = ((name, tuple(shape)),)
    return Target(layout, make, arguments, dtype=like.dtype, device=like.device)


class _OfModel:
    """Runs the model up to its site, whose parameters are read at every call."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> Denoising:
        ((_, shape),) = layout
        fn = distribution_at(self._model, self._name, *arguments)
        return Denoising(elementary(fn), shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OfModel) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


_LAW = (
    "process", "denoiser", "prediction", "guidance_scale", "min_time", "max_time", "_terminal",
    "_event_shape",
)  # fmt: skip


class _OfDistribution:
    """A distribution whose context is an argument: another context needs no other graph."""

    def __init__(self, fn: ScoreBased) -> None:
        self._fn = fn

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> Denoising:
        ((_, shape),) = layout
        (context,) = arguments
        return Denoising(self._fn.with_context(context, self._fn.guidance_scale), shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OfDistribution) and all(
            getattr(self._fn, name) == getattr(other._fn, name) for name in _LAW
        )

    __hash__ = None  # type: ignore[assignment]


class _AnyValue(Messenger):
    """Gives score-based sites values at once, which a draw of theirs would take long for."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = elementary(msg["fn"])
        if msg["is_observed"] or msg["done"] or not isinstance(fn, ScoreBased):
            return
        shape = msg["fn"].shape()
        batch = shape[: len(shape) - len(fn.event_shape)]
        value = fn.terminal().sample(batch)
        msg["value"], msg["done"] = value.reshape(shape), True
