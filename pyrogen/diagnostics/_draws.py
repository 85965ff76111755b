"""Running a model and its guide, draw by draw, under Pyro's handlers.

Every draw sees the same subsample of every plate: the indices of the first run are kept, so that
element ``i`` of a plate is the same datum in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrogen.checks import check_pair
from pyrogen.diagnostics._sites import kind, plates, scored
from pyrogen.modes import evaluation_mode, trained_parameters

__all__ = [
    "Pair",
    "check_num_samples",
    "check_subsampling",
    "evaluating",
    "predict",
    "prepare",
    "replay_values",
]

Program = Callable[..., Any]


@dataclass(frozen=True)
class Pair:
    """A model and a guide, with their arguments and the subsample they are run on."""

    model: Program
    guide: Program
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    subsample: poutine.Trace
    first: tuple[poutine.Trace, poutine.Trace]

    def draw(self) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces of the model and the guide for one draw of the latent sites."""
        guide = poutine.replay(self.guide, trace=self.subsample)
        guide_trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        model = poutine.replay(self.model, trace=merge(guide_trace, self.subsample))
        return poutine.trace(model).get_trace(*self.args, **self.kwargs), guide_trace


def prepare(model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pair:
    """Checks a model and a guide against each other and fixes the subsample."""
    model_trace, guide_trace = check_pair(model, guide, args, kwargs)
    check_sites(model_trace)
    undrawn = [
        n for n, s in model_trace.nodes.items() if kind(s) == "latent" and n not in guide_trace
    ]
    if undrawn:
        raise ValueError(
            f"expected a guide that draws every latent site, got none for {undrawn}; add them to "
            "the guide (pyro.infer.infer_discrete draws sites that were enumerated)"
        )
    subsample = merge(*map(subsamples, (guide_trace, model_trace)))
    return Pair(model, guide, args, kwargs, subsample, (model_trace, guide_trace))


def check_sites(trace: poutine.Trace) -> None:
    """Raises ``ValueError`` unless the model has latent and observed sites."""
    kinds = {name: kind(site) for name, site in trace.nodes.items()}
    if "latent" not in kinds.values():
        raise ValueError("the model: expected at least one latent sample site, got none")
    if "observed" not in kinds.values():
        raise ValueError(
            "the model: expected at least one observed sample site, got only the latent sites "
            f"{[n for n, k in kinds.items() if k == 'latent']}; pass the data to the model"
        )


def check_num_samples(num_samples: int, least: int = 1, name: str = "num_samples") -> None:
    """Raises ``ValueError`` if there are fewer draws than the result needs."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {num_samples!r}")


def check_subsampling(pair: Pair, common: Sequence[str]) -> None:
    """Raises ``ValueError`` if a subsampled plate is not common to all sites: its weights would
    compare a global latent with a part of the data only."""
    for trace in pair.first:
        for site in scored(trace).values():
            for frame in plates(site):
                if frame.name not in common and frame.size != frame.full_size:
                    raise ValueError(
                        f"plate {frame.name!r}: expected all {frame.full_size} elements, because "
                        f"not every latent site is inside it, got a subsample of {frame.size}; "
                        "run the programs without subsampling"
                    )


def subsamples(trace: poutine.Trace) -> poutine.Trace:
    """The subsample sites of a trace."""
    kept = poutine.Trace()
    kept.nodes.update((n, s) for n, s in trace.nodes.items() if site_is_subsample(s))
    return kept


def merge(*traces: poutine.Trace) -> poutine.Trace:
    """One trace with the sites of all; the first one wins."""
    merged = poutine.Trace()
    for trace in reversed(traces):
        merged.nodes.update(trace.nodes)
    return merged


def replay_values(values: Mapping[str, Tensor]) -> poutine.Trace:
    """A trace that makes ``poutine.replay`` put these values at the latent sites."""
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(name, type="sample", name=name, is_observed=False, value=value, infer={})
    return trace


def predict(
    model: Program, drawn: poutine.Trace, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> poutine.Trace:
    """Runs the model on the latent values of ``drawn``, sampling what was observed."""
    latent = poutine.Trace()
    latent.nodes.update(
        (name, site)
        for name, site in drawn.nodes.items()
        if site_is_subsample(site) or kind(site) == "latent"
    )
    program = poutine.replay(poutine.uncondition(model), trace=latent)
    return poutine.trace(program).get_trace(*args, **kwargs)


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """No gradients, modules in evaluation mode, and the parameters that were trained."""
    with trained_parameters(*programs), evaluation_mode(*programs), torch.no_grad():
        yield
