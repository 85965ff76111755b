"""Every kernel of the library, for the conformance suite: a new kernel is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyrogen.kernels import (
    DDIM,
    DDPM,
    HMC,
    MALA,
    NUTS,
    SGHMC,
    SGLD,
    AnnealedLangevin,
    Kernel,
    Langevin,
    ParallelTempering,
    ProbabilityFlow,
    RandomWalk,
    ReverseDiffusion,
)


@dataclass(frozen=True)
class Entry:
    """A kernel and what is true of it.

    Attributes:
        make: the constructor; takes ``energy=, event_shape=`` or ``model=``, and ``compile=``.
        options: further arguments, with a step size that suits targets of unit scale.
        exact: it leaves the target's law unchanged, at any step size.
        reversible: it satisfies detailed balance.
        accepts: it accepts less the larger ``step_size`` is.
    """

    make: Callable[..., Kernel]
    options: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    reversible: bool = True
    accepts: bool = True

    def __call__(self, **arguments: Any) -> Kernel:
        return self.make(**{**self.options, "compile": False, **arguments})


def tempered(model=None, *, step_size, **arguments):
    """The cold replicas alone are not at the joint law, so nothing exact holds of one step."""
    inner = HMC(model, step_size=step_size, num_steps=3, **arguments)
    return ParallelTempering(inner, [1.0, 2.0, 4.0])


KERNELS = {
    "RandomWalk": Entry(RandomWalk, {"step_size": 0.8}),
    "Langevin": Entry(Langevin, {"step_size": 0.1}, exact=False, reversible=False, accepts=False),
    "MALA": Entry(MALA, {"step_size": 0.7}),
    "HMC": Entry(HMC, {"step_size": 0.5, "num_steps": 3}),
    "HMC fixed": Entry(HMC, {"step_size": 0.4, "num_steps": 4, "trajectory": "fixed"}),
    "HMC dense": Entry(HMC, {"step_size": 0.5, "num_steps": 2, "mass_matrix": "dense"}),
    "HMC chees": Entry(HMC, {"step_size": 0.4, "num_steps": 5, "trajectory": "chees"}),
    "HMC long": Entry(HMC, {"step_size": 0.1, "num_steps": 18}),
    "NUTS": Entry(NUTS, {"step_size": 0.5, "max_tree_depth": 5}),
    "SGLD": Entry(SGLD, {"step_size": 0.1}, exact=False, reversible=False, accepts=False),
    "SGHMC": Entry(SGHMC, {"step_size": 0.2}, exact=False, reversible=False, accepts=False),
    "tempered HMC": Entry(tempered, {"step_size": 0.5}, exact=False, reversible=False),
}

EXACT_KERNELS = [name for name, entry in KERNELS.items() if entry.exact]
REVERSIBLE_KERNELS = [name for name, entry in KERNELS.items() if entry.reversible]
ACCEPTING_KERNELS = [name for name, entry in KERNELS.items() if entry.accepts]
ONE_OF_EACH_CLASS = list({entry.make: name for name, entry in reversed(KERNELS.items())}.values())


# Samplers of score-based sites: (constructor, options for a quick run, factor of all steps at which
# what is left of the error is lost in that of some thousand draws).
SAMPLERS: dict[str, tuple[Callable[..., Kernel], dict[str, Any], int]] = {
    "ancestral": (ReverseDiffusion, {"num_steps": 30, "grid": "karras"}, 20),
    "euler-maruyama": (ReverseDiffusion, {"num_steps": 30, "method": "euler-maruyama"}, 20),
    "exponential": (ReverseDiffusion, {"num_steps": 30, "method": "exponential"}, 20),
    "multistep": (ReverseDiffusion, {"num_steps": 30, "method": "multistep", "grid": "karras"}, 4),
    "stochastic heun": (ReverseDiffusion, {"num_steps": 30, "method": "heun", "grid": "karras"}, 4),
    "predictor-corrector": (
        ReverseDiffusion,
        {"num_steps": 30, "corrector_steps": 2, "snr": 0.1, "grid": "karras"},
        20,
    ),
    "annealed langevin": (
        AnnealedLangevin, {"num_levels": 20, "steps_per_level": 30, "step_size": 0.4}, 4
    ),
    "flow euler": (ProbabilityFlow, {"num_steps": 30, "method": "euler"}, 20),
    "flow exponential": (
        ProbabilityFlow, {"num_steps": 30, "method": "exponential", "denoise": True}, 20
    ),
    "flow heun": (ProbabilityFlow, {"num_steps": 30, "method": "heun", "grid": "log-snr"}, 2),
    "flow multistep": (ProbabilityFlow, {"num_steps": 30, "grid": "log-snr"}, 2),
    "flow adaptive": (ProbabilityFlow, {"method": "adaptive"}, 1),
    "ddpm": (DDPM, {"num_steps": 30}, 20),
    "ddim": (DDIM, {"num_steps": 30, "eta": 0.3, "grid": "quadratic"}, 20),
}  # fmt: skip


def sampler(name: str, model: Any = None, longer: bool = False, **options: Any) -> Kernel:
    """One of the samplers, at work on a model.

    Args:
        name: one of ``SAMPLERS``.
        model: as of its constructor.
        longer: with so many steps as make it exact to three digits or so.
        **options: further arguments, or others.
    """
    make, given, factor = SAMPLERS[name]
    chosen = {"compile": False, **given, **options}
    if longer:
        steps = "steps_per_level" if make is AnnealedLangevin else "num_steps"
        if steps in chosen:
            chosen[steps] *= factor
    return make(model, **chosen)
