r"""Trees of leapfrog states: what the no-U-turn sampler remembers of a trajectory.

A tree stands for consecutive states (its leaves) without holding them: it keeps the two ends, the
sum of the momenta, one state drawn from the leaves in proportion to :math:`e^{-H}`, and the sum of
these weights. Two neighbours of equal size join into one, so that a trajectory of any length needs
one tree per level. Every tensor has a dimension of chains, and in each chain a tree grows by
itself: once ``growing`` is false, what is computed for it counts for nothing.

Momenta are standardised (:math:`H = U + \tfrac12 \lVert z \rVert^2`); in these coordinates the sum
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
from pyrogen.kernels._tuning import Tuning
from pyrogen.kernels.hmc import HMCState, Phase, leapfrog

__all__ = [
    "End",
    "Packed",
    "Tree",
    "extend",
    "grow",
    "join",
    "pack",
    "put",
    "sapling",
    "take",
    "turn",
    "unpack",
]


class End(NamedTuple):
    """A state where a tree ends; each ``[chains, size]``."""

    position: Tensor
    gradient: Tensor
    momentum: Tensor


class Tree(NamedTuple):
    """Consecutive states of each chain, the later ones last.

    Attributes:
        first: the end where it began.
        last: the end where it grows.
        momentum_sum: ``[chains, size]``.
        proposal: one of its states.
        energy: ``[chains]``, that of the proposal, kinetic energy included.
        initial_energy: ``[chains]``, that of the state from which the trajectory began.
        log_weight: ``[chains]``, of all its states, relative to the initial state.
        accept_sum: ``[chains]``, the sum of ``min(1, exp(-change of energy))``.
        num_leaves: ``[chains]``, how many states have been computed for it.
        diverging: ``[chains]``, 0 or 1.
        growing: ``[chains]``, whether it has neither turned nor diverged.
    """

    first: End
    last: End
    momentum_sum: Tensor
    proposal: HMCState
    energy: Tensor
    initial_energy: Tensor
    log_weight: Tensor
    accept_sum: Tensor
    num_leaves: Tensor
    diverging: Tensor
    growing: Tensor


class Packed(NamedTuple):
    """A :class:`Tree` in three tensors, which are quick to hand from graph to graph.

    Attributes:
        vectors: ``[9, chains, size]``.
        numbers: ``[7, chains]``.
        growing: ``[chains]``.
    """

    vectors: Tensor
    numbers: Tensor
    growing: Tensor


def sapling(state: HMCState, momentum: Tensor) -> Tree:
    """The tree of the initial state alone."""
    energy = state.potential_energy + _kinetic(momentum)
    end = End(state.position, state.gradient, momentum)
    zero = torch.zeros_like(energy)
    growing = torch.ones_like(energy, dtype=torch.bool)
    return Tree(end, end, momentum, state, energy, energy, zero, zero, zero, zero, growing)


def grow(potential: Potential, tree: Tree, tuning: Tuning, uniform: Tensor) -> Tree:
    """The ``2**depth`` states that follow a tree.

    Args:
        potential: gives the force.
        tree: whose states they follow.
        tuning: step size and scale.
        uniform: ``[2**depth - 1, chains]``, random numbers on ``(0, 1)``.
    """
    if len(uniform) == 0:
        return _leaf(potential, tree, tuning)
    left, right = uniform[1:].chunk(2) if len(uniform) > 1 else (uniform[:0], uniform[:0])
    first = grow(potential, tree, tuning, left)
    second = grow(potential, first, tuning, right)
    return join(first, second, uniform[0])


def join(first: Tree, second: Tree, uniform: Tensor) -> Tree:
    """A tree and the neighbour of equal size that was grown from its end.

    The proposal is the second's with its share of the weight as probability.

    Args:
        first: the earlier half.
        second: the later half.
        uniform: ``[chains]``, random numbers on ``(0, 1)``.
    """
    return _joined(first, second, uniform < torch.sigmoid(second.log_weight - first.log_weight))


def extend(tree: Tree, second: Tree, uniform: Tensor) -> Tree:
    """The trajectory so far and a neighbour of equal size.

    A neighbour that turned or diverged within itself is left out. Else the proposal is the
    neighbour's with probability ``min(1, ratio of weights)``, which favours states far from the
    initial one and leaves the law invariant all the same.
    """
    favoured = uniform < torch.exp(second.log_weight - tree.log_weight)
    return _joined(tree, second, second.growing & favoured)


def turn(tree: Tree, reverse: Tensor) -> Tree:
    """The same states in reverse order where ``reverse [chains]``, to grow at the other end."""
    sign = torch.where(reverse, -1.0, 1.0).to(tree.momentum_sum.dtype).unsqueeze(-1)
    first, last = select(reverse, tree.last, tree.first), select(reverse, tree.first, tree.last)
    return tree._replace(
        first=first._replace(momentum=sign * first.momentum),
        last=last._replace(momentum=sign * last.momentum),
        momentum_sum=sign * tree.momentum_sum,
    )


def pack(tree: Tree) -> Packed:
    """The numbers are the potential energy of the proposal and the fields after it, in order."""
    position, potential_energy, gradient = tree.proposal
    vectors = [*tree.first, *tree.last, tree.momentum_sum, position, gradient]
    numbers = [potential_energy, *tree[4:10]]
    return Packed(torch.stack(vectors), torch.stack(numbers), tree.growing)


def unpack(packed: Packed) -> Tree:
    """The inverse of :func:`pack`."""
    vectors = packed.vectors.unbind()
    potential_energy, energy, initial, weight, accept_sum, leaves, diverging = packed.numbers
    return Tree(
        first=End(*vectors[:3]),
        last=End(*vectors[3:6]),
        momentum_sum=vectors[6],
        proposal=HMCState(vectors[7], potential_energy, vectors[8]),
        energy=energy,
        initial_energy=initial,
        log_weight=weight,
        accept_sum=accept_sum,
        num_leaves=leaves,
        diverging=diverging,
        growing=packed.growing,
    )


def take(packed: Packed, chains: Tensor, size: int) -> Packed:
    """The trees of some chains, filled up to a ``size`` with trees that do not grow."""
    if size == len(packed.growing):
        return packed
    padded = torch.cat([chains, chains[:1].expand(size - len(chains))])
    growing = packed.growing.index_select(0, padded)
    growing[len(chains) :] = False
    vectors = packed.vectors.index_select(1, padded)
    return Packed(vectors, packed.numbers.index_select(1, padded), growing)


def put(packed: Packed, chains: Tensor, changed: Packed) -> Packed:
    """Puts the trees of some chains back, in place; what :func:`take` took them from."""
    if len(changed.growing) == len(packed.growing):
        return changed
    count = len(chains)
    packed.vectors.index_copy_(1, chains, changed.vectors[:, :count])
    packed.numbers.index_copy_(1, chains, changed.numbers[:, :count])
    packed.growing.index_copy_(0, chains, changed.growing[:count])
    return packed


def _leaf(potential: Potential, tree: Tree, tuning: Tuning) -> Tree:
    """The next state; chains that no longer grow stay where they are."""
    start = Phase(tree.last.position, tree.energy, tree.last.gradient, tree.last.momentum)
    step_size = tuning.step_size * tree.growing.unsqueeze(-1)
    state = leapfrog(potential, start, step_size, tuning.scale, 1)
    energy = state.potential_energy + _kinetic(state.momentum)
    change = energy - tree.initial_energy
    valid = tree.growing & (change <= MAX_ENERGY_CHANGE)  # false for NaN
    end = End(state.position, state.gradient, state.momentum)
    return Tree(
        first=end,
        last=end,
        momentum_sum=state.momentum,
        proposal=HMCState(*state[:3]),
        energy=energy,
        initial_energy=tree.initial_energy,
        log_weight=torch.where(valid, -change, -torch.inf),
        accept_sum=torch.where(valid, torch.exp(-change.clamp(min=0.0)), 0.0),
        num_leaves=tree.growing.to(energy.dtype),
        diverging=(tree.growing & ~valid).to(energy.dtype),
        growing=valid,
    )


def _joined(first: Tree, second: Tree, chosen: Tensor) -> Tree:
    return Tree(
        first=first.first,
        last=second.last,
        momentum_sum=first.momentum_sum + second.momentum_sum,
        proposal=select(chosen, second.proposal, first.proposal),
        energy=torch.where(chosen, second.energy, first.energy),
        initial_energy=first.initial_energy,
        log_weight=torch.logaddexp(first.log_weight, second.log_weight),
        accept_sum=first.accept_sum + second.accept_sum,
        num_leaves=first.num_leaves + second.num_leaves,
        diverging=first.diverging + second.diverging,
        growing=second.growing & ~_turned(first, second),
    )


def _turned(first: Tree, second: Tree) -> Tensor:
    """Whether the way from end to end no longer lengthens, or that across the border of the two."""
    a, b = first.first.momentum, first.last.momentum
    c, d = second.first.momentum, second.last.momentum
    return (
        _opposed(a, d, first.momentum_sum + second.momentum_sum)
        | _opposed(a, c, first.momentum_sum + c)
        | _opposed(b, d, b + second.momentum_sum)
    )


def _opposed(first: Tensor, last: Tensor, way: Tensor) -> Tensor:
    return ((first * way).sum(-1) <= 0) | ((last * way).sum(-1) <= 0)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().sum(-1)
