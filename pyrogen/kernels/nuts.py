r"""The no-U-turn sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptation import WarmUp
from pyrogen.kernels._kernel import Kernel, standard_tuning
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._target import Target
from pyrogen.kernels._trees import Motion, Tree, extend, join, leaf, sapling, turn
from pyrogen.kernels._tuning import Tuning
from pyrogen.kernels.hmc import HMCState, Phase

__all__ = ["NUTS", "NUTSInfo"]

_FIRST = 3  # doublings in the first graph
_UNROLLED = 2  # a sub-tree of 2**2 leaves is one graph


class NUTSInfo(NamedTuple):
    """:class:`~pyrogen.kernels.Info` and ``tree_depth [chains]``, the number of doublings."""

    accept_prob: Tensor
    diverging: Tensor
    potential_energy: Tensor
    energy: Tensor
    num_steps: Tensor
    step_size: Tensor
    tree_depth: Tensor


class NUTS(Kernel):
    r"""The no-U-turn sampler: Hamiltonian Monte Carlo that finds the length of each trajectory.

    From the present state and a momentum :math:`z \sim N(0, I)` a trajectory of leapfrog steps
    doubles, each time forwards or backwards at random, until it turns back on itself: with
    :math:`\rho` the sum of the momenta of its states, until

    .. math:: z_\text{first} \cdot \rho \le 0 \quad\text{or}\quad z_\text{last} \cdot \rho \le 0

    for the whole, for one of the sub-trees it is built of, or across the border of two. The new
    state is drawn from the trajectory in proportion to :math:`e^{-H}`, with a preference for the
    last doubling. A step whose energy exceeds the initial one by more than 1000 ends it, too: a
    divergence.

    All chains double together, so that a leapfrog step of every chain is one operation: a chain
    whose trajectory is complete waits for the others.

    Args:
        model: a Pyro model of static structure.
        potential_fn: see :class:`Kernel`.
        energy: see :class:`Kernel`.
        event_shape: see :class:`Kernel`.
        step_size: to begin with.
        max_tree_depth: the most doublings: up to ``2**max_tree_depth - 1`` leapfrog steps.
        mass_matrix: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: what the step size is adapted to: the mean, over the states of a
            trajectory, of the probability to accept each against the initial state.
        compile: see :class:`Kernel`.

    Raises:
        ValueError: for an argument out of its range.

    References:
        Hoffman, Gelman, *The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte
        Carlo*, JMLR 2014 (arXiv:1111.4246). Betancourt, *A Conceptual Introduction to Hamiltonian
        Monte Carlo*, 2017 (arXiv:1701.02434). Lao, Dillon, *Unrolled Implementation of No-U-Turn
        Sampler*, 2019; Phan, Pradhan, Jankowiak, *Composable Effects for Flexible and Accelerated
        Probabilistic Programming in NumPyro*, 2019 (arXiv:1912.11554), on many chains at once.

    Example:
        >>> kernel = NUTS(energy=lambda x: 0.5 * x.square().sum(-1), event_shape=(2,), compile=False)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, num_chains=50, disable_progbar=True)
        >>> mcmc.run()
        >>> bool((mcmc.info["num_steps"] < 2 ** mcmc.info["tree_depth"]).all())
        True
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        energy: Callable[[Tensor], Tensor] | None = None,
        event_shape: Sequence[int] | None = None,
        step_size: float = 0.5,
        max_tree_depth: int = 10,
        mass_matrix: Literal["diagonal", "dense"] | None = "diagonal",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.8,
        compile: bool = True,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            energy=energy,
            event_shape=event_shape,
            compile=compile,
        )
        self.step_size = step_size
        self.max_tree_depth = max_tree_depth
        self.mass_matrix = mass_matrix
        self._warm_up = WarmUp(target_accept_prob, adapt_step_size, mass_matrix is not None)

    def initial_tuning(self, target: Target) -> Tuning:
        return standard_tuning(target, self.step_size, self.mass_matrix == "dense")

    def warm_up(self) -> WarmUp:
        return self._warm_up

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> HMCState:
        return HMCState(position, *potential.value_and_grad(position))

    def step(
        self, potential: Potential, state: HMCState, tuning: Tuning
    ) -> tuple[HMCState, NUTSInfo]:
        """All ``max_tree_depth`` doublings, whether or not a chain needs them."""
        return self._finish(*self._begin(potential, state, tuning, self.max_tree_depth), tuning)

    def transition(
        self, run: Runner, state: HMCState, tuning: Tuning, iteration: int
    ) -> tuple[HMCState, NUTSInfo]:
        """As many doublings as the longest trajectory needs."""
        first = min(_FIRST, self.max_tree_depth)
        tree, depth, motion = run(self._begin, state, tuning, first)
        for doubling in range(first, self.max_tree_depth):
            if not tree.growing.any():
                break
            tree = run(self._turn, tree)
            part = self._grow(run, tree.last, tree.growing, motion, doubling)
            tree, depth = run(self._extend, tree, part, depth)
        result: tuple[HMCState, NUTSInfo] = run.plain(self._finish, tree, depth, motion, tuning)
        return result

    def probe(self, run: Runner, state: HMCState, tuning: Tuning) -> Tensor:
        tree, _, _ = run.once(self._begin, state, tuning, 1)
        accept_prob: Tensor = tree.accept_sum
        return accept_prob

    def _begin(
        self, potential: Potential, state: HMCState, tuning: Tuning, doublings: int
    ) -> tuple[Tree, Tensor, Motion]:
        """The first doublings."""
        tree, energy = sapling(Phase(*state, torch.randn_like(state.position)))
        motion = Motion(tuning.step_size, tuning.scale, energy)
        depth = torch.zeros_like(energy)
        for doubling in range(doublings):
            tree = self._turn(potential, tree)
            part = self._subtree(potential, tree.last, tree.growing, motion, doubling)
            tree, depth = self._extend(potential, tree, part, depth)
        return tree, depth, motion

    def _grow(
        self, run: Runner, start: Phase, growing: Tensor, motion: Motion, depth: int
    ) -> Tree:
        """A sub-tree of ``2**depth`` leaves; only its first part if no chain needs the rest."""
        if depth <= _UNROLLED:
            part: Tree = run(self._subtree, start, growing, motion, depth)
            return part
        first = self._grow(run, start, growing, motion, depth - 1)
        if not first.growing.any():
            return first
        second = self._grow(run, first.last, first.growing, motion, depth - 1)
        joined: Tree = run(self._join, first, second)
        return joined

    def _subtree(
        self, potential: Potential, start: Phase, growing: Tensor, motion: Motion, depth: int
    ) -> Tree:
        if depth == 0:
            return leaf(potential, start, growing, motion)
        first = self._subtree(potential, start, growing, motion, depth - 1)
        second = self._subtree(potential, first.last, first.growing, motion, depth - 1)
        return self._join(potential, first, second)

    def _join(self, potential: Potential, first: Tree, second: Tree) -> Tree:
        return join(first, second, torch.rand_like(first.energy))

    def _turn(self, potential: Potential, tree: Tree) -> Tree:
        return turn(tree, torch.rand_like(tree.energy) < 0.5)

    def _extend(
        self, potential: Potential, tree: Tree, part: Tree, depth: Tensor
    ) -> tuple[Tree, Tensor]:
        depth = depth + tree.growing.to(depth.dtype)
        return extend(tree, part, torch.rand_like(tree.energy)), depth

    def _finish(
        self, tree: Tree, depth: Tensor, motion: Motion, tuning: Tuning
    ) -> tuple[HMCState, NUTSInfo]:
        info = NUTSInfo(
            accept_prob=tree.accept_sum / tree.num_leaves,
            diverging=tree.diverging,
            potential_energy=tree.proposal.potential_energy,
            energy=tree.energy,
            num_steps=tree.num_leaves,
            step_size=tuning.step_size,
            tree_depth=depth,
        )
        return tree.proposal, info
