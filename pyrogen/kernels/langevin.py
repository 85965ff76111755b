r"""The unadjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._kernel import Kernel, Source, standard_tuning
from pyrogen.kernels._metropolis import MAX_ENERGY_CHANGE, finite_rows, select
from pyrogen.kernels._options import positive
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._target import Target
from pyrogen.kernels._tuning import Info, Tuning

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Langevin", "LangevinState"]


class LangevinState(NamedTuple):
    """Position ``[chains, size]``, its potential energy ``[chains]`` and gradient."""

    position: Tensor
    potential_energy: Tensor
    gradient: Tensor


class Langevin(Kernel):
    r"""Unadjusted Langevin algorithm (ULA): the Langevin diffusion in steps of :math:`h`.

    .. math:: x \leftarrow x - \tfrac h2 \nabla U(x) + \sqrt h\, z, \qquad z \sim N(0, I).

    Nothing is rejected, so what it samples is off by an amount that grows with :math:`h`: on
    :math:`N(0, 1)` its stationary variance is :math:`1 / (1 - h/4)`. :class:`MALA` is the same
    proposal with a Metropolis test. There is nothing to warm up; ``warmup_steps`` are burn-in.

    A step to where the energy or its gradient is not finite, or where the energy has grown by more
    than 1000, counts as a divergence; in the first case the chain stays where it was.

    Args:
        model: a Pyro model of static structure.
        step_size: the time step :math:`h`, a variance in the units of :math:`x^2`.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

    References:
        Roberts, Tweedie, *Exponential convergence of Langevin distributions and their discrete
        approximations*, 1996, doi:10.2307/3318418. Parisi, *Correlation functions and computer
        simulations*, 1981, doi:10.1016/0550-3213(81)90056-0.

    Example:
        >>> from pyrogen.kernels import Langevin, MCMC
        >>> kernel = Langevin(
        ...     energy=lambda x: 0.5 * x.square().sum(-1), event_shape=(1,), step_size=1.0,
        ...     compile=False,
        ... )
        >>> mcmc = MCMC(kernel, 100, warmup_steps=20, num_chains=1000, disable_progbar=True)
        >>> mcmc.run()
        >>> abs(float(mcmc.get_samples()["x"].var()) - 1 / (1 - 1.0 / 4)) < 0.05
        True
    """

    takes_gradient_ahead = True

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = 0.01,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(model, **source)
        self.step_size = positive("step_size", step_size)

    def initial_tuning(self, target: Target) -> Tuning:
        """The step size given."""
        return standard_tuning(target, self.step_size)

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> LangevinState:
        """Positions with their energy and gradient."""
        return LangevinState(position, *potential.value_and_grad(position))

    def step(
        self, potential: Potential, state: LangevinState, tuning: Tuning
    ) -> tuple[LangevinState, Info]:
        """One transition of every chain."""
        noise = torch.randn_like(state.position)
        size = tuning.step_size
        position = state.position - 0.5 * size * state.gradient + size.sqrt() * noise
        proposed = LangevinState(position, *potential.value_and_grad(position))
        finite = finite_rows(position, proposed.gradient, proposed.potential_energy)
        change = proposed.potential_energy - state.potential_energy
        state = select(finite, proposed, state)
        return state, Info(
            accept_prob=finite.to(position.dtype),
            diverging=~finite | (change > MAX_ENERGY_CHANGE),
            potential_energy=state.potential_energy,
            energy=state.potential_energy,
            num_steps=torch.ones_like(size),
            step_size=size,
        )
