"""Some steps of a kernel on one site's distribution, as a pure function of where chains start."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pyrogen.distributions import EnergyBased
from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._potential import Potential, WithoutGradient
from pyrogen.kernels._target import Target

__all__ = ["Direct", "Phase", "initial_position", "moved", "points"]


class Phase(NamedTuple):
    """Where chains are, ``[chains, size]``, and which of them diverged on the way, ``[chains]``."""

    position: Tensor
    diverged: Tensor


def initial_position(target: Target, fn: EnergyBased, num_chains: int) -> Tensor:
    """Positions ``[num_chains, size]`` drawn from the base of a site's distribution."""
    if fn.is_conditional:
        num_chains //= fn.batch_shape.numel()
    else:
        fn = fn.unexpanded()
    return target.start(fn.initial_point((num_chains,)))


def moved(kernel: Kernel, target: Target, position: Tensor, num_steps: int) -> Phase:
    """``num_steps`` transitions of every chain.

    A gradient for a step that is not taken is not computed; whether it would be finite is then not
    asked either.

    Args:
        kernel: how they move; its own target, if it has one, is not looked at.
        target: what they sample.
        position: ``[chains, size]``, unconstrained.
        num_steps: how many.
    """
    potential, tuning = target.potential(), kernel.initial_tuning(target)
    state = kernel.init(potential, position, tuning)
    diverged = ~state.position.isfinite().all(-1)
    run: Any = Direct(potential)
    for iteration in range(num_steps):
        if kernel.takes_gradient_ahead and iteration == num_steps - 1:
            run = Direct(WithoutGradient(potential))
        state, info = kernel.transition(run, state, tuning, iteration)
        diverged = diverged | info.diverging
    return Phase(state.position, diverged)


def points(target: Target, fn: EnergyBased, position: Tensor) -> Tensor:
    """The values ``[*, *batch, *event]`` at ``position [chains, size]``, where ``batch`` is that of
    a conditional distribution, else none."""
    ((name, shape),) = target.layout
    batch = fn.batch_shape if fn.is_conditional else ()
    return target.constrain({name: position.reshape((-1, *batch, *shape))})[name]


class Direct:
    """Calls a kernel's functions as they are, in place of a runner of graphs."""

    def __init__(self, potential: Potential) -> None:
        self._potential = potential

    def __call__(self, function: Any, *tensors: Any) -> Any:
        """``function(potential, *tensors)``."""
        return function(self._potential, *tensors)

    once = __call__

    def moved(self, share: float) -> None:
        """Nobody is watching."""

    def plain(self, function: Any, *tensors: Any) -> Any:
        """``function(*tensors)``."""
        return function(*tensors)
