r"""Random-walk Metropolis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptive import AdaptiveKernel, MassMatrix
from pyrogen.kernels._kernel import Source
from pyrogen.kernels._metropolis import decide, select
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._tuning import Info, Tuning, from_momentum

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RandomWalk", "RandomWalkState"]


class RandomWalkState(NamedTuple):
    """Position ``[chains, size]`` and its potential energy ``[chains]``."""

    position: Tensor
    potential_energy: Tensor


class RandomWalk(AdaptiveKernel):
    r"""Random-walk Metropolis: a Gaussian proposal, and no gradient.

    .. math::
        x' = x + \epsilon S z, \quad z \sim N(0, I), \qquad
        \text{accepted with probability } \min(1, e^{U(x) - U(x')}),

    where :math:`S` is a square root of the proposal's covariance. Warm-up adapts :math:`\epsilon`
    and, from the spread of all chains, :math:`S`.

    Args:
        model: a Pyro model of static structure.
        step_size: standard deviation of the proposal, to begin with.
        mass_matrix: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: mean acceptance probability that it is adapted to.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

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
        step_size: float = 1.0,
        mass_matrix: MassMatrix = "diagonal",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.234,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(
            model, step_size, mass_matrix, adapt_step_size, target_accept_prob, **source
        )

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
