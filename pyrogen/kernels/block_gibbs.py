r"""Gibbs sampling of one side of a bipartite model given the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pyrogen.distributions import Harmonium
from pyrogen.kernels._conditional import Conditional
from pyrogen.kernels._tuning import Info, Tuning

__all__ = ["BlockGibbs", "BlockGibbsState"]


class BlockGibbsState(NamedTuple):
    """Position ``[chains, size]``, and the other side's natural parameters given it."""

    position: Tensor
    other_natural: Tensor


class BlockGibbs(Conditional):
    r"""Block Gibbs sampling of a :class:`~pyrogen.distributions.Harmonium`.

    .. math:: b \sim p(b \mid a), \qquad a \sim p(a \mid b)

    Each side is drawn at once, for its units are independent given the other. Nothing is rejected
    and nothing tuned. It samples restricted Boltzmann machines, and deep ones: the odd layers given
    the even ones and back.

    Args:
        model: a :class:`~pyrogen.distributions.Harmonium`, whose site is then called ``"x"``; or a
            Pyro model in which it is the distribution of the first site, and nothing is observed.
            Draws are of that site; those after it follow by
            ``Predictive(distributions.unnormalized(model), draws)``. ``None``, to be used by an
            objective.
        compile: as of every :class:`~pyrogen.kernels.Kernel`.

    Raises:
        ValueError: at the start, if the model is none of these.

    References:
        S. Geman, D. Geman, *Stochastic relaxation, Gibbs distributions, and the Bayesian
        restoration of images*, 1984. R. Salakhutdinov, G. Hinton, *Deep Boltzmann machines*, 2009.

    Example:
        >>> from pyrogen.distributions import Harmonium
        >>> from pyrogen.kernels import MCMC
        >>> weights = torch.tensor([[2.0, -1.0], [1.0, 0.5], [0.0, 2.0]])
        >>> rbm = Harmonium(weights, -torch.ones(3), torch.zeros(2))
        >>> mcmc = MCMC(BlockGibbs(rbm, compile=False), 10, 50, num_chains=1000,
        ...     disable_progbar=True)
        >>> mcmc.run()
        >>> exact = rbm.exact_sample((10000,)).mean(0)
        >>> bool((mcmc.get_samples()["x"].mean(0) - exact).abs().max() < 0.05)
        True
    """

    kind = Harmonium

    def init(self, potential: Any, position: Tensor, tuning: Tuning) -> BlockGibbsState:
        """Positions, with what the other side needs."""
        other_natural = potential.fn.other_natural(potential.values(position))
        return BlockGibbsState(position, potential.of_chains(other_natural, len(position)))

    def step(
        self, potential: Any, state: BlockGibbsState, tuning: Tuning
    ) -> tuple[BlockGibbsState, Info]:
        """Draws the other side, then this one."""
        fn, chains = potential.fn, len(state.position)
        natural = state.other_natural.reshape(-1, len(fn.other_bias))
        value = fn.units.draw(fn.natural(fn.other_units.draw(natural)))
        other_natural = fn.other_natural(value)
        energy = potential.of_chains(fn.free_energy(value, other_natural), chains).sum(-1)
        state = BlockGibbsState(
            potential.of_chains(value.to(state.position.dtype), chains),
            potential.of_chains(other_natural, chains),
        )
        return state, self.info(energy, tuning)
