r"""Stochastic gradient Langevin dynamics.

With an unbiased estimate :math:`\hat g` of :math:`\nabla U`, from a fresh minibatch at every step,

.. math::
    x_{t+1} = x_t - \tfrac{h_t}2 G\, \hat g(x_t) + \sqrt{h_t G}\, z_t, \qquad z_t \sim N(0, I).

Nothing corrects the error of a finite step, nor the noise of the gradient. On a Gaussian of
precision :math:`a`, a gradient whose noise has the variance :math:`s^2` leaves (with :math:`G = 1`)

.. math::
    \operatorname{Var}[x] = \frac1a \cdot \frac{1 + h s^2 / 4}{1 - h a / 4}

instead of :math:`1/a`. Both errors are of order :math:`h`; with minibatches :math:`s^2` is usually
much the larger: it grows as :math:`N^2/n` where :math:`a` grows as :math:`N`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptation import WarmUp
from pyrogen.kernels._chains import Chains
from pyrogen.kernels._kernel import Kernel, Source, standard_tuning
from pyrogen.kernels._metropolis import finite_rows, select
from pyrogen.kernels._options import between_0_and_1, positive
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._schedule import Schedule, checked_step_size, step_size_at
from pyrogen.kernels._target import Target
from pyrogen.kernels._tuning import Tuning
from pyrogen.kernels.langevin import LangevinState

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGLD", "SGLDInfo"]


class SGLDInfo(NamedTuple):
    """:class:`~pyrogen.kernels.Info` and the mean squared gradient ``[size]`` of the step."""

    accept_prob: Tensor
    diverging: Tensor
    potential_energy: Tensor
    energy: Tensor
    num_steps: Tensor
    step_size: Tensor
    squared_gradient: Tensor


class SGLD(Kernel):
    r"""Stochastic gradient Langevin dynamics, for models whose plates draw a minibatch.

    The update is :math:`x - \tfrac h2 G \hat g + \sqrt{h G} z`, see the top of this module. Every
    step takes a fresh index set from each ``pyro.plate(..., subsample_size=)``, and every chain its
    own, so that the chains are not moved by the same noise and R-hat and Monte Carlo errors mean
    what they say.

    With ``preconditioned``, :math:`G = 1 / (\lambda + \sqrt V)` where :math:`V` is RMSprop's
    running mean of the squared gradient (Li et al. 2016), over all chains. It is learned in warm-up
    and then held: the original, which goes on learning, leaves out the correction for a :math:`G`
    that depends on the position, and is biased by it. Here :math:`V` is that of the gradient of the
    whole potential, so step sizes are those of the paper times the number of data.

    When not to use it. The draws are biased, however many there are: by the step size and by the
    noise of the gradient. Look at the bias with :func:`pyrogen.diagnostics.langevin_bias`. If the
    data fit into memory, HMC or MALA are exact and usually quicker, since a small step makes draws
    that differ little. If intervals are to be trusted, or the posterior has several modes, strong
    correlations or heavy tails, do not use it. It is for data that are too many for a pass per
    step, where a posterior mean is wanted and some error in the spread is bearable.

    ``info.accept_prob`` is 1: there is no test. A step to where energy or gradient are not finite
    is not made, and counts as a divergence. The energies in ``info`` are estimates of one
    minibatch.

    Args:
        model: a Pyro model of static structure.
        step_size: :math:`h`: a number, or a function of the count of steps since the start of
            warm-up, for instance :class:`PolynomialDecay`.
        preconditioned: learn :math:`G` in warm-up; without, it is 1.
        decay: of the running mean of the squared gradient, in (0, 1).
        floor: :math:`\lambda`, which bounds :math:`G`.
        **source: ``potential_fn``, or ``energy`` with ``event_shape``, instead of a model;
            ``compile``. See :class:`Kernel`.

    Raises:
        ValueError: for an argument out of its range.

    References:
        Welling, Teh, *Bayesian Learning via Stochastic Gradient Langevin Dynamics*, ICML 2011. Li,
        Chen, Carlson, Carin, *Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural
        Networks*, AAAI 2016 (arXiv:1512.07666). Vollmer, Zygalakis, Teh, *Exploration of the (Non-)
        Asymptotic Bias and Variance of Stochastic Gradient Langevin Dynamics*, 2016
        (arXiv:1501.00438).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrogen.kernels import MCMC
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=10, dim=-1) as index:
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])
        >>> kernel = SGLD(model, step_size=1e-3, compile=False)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, num_chains=5, disable_progbar=True)
        >>> mcmc.run(torch.randn(1000))
        >>> mcmc.get_samples(group_by_chain=True)["mu"].shape
        torch.Size([5, 20])
    """

    needs_exact_potential = False
    takes_gradient_ahead = True
    unrecorded = ("squared_gradient",)

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: Schedule = 1e-3,
        preconditioned: bool = False,
        decay: float = 0.99,
        floor: float = 1e-5,
        **source: Unpack[Source],
    ) -> None:
        super().__init__(model, **source)
        self.step_size = checked_step_size(step_size)
        self.preconditioned = preconditioned
        rmsprop = RMSprop(between_0_and_1("decay", decay), positive("floor", floor))
        self._warm_up = rmsprop if preconditioned else None

    def initial_tuning(self, target: Target) -> Tuning:
        """The first step size, and no preconditioner."""
        tuning = standard_tuning(target, step_size_at(self.step_size, 0))
        if self.preconditioned:  # the first step stays where it is, and learns
            return tuning._replace(scale=torch.zeros_like(tuning.scale))
        return tuning

    def warm_up(self) -> WarmUp | None:
        """The preconditioner, from all chains."""
        return self._warm_up

    def init(self, potential: Potential, position: Tensor, tuning: Tuning) -> LangevinState:
        """Positions with the energy and gradient of a minibatch."""
        return LangevinState(position, *potential.value_and_grad(position))

    def step(
        self, potential: Potential, state: LangevinState, tuning: Tuning
    ) -> tuple[LangevinState, SGLDInfo]:
        """One step of every chain."""
        step_size, scale = tuning.step_size, tuning.scale
        noise = step_size.sqrt() * scale * torch.randn_like(state.position)
        position = state.position - 0.5 * step_size * scale.square() * state.gradient + noise
        energy, gradient = potential.value_and_grad(position)
        finite = finite_rows(position, energy, gradient)
        new = select(finite, LangevinState(position, energy, gradient), state)
        info = SGLDInfo(
            accept_prob=finite.to(position.dtype),
            diverging=~finite,
            potential_energy=new.potential_energy,
            energy=new.potential_energy,
            num_steps=torch.ones_like(step_size),
            step_size=step_size,
            squared_gradient=state.gradient.square().mean(0),
        )
        return new, info

    def transition(
        self, run: Runner, state: LangevinState, tuning: Tuning, iteration: int
    ) -> tuple[LangevinState, SGLDInfo]:
        """One step, of the size that the schedule gives."""
        if callable(self.step_size):
            size = tuning.step_size.new_tensor(step_size_at(self.step_size, iteration))
            tuning = tuning._replace(step_size=size)
        result: tuple[LangevinState, SGLDInfo] = run(self.step, state, tuning)
        return result

    def start(self, num_chains: int, warmup_steps: int, *args: Any, **kwargs: Any) -> Chains:
        """As every kernel, but a preconditioner needs warm-up."""
        if self.preconditioned and warmup_steps == 0:
            raise ValueError(
                "warmup_steps: expected at least 1 to learn the preconditioner, got 0; or pass "
                "preconditioned=False"
            )
        return super().start(num_chains, warmup_steps, *args, **kwargs)


class RMSpropState(NamedTuple):
    """How many gradients were seen, and their running mean square ``[size]``."""

    seen: Tensor
    mean_square: Tensor


class RMSprop(WarmUp):
    """Sets ``tuning.scale`` to the square root of RMSprop's preconditioner."""

    def __init__(self, decay: float, floor: float) -> None:
        super().__init__(target_accept_prob=1.0, step_size=False, mass_matrix=False)
        self._decay = decay
        self._floor = floor

    def init(self, tuning: Any, position: Tensor) -> Any:
        """Nothing seen yet."""
        return RMSpropState(torch.zeros_like(tuning.step_size), torch.zeros_like(position[0]))

    def update(self, warm: Any, tuning: Any, position: Tensor, info: Any) -> tuple[Any, Any]:
        """Takes in the gradients of a step."""
        seen = warm.seen + 1
        mean_square = torch.lerp(info.squared_gradient, warm.mean_square, self._decay)
        unbiased = mean_square / (1 - self._decay**seen)
        scale = (self._floor + unbiased.sqrt()).rsqrt()
        return RMSpropState(seen, mean_square), tuning._replace(scale=scale)

    def finish(self, warm: Any, tuning: Any) -> Any:
        """The preconditioner as it stands."""
        return tuning
