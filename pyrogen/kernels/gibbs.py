r"""Gibbs sampling of a Markov random field, colour by colour."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pyrogen.distributions import MarkovField
from pyrogen.kernels._conditional import Conditional
from pyrogen.kernels._tuning import Info, Tuning

__all__ = ["Gibbs", "GibbsState"]


class GibbsState(NamedTuple):
    """Position ``[chains, size]``."""

    position: Tensor


class Gibbs(Conditional):
    r"""Sweeps over a :class:`~pyrogen.distributions.MarkovField`, such as an Ising or Potts model.

    .. math:: x_i \sim p(x_i \mid x_{-i}) \quad \text{for all sites } i \text{ of one colour, colour
        after colour}

    No two sites of a colour are neighbours, so that they are drawn at once: on a lattice of even
    sizes, a sweep is two draws. Nothing is rejected and nothing tuned. Near a phase transition
    sweeps mix slowly; many chains and long runs are needed there.

    Args:
        model: a :class:`~pyrogen.distributions.MarkovField`, whose site is then called ``"x"``; or
            a Pyro model in which it is the distribution of the first site, and nothing is observed.
            ``None``, to be used by an objective.
        compile: as of every :class:`~pyrogen.kernels.Kernel`.

    Raises:
        ValueError: at the start, if the model is none of these.

    References:
        S. Geman, D. Geman, *Stochastic relaxation, Gibbs distributions, and the Bayesian
        restoration of images*, 1984.

    Example:
        >>> from pyrogen.distributions import InteractionGraph, MarkovField
        >>> from pyrogen.kernels import MCMC
        >>> ring = InteractionGraph.lattice((5,))  # of odd length: three colours
        >>> ising = MarkovField(ring, torch.tensor(0.5), torch.full((5,), 0.2))
        >>> mcmc = MCMC(Gibbs(ising, compile=False), 10, 20, num_chains=1000,
        ...     disable_progbar=True)
        >>> mcmc.run()
        >>> exact = ising.exact_sample((10000,)).mean()
        >>> bool((mcmc.get_samples()["x"].mean() - exact).abs() < 0.05)
        True
    """

    kind = MarkovField

    def init(self, potential: Any, position: Tensor, tuning: Tuning) -> GibbsState:
        """The positions."""
        return GibbsState(position)

    def step(self, potential: Any, state: GibbsState, tuning: Tuning) -> tuple[GibbsState, Info]:
        """One sweep."""
        value = potential.fn.sweep(potential.values(state.position))
        position = potential.of_chains(value.to(state.position.dtype), len(state.position))
        return GibbsState(position), self.info(potential.value(position), tuning)
