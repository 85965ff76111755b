"""What warm-up sets, and what every kernel reports of a step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Info", "Tuning", "from_momentum", "to_momentum"]


class Tuning(NamedTuple):
    """Numbers that a step reads and warm-up changes; tensors, so that no graph bakes them in.

    Attributes:
        step_size: ``[]``.
        scale: a square root of the inverse mass matrix, that is of the covariance of the target:
            its diagonal ``[size]``, or a lower triangular matrix ``[size, size]``.
        trajectory_length: ``[]``, in the units of the step size; of use to HMC alone.

    Example:
        >>> one = torch.ones(())
        >>> tuning = Tuning(step_size=one, scale=torch.ones(3), trajectory_length=one)
        >>> float(tuning._replace(step_size=one / 2).step_size)
        0.5
    """

    step_size: Tensor
    scale: Tensor
    trajectory_length: Tensor


class Info(NamedTuple):
    """What happened in one step; each ``[chains]``, or ``[]`` where the chains share it.

    Attributes:
        accept_prob: probability with which the proposal was to be accepted.
        diverging: whether the energy was not finite, or changed by more than 1000.
        potential_energy: of the new state; minus the log density in unconstrained space.
        energy: of the new state, with the kinetic energy if the kernel has one.
        num_steps: evaluations of the gradient (of the energy, for a kernel without gradient).
        step_size: in use.

    Example:
        >>> chains, shared = torch.zeros(5), torch.tensor(1.0)
        >>> info = Info(chains, chains > 0, chains, chains, num_steps=shared, step_size=shared)
        >>> int(info.diverging.sum())
        0
    """

    accept_prob: Tensor
    diverging: Tensor
    potential_energy: Tensor
    energy: Tensor
    num_steps: Tensor
    step_size: Tensor


def from_momentum(scale: Tensor, momentum: Tensor) -> Tensor:
    """The velocity ``S z`` of a standardised momentum ``z [chains, size]``."""
    return scale * momentum if scale.dim() == 1 else momentum @ scale.T


def to_momentum(scale: Tensor, gradient: Tensor) -> Tensor:
    """The force ``S' g`` on a standardised momentum, of a gradient ``g [chains, size]``."""
    return scale * gradient if scale.dim() == 1 else gradient @ scale
