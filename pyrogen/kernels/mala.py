r"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrogen.kernels._adaptive import AdaptiveKernel, MassMatrix
from pyrogen.kernels._kernel import Source
from pyrogen.kernels._metropolis import decide, select
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._tuning import Info, Tuning, from_momentum, to_momentum
from pyrogen.kernels.langevin import LangevinState

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MALA"]


class MALA(AdaptiveKernel):
    r"""Metropolis-adjusted Langevin algorithm, preconditioned.

    With :math:`S` a square root of the preconditioner (diagonal by default) and
    :math:`\mu(x) = x - \tfrac{\epsilon^2}2 S S^\top \nabla U(x)`,

    .. math::
        x' = \mu(x) + \epsilon S z, \quad z \sim N(0, I), \qquad
        \text{accepted with probability }
        \min\Bigl(1, \frac{e^{-U(x')}\, N(x; \mu(x'), \epsilon^2 S S^\top)}
                          {e^{-U(x)}\, N(x'; \mu(x), \epsilon^2 S S^\top)}\Bigr).

    The step size :math:`\epsilon` is a length: in the notation of :class:`Langevin`,
    :math:`h = \epsilon^2`. It is one leapfrog step of HMC.

    Args:
        model: a Pyro model of static structure.
        step_size: to begin with.
        mass_matrix: the preconditioner: ``"diagonal"``, ``"dense"``, or ``None`` for the identity.
        adapt_step_size: whether warm-up adapts the step size.
        target_accept_prob: mean acceptance probability that it is adapted to.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

    References:
        Besag, *Comments on "Representations of knowledge in complex systems"*, 1994. Roberts,
        Rosenthal, *Optimal scaling of discrete approximations to Langevin diffusions*, 1998,
        doi:10.1111/1467-9868.00123 (the acceptance of 0.574).

    Example:
        >>> from pyrogen.kernels import MALA, MCMC
        >>> energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        >>> kernel = MALA(energy=lambda x: x.square().sum(-1) + energy(x), event_shape=(2,),
        ...     compile=False)
        >>> mcmc = MCMC(kernel, num_samples=10, num_chains=64, disable_progbar=True,
        ...     initial_params={"x": torch.zeros(64, 2)})
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([64, 10, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = 0.5,
        mass_matrix: MassMatrix = "diagonal",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.574,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(
            model, step_size, mass_matrix, adapt_step_size, target_accept_prob, **source
        )

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> LangevinState:
        """Positions with their energy and gradient."""
        return LangevinState(position, *potential.value_and_grad(position))

    def step(
        self, potential: Potential, state: LangevinState, tuning: Tuning
    ) -> tuple[LangevinState, Info]:
        """One transition of every chain."""
        size, scale = tuning.step_size, tuning.scale
        noise = torch.randn_like(state.position)
        move = noise - 0.5 * size * to_momentum(scale, state.gradient)
        position = state.position + size * from_momentum(scale, move)
        proposed = LangevinState(position, *potential.value_and_grad(position))
        # The noise that would lead back, whose density is that of the reverse proposal.
        back = -move + 0.5 * size * to_momentum(scale, proposed.gradient)
        change = proposed.potential_energy - state.potential_energy
        change = change + 0.5 * (back.square().sum(-1) - noise.square().sum(-1))
        accepted, accept_prob, diverging = decide(change, position, proposed.gradient)
        state = select(accepted, proposed, state)
        return state, Info(
            accept_prob=accept_prob,
            diverging=diverging,
            potential_energy=state.potential_energy,
            energy=state.potential_energy,
            num_steps=torch.ones_like(size),
            step_size=size,
        )
