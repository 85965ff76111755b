r"""Stochastic gradient Hamiltonian Monte Carlo.

Langevin dynamics with momentum, driven by an unbiased estimate :math:`\hat g` of
:math:`\nabla U` from a fresh minibatch at every step. With unit mass,

.. math::
    x_{t+1} &= x_t + \epsilon\, r_t, \\
    r_{t+1} &= (1 - \epsilon C)\, r_t - \epsilon\, \hat g(x_{t+1})
        + \sqrt{2 \epsilon (C - \hat B)}\; z_t, \qquad \hat B = \tfrac{\epsilon}2 \hat V.

The friction :math:`C` takes out the energy that the noise of the gradient puts in; that noise, of
variance :math:`V` in each coordinate, makes up the part :math:`\hat B` of what the friction needs,
if :math:`\hat V = V`. What is left is the error of the finite step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._kernel import Kernel, Source
from pyrogen.kernels._metropolis import finite_rows
from pyrogen.kernels._options import positive
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._schedule import Schedule, checked_step_size, step_size_at
from pyrogen.kernels._target import Target
from pyrogen.kernels._tuning import Info

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGHMC", "SGHMCState", "SGHMCTuning"]


class SGHMCState(NamedTuple):
    """Position and momentum ``[chains, size]``, and the energy of one minibatch ``[chains]``."""

    position: Tensor
    momentum: Tensor
    potential_energy: Tensor


class SGHMCTuning(NamedTuple):
    """Step size, friction and variance of the gradient's noise, each ``[]``."""

    step_size: Tensor
    friction: Tensor
    noise_estimate: Tensor


class SGHMC(Kernel):
    r"""Stochastic gradient Hamiltonian Monte Carlo, for models whose plates draw a minibatch.

    The update is at the top of this module. Every step takes a fresh index set from each
    ``pyro.plate(..., subsample_size=)``, and every chain its own. The momentum lasts from step to
    step, so draws move further than those of :class:`SGLD` for the same number of gradients; one
    draw is one step, use ``thinning`` to keep fewer.

    When not to use it. There is no Metropolis test, so the draws are biased by the step size, and
    by the noise of the gradient as far as ``noise_estimate`` is wrong; the noise is taken to be the
    same everywhere and in all coordinates. Look at the bias with
    :func:`pyrogen.diagnostics.langevin_bias`. If the data fit into memory, HMC is exact. If
    intervals are to be trusted, or the scales of the parameters differ much, do not use it.

    ``info.accept_prob`` is 1: there is no test. A step to where energy or gradient are not finite
    is not made; the chain turns round, and a divergence is counted. The energies in ``info`` are
    estimates of one minibatch.

    Args:
        model: a Pyro model of static structure.
        step_size: :math:`\epsilon`: a number, or a function of the count of steps since the start
            of warm-up, for instance :class:`PolynomialDecay`.
        friction: :math:`C`.
        noise_estimate: :math:`\hat V`, the variance of a minibatch gradient in each coordinate.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

    Raises:
        ValueError: for an argument out of its range, if :math:`\epsilon C > 1` or
            :math:`\tfrac\epsilon2 \hat V > C`.

    References:
        Chen, Fox, Guestrin, *Stochastic Gradient Hamiltonian Monte Carlo*, ICML 2014
        (arXiv:1402.4102).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrogen.kernels import MCMC
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=10, dim=-1) as index:
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])
        >>> kernel = SGHMC(model, step_size=1e-3, friction=100.0, compile=False)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, num_chains=5, disable_progbar=True)
        >>> mcmc.run(torch.randn(1000))
        >>> mcmc.get_samples(group_by_chain=True)["mu"].shape
        torch.Size([5, 20])
    """

    needs_exact_potential = False

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: Schedule = 1e-2,
        friction: float = 1.0,
        noise_estimate: float = 0.0,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(model, **source)
        self.step_size = checked_step_size(step_size)
        self.friction = positive("friction", friction)
        self.noise_estimate = noise_estimate and positive("noise_estimate", noise_estimate)
        self._step_size_at(0)

    def initial_tuning(self, target: Target) -> SGHMCTuning:
        """The numbers given."""
        numbers = self._step_size_at(0), self.friction, self.noise_estimate
        options: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
        return SGHMCTuning(*(torch.tensor(float(number), **options) for number in numbers))

    def init(self, potential: Potential, position: Tensor, tuning: SGHMCTuning) -> SGHMCState:
        """Positions with a new momentum and the energy of a minibatch."""
        energy, _ = potential.value_and_grad(position)
        return SGHMCState(position, torch.randn_like(position), energy)

    def step(
        self, potential: Potential, state: SGHMCState, tuning: SGHMCTuning
    ) -> tuple[SGHMCState, Info]:
        """One step of every chain."""
        step_size, friction, noise_estimate = tuning
        position = state.position + step_size * state.momentum
        energy, gradient = potential.value_and_grad(position)
        noise = (2 * step_size * (friction - 0.5 * step_size * noise_estimate)).sqrt()
        momentum = (1 - step_size * friction) * state.momentum - step_size * gradient
        momentum = momentum + noise * torch.randn_like(position)
        finite = finite_rows(position, energy, gradient)
        moved = finite.unsqueeze(-1)
        new = SGHMCState(
            torch.where(moved, position, state.position),
            torch.where(moved, momentum, -state.momentum),
            torch.where(finite, energy, state.potential_energy),
        )
        kinetic = 0.5 * new.momentum.square().sum(-1)
        info = Info(
            accept_prob=finite.to(position.dtype),
            diverging=~finite,
            potential_energy=new.potential_energy,
            energy=new.potential_energy + kinetic,
            num_steps=torch.ones_like(step_size),
            step_size=step_size,
        )
        return new, info

    def transition(
        self, run: Runner, state: SGHMCState, tuning: SGHMCTuning, iteration: int
    ) -> tuple[SGHMCState, Info]:
        """One step, of the size that the schedule gives."""
        if callable(self.step_size):
            size = tuning.step_size.new_tensor(self._step_size_at(iteration))
            tuning = tuning._replace(step_size=size)
        result: tuple[SGHMCState, Info] = run(self.step, state, tuning)
        return result

    def _step_size_at(self, iteration: int) -> float:
        step_size = step_size_at(self.step_size, iteration)
        if step_size * self.friction > 1:
            raise ValueError(
                "step_size, friction: expected a product of at most 1, got "
                f"{step_size:.3g} * {self.friction:.3g}; make the steps smaller"
            )
        if 0.5 * step_size * self.noise_estimate > self.friction:
            raise ValueError(
                "friction: expected at least step_size * noise_estimate / 2 = "
                f"{0.5 * step_size * self.noise_estimate:.3g}, got {self.friction:.3g}; make the "
                "steps smaller or the friction larger"
            )
        return step_size
