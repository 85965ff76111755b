r"""Random-walk Metropolis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptation import WarmUp
from pyrogen.kernels._kernel import Kernel, standard_tuning
from pyrogen.kernels._metropolis import decide, select
from pyrogen.kernels._options import MASS_MATRICES, between_0_and_1, one_of, positive
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._target import Target
from pyrogen.kernels._tuning import Info, Tuning, from_momentum

__all__ = ["RandomWalk", "RandomWalkState"]


class RandomWalkState(NamedTuple):
    """Position ``[chains, size]`` and its potential energy ``[chains]``."""

    position: Tensor
    potential_energy: Tensor


class RandomWalk(Kernel):
    r"""Random-walk Metropolis: a Gaussian proposal, and no gradient.

    .. math::
        x' = x + \epsilon S z, \quad z \sim N(0, I), \qquad
        \text{accepted with probability } \min(1, e^{U(x) - U(x')}),

    where :math:`S` is a square root of the proposal's covariance. Warm-up adapts :math:`\epsilon`
    and, from the spread of all chains, :math:`S`.

    Args:
        model: a Pyro model of static structure.
        potential_fn: see :class:`Kernel`.
        energy: see :class:`Kernel`.
        event_shape: see :class:`Kernel`.
        step_size: standard deviation of the proposal, to begin with.
        mass_matrix: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: mean acceptance probability that it is adapted to.
        compile: see :class:`Kernel`.

    References:
        Metropolis, Rosenbluth, Rosenbluth, Teller, Teller, *Equation of State Calculations by Fast
        Computing Machines*, 1953, doi:10.1063/1.1699114. Roberts, Gelman, Gilks, *Weak convergence
        and optimal scaling of random walk Metropolis algorithms*, 1997,
        doi:10.1214/aoap/1034625254 (the acceptance of 0.234).

    Example:
        >>> from pyrogen.kernels import MCMC, RandomWalk
        >>> kernel = RandomWalk(energy=lambda x: x.abs().sum(-1), event_shape=(1,), compile=False)
        >>> mcmc = MCMC(kernel, num_samples=10, num_chains=100, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.info["accept_prob"].shape
        torch.Size([100, 10])
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        energy: Callable[[Tensor], Tensor] | None = None,
        event_shape: Sequence[int] | None = None,
        step_size: float = 1.0,
        mass_matrix: Literal["diagonal", "dense"] | None = "diagonal",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.234,
        compile: bool = True,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            energy=energy,
            event_shape=event_shape,
            compile=compile,
        )
        self.step_size = positive("step_size", step_size)
        self.mass_matrix = one_of("mass_matrix", mass_matrix, MASS_MATRICES)
        target = between_0_and_1("target_accept_prob", target_accept_prob)
        self._warm_up = WarmUp(target, adapt_step_size, mass_matrix is not None)

    def initial_tuning(self, target: Target) -> Tuning:
        """The step size given, and the identity for a mass matrix."""
        return standard_tuning(target, self.step_size, self.mass_matrix == "dense")

    def warm_up(self) -> WarmUp:
        """Step size and mass matrix, from all chains."""
        return self._warm_up

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> RandomWalkState:
        """Positions with their energy."""
        return RandomWalkState(position, potential.value(position))

    def step(
        self, potential: Potential, state: RandomWalkState, tuning: Tuning
    ) -> tuple[RandomWalkState, Info]:
        """One transition of every chain."""
        noise = torch.randn_like(state.position)
        position = state.position + tuning.step_size * from_momentum(tuning.scale, noise)
        proposed = RandomWalkState(position, potential.value(position))
        change = proposed.potential_energy - state.potential_energy
        accepted, accept_prob, diverging = decide(change, position)
        state = select(accepted, proposed, state)
        return state, Info(
            accept_prob=accept_prob,
            diverging=diverging,
            potential_energy=state.potential_energy,
            energy=state.potential_energy,
            num_steps=torch.ones_like(tuning.step_size),
            step_size=tuning.step_size,
        )
