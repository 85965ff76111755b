r"""Trees of a trajectory: what the no-U-turn sampler remembers of consecutive leapfrog states.

A tree stands for :math:`2^j` consecutive states (its leaves) without holding them: it keeps the two
ends, the sum of the momenta, one state drawn from the leaves in proportion to
:math:`e^{-H}`, and the sum of these weights. Two neighbours of equal size join into one; so a
trajectory of any length needs one tree per level. Every tensor has a leading dimension of chains,
and in each chain a tree grows by itself: once ``growing`` is false its leaves count for nothing.

Momenta are standardised (:math:`H = U + \tfrac12 \lVert z \rVert^2`), in which coordinates the sum
:math:`\rho` of the momenta stands for the way from end to end.

References:
    Hoffman, Gelman, *The No-U-Turn Sampler*, 2014 (arXiv:1111.4246). Betancourt, *A Conceptual
    Introduction to Hamiltonian Monte Carlo*, 2017 (arXiv:1701.02434), appendix A.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._metropolis import MAX_ENERGY_CHANGE, select
from pyrogen.kernels._potential import Potential
from pyrogen.kernels.hmc import HMCState, Phase, leapfrog

__all__ = ["Motion", "Tree", "extend", "join", "leaf", "sapling", "turn"]


class Motion(NamedTuple):
    """What all leaves of a trajectory share: step size, scale and the initial energy ``[chains]``."""

    step_size: Tensor
    scale: Tensor
    initial_energy: Tensor


class Tree(NamedTuple):
    """Consecutive states of each chain, the later ones last.

    Attributes:
        first: the end where it began.
        last: the end where it may grow.
        momentum_sum: ``[chains, size]``.
        proposal: one of its states.
        energy: ``[chains]``, that of the proposal, kinetic energy included.
        log_weight: ``[chains]``, of all its states; relative to the initial state.
        accept_sum: ``[chains]``, the sum of ``min(1, exp(-change of energy))``.
        num_leaves: ``[chains]``, how many states have been computed for it.
        growing: ``[chains]``, whether it has neither turned nor diverged.
        diverging: ``[chains]``.
    """

    first: Phase
    last: Phase
    momentum_sum: Tensor
    proposal: HMCState
    energy: Tensor
    log_weight: Tensor
    accept_sum: Tensor
    num_leaves: Tensor
    growing: Tensor
    diverging: Tensor


def sapling(phase: Phase) -> tuple[Tree, Tensor]:
    """The tree of the initial state alone, and the energy of that state."""
    energy = _energy(phase)
    zero = torch.zeros_like(energy)
    growing = torch.ones_like(energy, dtype=torch.bool)
    proposal = HMCState(*phase[:3])
    tree = Tree(
        phase, phase, phase.momentum, proposal, energy, zero, zero, zero, growing, ~growing
    )
    return tree, energy


def leaf(potential: Potential, start: Phase, growing: Tensor, motion: Motion) -> Tree:
    """The next state after ``start``; chains that no longer grow stay where they are."""
    step_size = motion.step_size * growing.unsqueeze(-1)
    phase = leapfrog(potential, start, step_size, motion.scale, 1)
    energy = _energy(phase)
    change = energy - motion.initial_energy
    finite = change <= MAX_ENERGY_CHANGE  # false for NaN
    valid = growing & finite
    return Tree(
        first=phase,
        last=phase,
        momentum_sum=phase.momentum,
        proposal=HMCState(*phase[:3]),
        energy=energy,
        log_weight=torch.where(valid, -change, -torch.inf),
        accept_sum=torch.where(valid, torch.exp(-change.clamp(min=0.0)), 0.0),
        num_leaves=growing.to(energy.dtype),
        growing=valid,
        diverging=growing & ~finite,
    )


def join(first: Tree, second: Tree, uniform: Tensor) -> Tree:
    """A tree and its neighbour of equal size.

    The proposal is the second's with its share of the weight as probability.

    Args:
        first: the earlier half.
        second: the later half, grown from the end of the first.
        uniform: ``[chains]``, random numbers on ``(0, 1)``.
    """
    return _joined(first, second, uniform < torch.sigmoid(second.log_weight - first.log_weight))


def extend(tree: Tree, second: Tree, uniform: Tensor) -> Tree:
    """The trajectory so far and a neighbour of equal size.

    A neighbour that turned or diverged within itself is left out. Else the proposal is the
    neighbour's with probability ``min(1, ratio of weights)``, which favours it: states far from the
    initial one are better draws, and the law remains invariant.
    """
    favoured = uniform.log() < second.log_weight - tree.log_weight
    return _joined(tree, second, second.growing & favoured)


def turn(tree: Tree, reverse: Tensor) -> Tree:
    """The same states the other way round where ``reverse [chains]``: it then grows at the other end."""
    sign = torch.where(reverse, -1.0, 1.0).to(tree.momentum_sum.dtype).unsqueeze(-1)
    first, last = select(reverse, tree.last, tree.first), select(reverse, tree.first, tree.last)
    return tree._replace(
        first=first._replace(momentum=sign * first.momentum),
        last=last._replace(momentum=sign * last.momentum),
        momentum_sum=sign * tree.momentum_sum,
    )


def _joined(first: Tree, second: Tree, chosen: Tensor) -> Tree:
    turned = _turned(first, second)
    return Tree(
        first=first.first,
        last=second.last,
        momentum_sum=first.momentum_sum + second.momentum_sum,
        proposal=select(chosen, second.proposal, first.proposal),
        energy=torch.where(chosen, second.energy, first.energy),
        log_weight=torch.logaddexp(first.log_weight, second.log_weight),
        accept_sum=first.accept_sum + second.accept_sum,
        num_leaves=first.num_leaves + second.num_leaves,
        growing=second.growing & ~turned,
        diverging=first.diverging | second.diverging,
    )


def _turned(first: Tree, second: Tree) -> Tensor:
    """Whether the way from end to end no longer lengthens, or that from one half into the other."""
    a, b, c, d = (
        first.first.momentum,
        first.last.momentum,
        second.first.momentum,
        second.last.momentum,
    )
    return (
        _opposed(a, d, first.momentum_sum + second.momentum_sum)
        | _opposed(a, c, first.momentum_sum + c)
        | _opposed(b, d, b + second.momentum_sum)
    )


def _opposed(first: Tensor, last: Tensor, way: Tensor) -> Tensor:
    return ((first * way).sum(-1) <= 0) | ((last * way).sum(-1) <= 0)


def _energy(phase: Phase) -> Tensor:
    return phase.potential_energy + 0.5 * phase.momentum.square().sum(-1)
