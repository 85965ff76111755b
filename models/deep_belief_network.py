r"""Deep belief networks.

A restricted Boltzmann machine of the two top layers, and directed layers below it, down to the data
:math:`h_0 = x`:

.. math:: p(x, h_1, \ldots, h_{L-1}) = p_{\text{RBM}}(h_{L-1})
   \prod_{l=0}^{L-2} p(h_l \mid h_{l+1}), \qquad
   h_l \mid h_{l+1} \sim \text{units with natural parameters } b_l + W_l h_{l+1} .

The top layer :math:`h_L` is summed out exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import linear

from pyrogen.checks import check_data
from pyrogen.distributions import BernoulliUnits, CategoricalUnits, Harmonium, Units
from pyrogen.distributions.units import as_units
from pyrogen.models.deep_boltzmann_machine import check_stack
from pyrogen.models.flow import num_events, refuse_num_samples
from pyrogen.models.restricted_boltzmann_machine import RestrictedBoltzmannMachine, positive

__all__ = ["DeepBeliefNetwork"]

_SCALE = 0.01


class DeepBeliefNetwork(PyroModule):
    """Deep belief network (DBN) as a Pyro model.

    Its sites, in plate ``"data"``: the hidden layers ``"h1"``, ``"h2"``, ... but for the top one,
    which is summed out, and ``"x"``. The highest of them is energy-based. Its guide is
    :class:`pyrogen.guides.Recognition`. It is fine-tuned by
    ``losses.ContrastiveDivergence(kernels.BlockGibbs(), persistent=True,
    elbo=ReweightedWakeSleep(num_particles=10, insomnia=1.0))``.

    Args:
        visible: how many visible units.
        hidden: how many units each hidden layer has, from the data upwards, two layers at least;
            hidden units are 0 or 1.
        units: the visible units, as for :class:`~pyrogen.models.RestrictedBoltzmannMachine`.
        sampler: how ``model(None)`` draws the energy-based layer, such as
            ``kernels.ShortRun(kernels.BlockGibbs(), num_steps=1000)``; it may be set later.

    Attributes:
        top: the restricted Boltzmann machine of the two top layers.
        weights: :math:`W_l`, ``[size of layer l, hidden[l]]`` each.
        biases: :math:`b_l`.
        event_shape: ``(visible,)``.

    Raises:
        ValueError: if there are fewer than two hidden layers, a number of units is not positive, or
            data do not fit.

    References:
        G. E. Hinton, S. Osindero, Y.-W. Teh, *A fast learning algorithm for deep belief nets*,
        2006, doi:10.1162/neco.2006.18.7.1527.

    Example:
        >>> import torch
        >>> from pyrogen import kernels
        >>> from pyrogen.models import RestrictedBoltzmannMachine
        >>> stack = [RestrictedBoltzmannMachine(6, 5), RestrictedBoltzmannMachine(5, 4)]
        >>> model = DeepBeliefNetwork.from_stack(stack)
        >>> model.sampler = kernels.ShortRun(kernels.BlockGibbs(), num_steps=10)
        >>> model(None, num_samples=3).shape
        torch.Size([3, 6])
    """

    def __init__(
        self,
        visible: int,
        hidden: Sequence[int],
        units: str | Units = "bernoulli",
        sampler: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.visible = positive("visible", visible)
        self.hidden = tuple(positive("hidden", size) for size in hidden)
        if len(self.hidden) < 2:
            raise ValueError(
                f"hidden: expected at least two layers, got {len(self.hidden)}; of one, it is a "
                "RestrictedBoltzmannMachine"
            )
        self.units = as_units(units)
        sizes = (self.units.size(visible), *self.hidden[:-1])
        self.weights = nn.ParameterList(
            _SCALE * torch.randn(below, above) for below, above in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes[:-1])
        self.top = RestrictedBoltzmannMachine(self.hidden[-2], self.hidden[-1])
        self.sampler = sampler
        self.event_shape = (visible,)

    @classmethod
    def from_stack(cls, stack: Sequence[RestrictedBoltzmannMachine]) -> DeepBeliefNetwork:
        """The network that a greedily trained stack makes: all but its top machine directed.

        Args:
            stack: two machines at least, each trained on the features of the one before.

        Raises:
            ValueError: if they do not fit together.
        """
        check_stack(stack)
        model = cls(stack[0].visible, [rbm.hidden for rbm in stack], stack[0].units)
        with torch.no_grad():
            model.to(stack[0].weights)
            for level, rbm in enumerate(stack[:-1]):
                model.weights[level].copy_(rbm.weights)
                model.biases[level].copy_(rbm.bias)
        model.top.load_state_dict(stack[-1].state_dict())
        return model

    def distribution(self) -> Harmonium:
        """Returns the density of the highest layer that is not summed out."""
        top = self.top
        return Harmonium(top.weights, top.bias, top.hidden_bias, sampler=self.sampler)

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws with the sampler.

        Args:
            data: ``[n, visible]``, or ``None`` to draw.
            num_samples: how many to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, visible]``.
        """
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            levels = isinstance(self.units, CategoricalUnits)
            dtype = torch.int64 if levels else self.biases[0].dtype
            size = check_data(data, self.event_shape, dtype).shape[-2]
        with pyro.plate("data", size, dim=-1):
            h = pyro.sample(f"h{len(self.weights)}", self.distribution())
            for level in range(len(self.weights) - 1, 0, -1):
                natural = linear(h, self.weights[level], self.biases[level])
                h = pyro.sample(f"h{level}", BernoulliUnits().law(natural))
            natural = linear(h, self.weights[0], self.biases[0])
            x: Tensor = pyro.sample("x", self.units.law(natural), obs=data)
        return x
