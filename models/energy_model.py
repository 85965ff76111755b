r"""Energy-based models: a network that says how unlikely a point is.

A network :math:`E_\theta` with one output tilts a fixed base distribution,

.. math:: p_\theta(x) = \frac{1}{Z(\theta)}\, p_0(x)\, e^{-E_\theta(x)} .

Any network will do, since nothing has to be normalised; in exchange :math:`Z(\theta)` is unknown,
and training and sampling go around it: :class:`pyrogen.losses.ContrastiveDivergence`, score
matching or noise contrast instead of the likelihood, Markov chains instead of draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyrogen.checks import check_data
from pyrogen.distributions import EnergyBased
from pyrogen.distributions._base import as_base
from pyrogen.models.flow import num_events, refuse_num_samples

__all__ = ["EnergyModel"]


class EnergyModel(PyroModule):
    """Energy-based model as a Pyro model with site ``"x"`` in plate ``"data"``.

    It has no latent sites, so its guide is :class:`pyrogen.guides.Empty`.

    Args:
        energy: a module ``[n, *event_shape] -> [n]`` (or ``[n, 1]``), or a function.
        base: what the energy tilts: the shape of an event (``n`` means ``(n,)``), for a standard
            normal; a distribution of batch shape ``[]``, which stays fixed; or a module that
            returns one. ``ImproperUniform`` leaves the energy alone.
        sampler: how ``model(None)`` draws, such as :class:`pyrogen.kernels.ShortRun`; it may be set
            later, as an attribute.

    Raises:
        TypeError: if ``base`` is none of these, or the energy cannot be called.
        ValueError: if data do not fit the base.

    References:
        Y. LeCun, S. Chopra, R. Hadsell, M. Ranzato, F. J. Huang, *A tutorial on energy-based
        learning*, 2006. Y. Du, I. Mordatch, *Implicit generation and modeling with energy-based
        models*, 2019, arXiv:1903.08689.

    Example:
        >>> import torch
        >>> from pyrogen import kernels
        >>> model = EnergyModel(torch.nn.Linear(2, 1), base=2)
        >>> model.sampler = kernels.ShortRun(kernels.Langevin(step_size=0.1), num_steps=10)
        >>> model(None, num_samples=100).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        energy: Callable[[Tensor], Tensor],
        base: Any,
        sampler: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not callable(energy):
            raise TypeError(f"energy: expected a module or a function, got {type(energy).__name__}")
        self.energy = energy
        self.base = as_base(base)
        self.sampler = sampler
        self.event_shape = tuple(self.distribution().event_shape)

    def distribution(self) -> EnergyBased:
        """Returns the density of one datum, known up to a constant."""
        return EnergyBased(self.energy, self.base(), sampler=self.sampler)

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws with the sampler.

        Args:
            data: ``[n, *event_shape]``, or ``None`` to draw.
            num_samples: how many events to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, *event_shape]``.
        """
        fn = self.distribution()
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            check_data(data, self.event_shape)
            size = data.shape[-1 - len(self.event_shape)]
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", fn, obs=data)
        return x
