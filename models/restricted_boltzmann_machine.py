r"""Restricted Boltzmann machines.

.. math:: p(x, h) = \frac1Z\, e^{\phi(x) \cdot b + h \cdot c + \phi(x)^\top W h}, \qquad
   F(x) = -\log \sum_h e^{\phi(x) \cdot b + h \cdot c + \phi(x)^\top W h}, \qquad
   p(x) = e^{-F(x)} / Z

for visible units :math:`x` of any kind (:mod:`pyrogen.distributions.units`; real ones have a base
measure besides). Hidden units are summed out exactly, so that the model has one site, ``"x"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import constraints

from pyrogen.checks import check_data
from pyrogen.distributions import BernoulliUnits, CategoricalUnits, Harmonium, Units
from pyrogen.distributions.units import as_units
from pyrogen.models.flow import num_events, refuse_num_samples

__all__ = ["RestrictedBoltzmannMachine"]

_SCALE = 0.01


class RestrictedBoltzmannMachine(PyroModule):
    r"""Restricted Boltzmann machine (RBM) as a Pyro model with site ``"x"`` in plate ``"data"``.

    It has no latent sites, so its guide is :class:`pyrogen.guides.Empty`; it is trained by
    ``losses.ContrastiveDivergence(kernels.BlockGibbs(), persistent=True)`` and sampled by
    :class:`pyrogen.kernels.BlockGibbs`.

    Args:
        visible: how many visible units.
        hidden: how many hidden units.
        units: the visible units: ``"bernoulli"``, ``"gaussian"``, ``"spin"``, or
            :class:`~pyrogen.distributions.Units`, such as ``CategoricalUnits(17)`` for images of 17
            grey levels.
        hidden_units: the hidden units, likewise.
        sampler: how ``model(None)`` draws, such as
            ``kernels.ShortRun(kernels.BlockGibbs(), num_steps=1000)``; it may be set later.

    Attributes:
        weights: :math:`W`, ``[features of x, hidden]``.
        bias: :math:`b`, ``[features of x]``.
        hidden_bias: :math:`c`, ``[hidden]``.
        event_shape: ``(visible,)``.

    Raises:
        ValueError: if a number of units is not positive, or data do not fit.

    References:
        G. E. Hinton, *A practical guide to training restricted Boltzmann machines*, 2012,
        doi:10.1007/978-3-642-35289-8_32.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI
        >>> from pyrogen import guides, kernels, losses
        >>> rbm = RestrictedBoltzmannMachine(visible=4, hidden=3)
        >>> x = torch.bernoulli(torch.full((500, 4), 0.5))
        >>> x[:, 0] = x[:, 1] * x[:, 2]  # so the entropy is 3 log 2 = 2.08
        >>> loss = losses.ContrastiveDivergence(kernels.BlockGibbs(), persistent=True)
        >>> svi = SVI(rbm, guides.Empty(), pyro.optim.Adam({"lr": 0.01}), loss=loss)
        >>> values = [svi.step(x) for _ in range(500)]
        >>> log_likelihood = -rbm.free_energy(x).mean() - rbm.distribution().exact_log_z()
        >>> bool(-2.6 < log_likelihood < -2.0)  # of fair bits: -4 log 2 = -2.77
        True
        >>> rbm.features(x).shape
        torch.Size([500, 3])
    """

    def __init__(
        self,
        visible: int,
        hidden: int,
        units: str | Units = "bernoulli",
        hidden_units: str | Units = "bernoulli",
        sampler: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.visible, self.hidden = positive("visible", visible), positive("hidden", hidden)
        self.units, self.hidden_units = as_units(units), as_units(hidden_units, "hidden_units")
        size, width = self.units.size(visible), self.hidden_units.size(hidden)
        self.weights = nn.Parameter(_SCALE * torch.randn(size, width))
        self.bias = nn.Parameter(torch.zeros(size))
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        self.sampler = sampler
        self.event_shape = (visible,)

    def distribution(self) -> Harmonium:
        """Returns the density of one datum, known up to a constant."""
        return Harmonium(
            self.weights, self.bias, self.hidden_bias, self.units, self.hidden_units, self.sampler
        )

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws with the sampler.

        Args:
            data: ``[n, visible]``, of the dtype of the weights (of int64 for categorical units), or
                ``None`` to draw. Grey values between 0 and 1 stand for means of bits.
            num_samples: how many to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, visible]``.
        """
        fn = self.distribution()
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            check_units(data, fn)
            size = data.shape[-2]
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", fn, obs=data)
        return x

    def free_energy(self, data: Tensor) -> Tensor:
        """``F(x) [*]`` of ``data [*, visible]``."""
        return self.distribution().free_energy(data)

    def features(self, data: Tensor) -> Tensor:
        """The means of the hidden units given ``data [*, visible]``, ``[*, hidden]``."""
        return self.hidden_units.mean(self.distribution().other_natural(data))

    def initialize(self, data: Tensor) -> None:
        """Sets the visible bias so that without weights the means are those of the data.

        Args:
            data: ``[n, visible]``. Means of units with finitely many states are drawn inwards, as
                if each state had been seen a little more often.
        """
        check_units(data, self.distribution())
        with torch.no_grad():
            self.bias.copy_(natural_of_mean(data, self.units, self.bias))


def natural_of_mean(data: Tensor, units: Units, like: Tensor) -> Tensor:
    """The natural parameters of independent units with the means of ``data [n, units]``."""
    features = units.features(data, like)
    size = features.shape[-1]
    if not units.discrete:
        return units.natural(features.mean(0))
    centre = units.mean(torch.zeros(size, dtype=like.dtype, device=like.device))
    return units.natural((features.sum(0) + centre) / (len(features) + 1))


def check_units(data: Any, fn: Harmonium, name: str = "data") -> None:
    """Checks that data are values of a machine's units, or means of Bernoulli ones (grey values).

    Raises:
        ValueError: otherwise.
    """
    levels = isinstance(fn.units, CategoricalUnits)
    check_data(data, fn.event_shape, torch.int64 if levels else fn.weights.dtype, name)
    grey = isinstance(fn.units, BernoulliUnits)
    support = constraints.independent(constraints.unit_interval, 1) if grey else fn.support
    if is_validation_enabled() and not (inside := support.check(data)).all():
        raise ValueError(
            f"{name}: expected values of {fn.units!r}, got {int((~inside).sum())} of "
            f"{inside.numel()} events with others, from {data.min().item():.6g} to "
            f"{data.max().item():.6g}; rescale grey values to 0..1"
        )


def positive(name: str, number: Any) -> int:
    """Returns a positive integer.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}: expected a positive integer, got {number!r}")
    return number
