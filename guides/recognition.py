r"""A recognition network of binary layers, from the data upwards.

.. math:: q(h_1, \ldots, h_m \mid x) = \prod_{l=1}^{m} q(h_l \mid h_{l-1}), \qquad h_0 = x, \quad
   h_l \mid h_{l-1} \sim \text{Bernoulli}\big(\sigma(c_l + V_l\, \phi(h_{l-1}))\big)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import linear

from pyrogen.checks import check_data
from pyrogen.distributions import BernoulliUnits, Units
from pyrogen.distributions.units import as_units

__all__ = ["Recognition"]

_SCALE = 0.01


class Recognition(PyroModule):
    """Guide for binary hidden layers ``"h1"``, ``"h2"``, ... in plate ``"data"``.

    It goes with :class:`pyrogen.models.DeepBeliefNetwork` of one more hidden layer.

    Args:
        visible: how many visible units.
        hidden: how many units each layer has, from the data upwards.
        units: the visible units, as the model's.

    Attributes:
        weights: :math:`V_l`, ``[units of layer l, features of the layer below]`` each.
        biases: :math:`c_l`.

    Raises:
        ValueError: if a number of units is not positive, or there are no data.

    References:
        G. E. Hinton, P. Dayan, B. J. Frey, R. M. Neal, *The wake-sleep algorithm for unsupervised
        neural networks*, 1995, doi:10.1126/science.7761831. J. Bornschein, Y. Bengio, *Reweighted
        wake-sleep*, 2014, arXiv:1406.2751.

    Example:
        >>> import torch
        >>> guide = Recognition(6, hidden=(5, 4))
        >>> trace = pyro.poutine.trace(guide).get_trace(torch.zeros(3, 6))
        >>> trace.nodes["h2"]["value"].shape
        torch.Size([3, 4])
    """

    def __init__(
        self, visible: int, hidden: Sequence[int], units: str | Units = "bernoulli"
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        if visible < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"expected positive numbers of units, got visible {visible}, hidden {self.hidden}"
            )
        self.units = as_units(units)
        self.event_shape = (visible,)
        sizes = (self.units.size(visible), *self.hidden)
        self.weights = nn.ParameterList(
            _SCALE * torch.randn(above, below) for below, above in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(size) for size in self.hidden)

    @classmethod
    def from_stack(cls, stack: Sequence[Any]) -> Recognition:
        """The network that a greedily trained stack makes, upwards but for its top machine.

        Args:
            stack: restricted Boltzmann machines, each trained on the features of the one before.
        """
        below = stack[:-1]
        guide = cls(stack[0].visible, [rbm.hidden for rbm in below], stack[0].units)
        with torch.no_grad():
            guide.to(stack[0].weights)
            for level, rbm in enumerate(below):
                guide.weights[level].copy_(rbm.weights.T)
                guide.biases[level].copy_(rbm.hidden_bias)
        return guide

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Samples the hidden layers given data.

        Args:
            data: ``[n, visible]``.
            num_samples: only for the model's signature; must be ``None``.

        Returns:
            The value of the highest layer.
        """
        if data is None or num_samples is not None:
            raise ValueError(
                "guide: expected data to infer hidden layers from and no num_samples, got "
                f"{'no data' if data is None else f'num_samples={num_samples}'}"
            )
        check_data(data, self.event_shape)
        h = self.units.features(data, self.biases[0])
        with pyro.plate("data", data.shape[-2], dim=-1):
            for level, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                h = pyro.sample(f"h{level + 1}", BernoulliUnits().law(linear(h, weights, bias)))
        return h
