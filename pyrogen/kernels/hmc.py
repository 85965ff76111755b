r"""Hamiltonian Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptive import AdaptiveKernel, MassMatrix
from pyrogen.kernels._kernel import Source
from pyrogen.kernels._metropolis import decide, select
from pyrogen.kernels._options import one_of, whole
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._tuning import Tuning, from_momentum, to_momentum

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HMC", "HMCInfo", "HMCState", "Phase", "leapfrog"]

_UNROLLED = 16
_CHUNK = 4


class HMCState(NamedTuple):
    """Position ``[chains, size]``, its potential energy ``[chains]`` and gradient."""

    position: Tensor
    potential_energy: Tensor
    gradient: Tensor


class Phase(NamedTuple):
    """A point of phase space: a state and its standardised momentum ``z [chains, size]``."""

    position: Tensor
    potential_energy: Tensor
    gradient: Tensor
    momentum: Tensor


class HMCInfo(NamedTuple):
    """:class:`~pyrogen.kernels.Info` and the gradient of ChEES in the log trajectory length."""

    accept_prob: Tensor
    diverging: Tensor
    potential_energy: Tensor
    energy: Tensor
    num_steps: Tensor
    step_size: Tensor
    trajectory_gradient: Tensor


def leapfrog(
    potential: Potential, phase: Phase, step_size: Tensor, scale: Tensor, num_steps: int
) -> Phase:
    """``num_steps`` leapfrog steps, in the coordinates in which the mass matrix is the identity.

    Args:
        potential: gives the force.
        phase: where to begin.
        step_size: ``[]`` or ``[chains, 1]``; negative to go back.
        scale: square root of the inverse mass matrix.
        num_steps: at least 1.
    """
    position, energy, gradient, momentum = phase
    momentum = momentum - 0.5 * step_size * to_momentum(scale, gradient)
    for i in range(num_steps):
        position = position + step_size * from_momentum(scale, momentum)
        energy, gradient = potential.value_and_grad(position)
        kick = 1.0 if i < num_steps - 1 else 0.5
        momentum = momentum - kick * step_size * to_momentum(scale, gradient)
    return Phase(position, energy, gradient, momentum)


class HMC(AdaptiveKernel):
    r"""Hamiltonian Monte Carlo: many chains, each with its own momentum and its own acceptance.

    With :math:`H(x, z) = U(x) + \tfrac12 \lVert z \rVert^2` and a square root :math:`S` of the
    inverse mass matrix, a leapfrog step of size :math:`\epsilon` is

    .. math::
        z \leftarrow z - \tfrac\epsilon2 S^\top \nabla U(x), \quad
        x \leftarrow x + \epsilon S z, \quad
        z \leftarrow z - \tfrac\epsilon2 S^\top \nabla U(x).

    A transition draws :math:`z \sim N(0, I)`, makes :math:`L` such steps and accepts the end with
    probability :math:`\min(1, e^{-\Delta H})`. What decides how far it goes:

    * ``"jittered"``: :math:`L` is fixed and each chain draws its own step size from
      :math:`\epsilon\,[1 - j, 1 + j]` at every transition, so that no chain resonates with a period
      of the target;
    * ``"fixed"``: the same without jitter;
    * ``"chees"``: :math:`L = \lceil u T / \epsilon \rceil` with :math:`T` adapted by the ChEES
      criterion and :math:`u` from a Halton sequence, one for all chains. Wants many chains.

    Args:
        model: a Pyro model of static structure.
        step_size: to begin with.
        num_steps: leapfrog steps of a transition; ``"chees"`` begins with one and finds its own.
        trajectory: ``"jittered"``, ``"fixed"`` or ``"chees"``.
        jitter: half-width of the step size's relative jitter, in [0, 1).
        mass_matrix: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: mean acceptance probability that the step size is adapted to.
        max_num_steps: the most steps that ``"chees"`` may take.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

    Raises:
        ValueError: for an argument out of its range.

    References:
        Neal, *MCMC using Hamiltonian dynamics*, 2011 (arXiv:1206.1901). Hoffman, Radul, Sountsov,
        *An Adaptive-MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo*, AISTATS
        2021.

    Example:
        >>> from pyrogen.kernels import HMC, MCMC
        >>> energy = lambda x: 0.5 * x.square().sum(-1)
        >>> kernel = HMC(energy=energy, event_shape=(2,), compile=False)
        >>> mcmc = MCMC(kernel, 20, warmup_steps=20, num_chains=50, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([50, 20, 2])
    """

    unrecorded = ("trajectory_gradient",)

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = 0.5,
        num_steps: int = 8,
        trajectory: Literal["jittered", "fixed", "chees"] = "jittered",
        jitter: float = 0.5,
        mass_matrix: MassMatrix = "diagonal",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.8,
        max_num_steps: int = 1000,
        **source: Unpack[Source],
    ) -> None:
        adaptive = trajectory == "chees"
        super().__init__(
            model, step_size, mass_matrix, adapt_step_size, target_accept_prob, adaptive, **source
        )
        self.num_steps = whole("num_steps", num_steps, 1)
        self.trajectory = one_of("trajectory", trajectory, ("jittered", "fixed", "chees"))
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter: expected a number in [0, 1), got {jitter!r}")
        self.jitter = jitter if trajectory == "jittered" else 0.0
        self.max_num_steps = whole("max_num_steps", max_num_steps, 1)

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> HMCState:
        """Positions with their energy and gradient."""
        return HMCState(position, *potential.value_and_grad(position))

    def step(
        self, potential: Potential, state: HMCState, tuning: Tuning
    ) -> tuple[HMCState, HMCInfo]:
        """One transition of every chain."""
        momentum = torch.randn_like(state.position)
        step_size = self._jittered(tuning.step_size, state.position)
        start = Phase(*state, momentum)
        end = leapfrog(potential, start, step_size, tuning.scale, self.num_steps)
        num_steps = torch.full_like(tuning.step_size, self.num_steps)
        return self._finish(start, end, tuning, num_steps)

    def transition(
        self, run: Runner, state: HMCState, tuning: Tuning, iteration: int
    ) -> tuple[HMCState, HMCInfo]:
        """One graph, or a chain of them where the number of steps is large or varies."""
        if self.trajectory != "chees" and self.num_steps <= _UNROLLED:
            result: tuple[HMCState, HMCInfo] = run(self.step, state, tuning)
            return result
        if self.trajectory == "chees":
            return self._steps(run, state, tuning, self._count(tuning, iteration))
        return self._steps(run, state, tuning, self.num_steps)

    def probe(self, run: Runner, state: HMCState, tuning: Tuning) -> Tensor:
        """Acceptance probabilities of a trial step."""
        if self.trajectory == "chees":
            return self._steps(run, state, tuning, 1)[1].accept_prob
        return super().probe(run, state, tuning)

    def _steps(
        self, run: Runner, state: HMCState, tuning: Tuning, num_steps: int
    ) -> tuple[HMCState, HMCInfo]:
        """A transition of any number of steps, as a chain of graphs."""
        start, step_size = run.plain(self._begin, state, tuning)
        end = start
        whole, rest = divmod(num_steps, _CHUNK)
        for _ in range(whole):
            end = run(self._chunk, end, step_size, tuning.scale)
        for _ in range(rest):
            end = run(self._one, end, step_size, tuning.scale)
        count = torch.full_like(tuning.step_size, num_steps)
        result: tuple[HMCState, HMCInfo] = run.plain(self._finish, start, end, tuning, count)
        return result

    def _begin(self, state: HMCState, tuning: Tuning) -> tuple[Phase, Tensor]:
        step_size = self._jittered(tuning.step_size, state.position)
        return Phase(*state, torch.randn_like(state.position)), step_size

    def _chunk(self, potential: Potential, phase: Phase, step: Tensor, scale: Tensor) -> Phase:
        return leapfrog(potential, phase, step, scale, _CHUNK)

    def _one(self, potential: Potential, phase: Phase, step: Tensor, scale: Tensor) -> Phase:
        return leapfrog(potential, phase, step, scale, 1)

    def _finish(
        self, start: Phase, end: Phase, tuning: Tuning, num_steps: Tensor
    ) -> tuple[HMCState, HMCInfo]:
        before = start.potential_energy + 0.5 * start.momentum.square().sum(-1)
        after = end.potential_energy + 0.5 * end.momentum.square().sum(-1)
        accepted, accept_prob, diverging = decide(after - before, end.position, end.gradient)
        state = select(accepted, HMCState(*end[:3]), HMCState(*start[:3]))
        info = HMCInfo(
            accept_prob=accept_prob,
            diverging=diverging,
            potential_energy=state.potential_energy,
            energy=torch.where(accepted, after, before),
            num_steps=num_steps,
            step_size=tuning.step_size,
            trajectory_gradient=self._trajectory_gradient(
                start, end, tuning, num_steps, accept_prob
            ),
        )
        return state, info

    def _trajectory_gradient(
        self, start: Phase, end: Phase, tuning: Tuning, num_steps: Tensor, accept_prob: Tensor
    ) -> Tensor:
        """The derivative of ChEES in the log trajectory length, averaged over accepted ends."""
        if self.trajectory != "chees":
            return torch.zeros_like(tuning.step_size)
        weight = accept_prob / accept_prob.sum().clamp(min=1e-6)
        safe = torch.where(weight.unsqueeze(-1) > 0, end.position, start.position)
        first = _standardized(tuning.scale, start.position - start.position.mean(0))
        last = _standardized(tuning.scale, safe - (weight.unsqueeze(-1) * safe).sum(0))
        change = last.square().sum(-1) - first.square().sum(-1)
        speed = torch.where(weight > 0, (last * end.momentum).sum(-1), 0.0)
        return num_steps * tuning.step_size * (weight * change * speed).sum()

    def _count(self, tuning: Tuning, iteration: int) -> int:
        length, step_size = torch.stack([tuning.trajectory_length, tuning.step_size]).tolist()
        count = math.ceil(2 * _halton(iteration + 1) * length / step_size)
        return int(min(max(count, 1), self.max_num_steps))

    def _jittered(self, step_size: Tensor, position: Tensor) -> Tensor:
        if self.jitter == 0.0:
            return step_size
        uniform = torch.rand_like(position[:, :1])
        return step_size * (1 + self.jitter * (2 * uniform - 1))


def _standardized(scale: Tensor, vector: Tensor) -> Tensor:
    """``S^{-1} v``: a vector in the coordinates in which the mass matrix is the identity."""
    if scale.dim() == 1:
        return vector / scale
    solved: Tensor = torch.linalg.solve_triangular(scale, vector.T, upper=False)
    return solved.T


def _halton(index: int) -> float:
    """The van der Corput sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
    result, fraction = 0.0, 0.5
    while index:
        result += fraction * (index & 1)
        index, fraction = index >> 1, fraction / 2
    return result
