r"""The no-U-turn sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptive import AdaptiveKernel, MassMatrix
from pyrogen.kernels._kernel import Source
from pyrogen.kernels._options import whole
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._trees import (
    Packed,
    Tree,
    extend,
    grow,
    join,
    pack,
    put,
    sapling,
    take,
    turn,
    unpack,
)
from pyrogen.kernels._tuning import Tuning
from pyrogen.kernels.hmc import HMCState

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NUTS", "NUTSInfo"]

_FUSED = 2  # the first doublings are one graph, and so are 2**2 leaves of a later one
_GROUPS = 8  # into how many the chains are divided for the later doublings
_LEAST_GROUP = {"cpu": 256}  # chains of a group; below this a call costs more than its work


class NUTSInfo(NamedTuple):
    """:class:`~pyrogen.kernels.Info` and ``tree_depth [chains]``, the number of doublings."""

    accept_prob: Tensor
    diverging: Tensor
    potential_energy: Tensor
    energy: Tensor
    num_steps: Tensor
    step_size: Tensor
    tree_depth: Tensor


class NUTS(AdaptiveKernel):
    r"""The no-U-turn sampler: Hamiltonian Monte Carlo that finds the length of each trajectory.

    From the present state and a momentum :math:`z \sim N(0, I)` a trajectory of leapfrog steps
    doubles, each time forwards or backwards at random, until it turns back on itself: with
    :math:`\rho` the sum of the momenta of its states, until

    .. math:: z_\text{first} \cdot \rho \le 0 \quad\text{or}\quad z_\text{last} \cdot \rho \le 0

    for the whole, for one of the sub-trees it is built of, or across the border of two. The new
    state is drawn from the trajectory in proportion to :math:`e^{-H}`, with a preference for the
    last doubling. A step whose energy exceeds the initial one by more than 1000 ends it, too: a
    divergence.

    All chains double together, so that a leapfrog step of every chain is one operation. Chains
    whose trajectories are complete wait for the others: the few that go on are gathered into
    groups, which cost less than all.

    Args:
        model: a Pyro model of static structure.
        step_size: to begin with.
        max_tree_depth: the most doublings: up to ``2**max_tree_depth - 1`` leapfrog steps.
        mass_matrix: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: what the step size is adapted to: the mean, over the states of a
            trajectory, of the probability to accept each against the initial state.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

    Raises:
        ValueError: for an argument out of its range.

    References:
        Hoffman, Gelman, *The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian
        Monte Carlo*, JMLR 2014 (arXiv:1111.4246). Betancourt, *A Conceptual Introduction to
        Hamiltonian Monte Carlo*, 2017 (arXiv:1701.02434). Phan, Pradhan, Jankowiak, *Composable
        Effects for Flexible and Accelerated Probabilistic Programming in NumPyro*, 2019
        (arXiv:1912.11554): many chains at once.

    Example:
        >>> from pyrogen.kernels import MCMC
        >>> def energy(x):
        ...     return 0.5 * x.square().sum(-1)
        >>> kernel = NUTS(energy=energy, event_shape=(2,), compile=False)
        >>> mcmc = MCMC(kernel, 20, warmup_steps=20, num_chains=50, disable_progbar=True)
        >>> mcmc.run()
        >>> bool((mcmc.info["num_steps"] < 2 ** mcmc.info["tree_depth"]).all())
        True
    """

    regroups_chains = True

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = 0.5,
        max_tree_depth: int = 10,
        mass_matrix: MassMatrix = "diagonal",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.8,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(
            model, step_size, mass_matrix, adapt_step_size, target_accept_prob, **source
        )
        self.max_tree_depth = whole("max_tree_depth", max_tree_depth, 1)

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> HMCState:
        """The potential energy and its gradient at ``position``."""
        return HMCState(position, *potential.value_and_grad(position))

    def step(
        self, potential: Potential, state: HMCState, tuning: Tuning
    ) -> tuple[HMCState, NUTSInfo]:
        """All ``max_tree_depth`` doublings, whether or not a chain needs them."""
        trees = self._doublings(potential, state, tuning, self.max_tree_depth)
        return self._finish(trees, tuning)

    def transition(
        self, run: Runner, state: HMCState, tuning: Tuning, iteration: int
    ) -> tuple[HMCState, NUTSInfo]:
        """As many doublings as each chain needs, for groups of those that still need one."""
        trees = run(self._begin, state, tuning)
        for depth in range(_FUSED, self.max_tree_depth):
            growing = trees.growing.nonzero().flatten()
            if len(growing) == 0:
                break
            for chains in growing.split(_group_size(trees)):
                trees = self._double(run, trees, chains, tuning, depth)
        result: tuple[HMCState, NUTSInfo] = run.plain(self._finish, trees, tuning)
        return result

    def probe(self, run: Runner, state: HMCState, tuning: Tuning) -> Tensor:
        """That of one leapfrog step."""
        accept_prob: Tensor = unpack(run.once(self._one, state, tuning)).accept_sum
        return accept_prob

    def _begin(self, potential: Potential, state: HMCState, tuning: Tuning) -> Packed:
        return self._doublings(potential, state, tuning, min(_FUSED, self.max_tree_depth))

    def _one(self, potential: Potential, state: HMCState, tuning: Tuning) -> Packed:
        return self._doublings(potential, state, tuning, 1)

    def _doublings(
        self, potential: Potential, state: HMCState, tuning: Tuning, doublings: int
    ) -> Packed:
        """A trajectory from its beginning."""
        tree = sapling(state, torch.randn_like(state.position))
        for depth in range(doublings):
            tree = _doubled(tree, grow(potential, tree, tuning, _uniform(2**depth - 1, tree)))
        return pack(tree)

    def _double(
        self, run: Runner, trees: Packed, chains: Tensor, tuning: Tuning, depth: int
    ) -> Packed:
        """Doubles the trajectories of some chains."""
        tree = take(trees, chains, _group_size(trees))
        return put(trees, chains, run(self._extend, tree, self._grow(run, tree, tuning, depth)))

    def _grow(self, run: Runner, tree: Packed, tuning: Tuning, depth: int) -> Packed:
        """The ``2**depth`` states that follow; the first of them, if no chain needs the rest."""
        if depth == _FUSED:
            part: Packed = run(self._branch, tree, tuning)
            return part
        first = self._grow(run, tree, tuning, depth - 1)
        if not first.growing.any():
            return first
        joined: Packed = run(self._join, first, self._grow(run, first, tuning, depth - 1))
        return joined

    def _branch(self, potential: Potential, packed: Packed, tuning: Tuning) -> Packed:
        tree = unpack(packed)
        return pack(grow(potential, tree, tuning, _uniform(2**_FUSED - 1, tree)))

    def _join(self, potential: Potential, first: Packed, second: Packed) -> Packed:
        return pack(join(unpack(first), unpack(second), torch.rand_like(first.numbers[0])))

    def _extend(self, potential: Potential, tree: Packed, part: Packed) -> Packed:
        return pack(_doubled(unpack(tree), unpack(part)))

    def _finish(self, trees: Packed, tuning: Tuning) -> tuple[HMCState, NUTSInfo]:
        tree = unpack(trees)
        info = NUTSInfo(
            accept_prob=tree.accept_sum / tree.num_leaves,
            diverging=tree.diverging > 0,
            potential_energy=tree.proposal.potential_energy,
            energy=tree.energy,
            num_steps=tree.num_leaves,
            step_size=tuning.step_size,
            tree_depth=_depth(tree.num_leaves, self.max_tree_depth),
        )
        return tree.proposal, info


def _doubled(tree: Tree, part: Tree) -> Tree:
    """With the neighbour ``part``, and turned round or not for the next doubling."""
    choice, direction = _uniform(2, tree)
    return turn(extend(tree, part, choice), direction < 0.5)


def _depth(num_leaves: Tensor, most: int) -> Tensor:
    """How many doublings began: the ``j``-th has the leaf number ``2**(j - 1)``."""
    depth = torch.zeros_like(num_leaves)
    for j in range(most):
        depth = depth + (num_leaves >= 2**j).to(depth.dtype)
    return depth


def _uniform(count: int, tree: Tree) -> Tensor:
    like = tree.energy
    return torch.rand((count, *like.shape), dtype=like.dtype, device=like.device)


def _group_size(trees: Packed) -> int:
    """How many chains double together: a fraction, but enough to be worth the calls."""
    num_chains = len(trees.growing)
    least = _LEAST_GROUP.get(trees.growing.device.type, num_chains)
    return min(num_chains, max(least, -(-num_chains // _GROUPS)))
