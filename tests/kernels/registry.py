"""Every kernel of the library, for the conformance suite: a new kernel is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyrogen.kernels import (
    HMC,
    MALA,
    NUTS,
    SGHMC,
    SGLD,
    Kernel,
    Langevin,
    ParallelTempering,
    RandomWalk,
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
