r"""Deep Boltzmann machines.

Layers :math:`h_0 = x, h_1, \ldots, h_L`, each bound to the next:

.. math:: p(x, h_1, \ldots, h_L) = \frac1Z \exp\Big(\sum_{l=0}^{L} \phi(h_l) \cdot b_l
   + \sum_{l=0}^{L-1} \phi(h_l)^\top W_l\, h_{l+1}\Big) .

The odd layers are independent given the even ones and the other way round: the machine is a
harmonium. As a program, the odd layers come first, by the marginal that is left when the even ones
are summed out, known up to a constant; then the even ones, :math:`x` among them, by their
conditionals, which are normalised. The product is the law above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import (
    BernoulliUnits,
    CategoricalUnits,
    Harmonium,
    JointUnits,
    Units,
)
from pyrogen.distributions.units import as_units
from pyrogen.models.flow import num_events, refuse_num_samples
from pyrogen.models.restricted_boltzmann_machine import (
    RestrictedBoltzmannMachine,
    natural_of_mean,
    positive,
)

__all__ = ["DeepBoltzmannMachine"]

_SCALE = 0.01


class DeepBoltzmannMachine(PyroModule):
    r"""Deep Boltzmann machine (DBM) as a Pyro model.

    Its sites, in plate ``"data"``: ``"odd"``, the odd hidden layers side by side, an energy-based
    latent; ``"even"``, the even hidden layers, if there are any; and ``"x"``. It is trained with
    the guide :class:`pyrogen.guides.MeanField` by
    ``losses.ContrastiveDivergence(kernels.BlockGibbs(), persistent=True)``.

    Args:
        visible: how many visible units.
        hidden: how many units each hidden layer has, from the data upwards; hidden units are 0
            or 1.
        units: the visible units, as for :class:`~pyrogen.models.RestrictedBoltzmannMachine`.
        sampler: how ``model(None)`` draws ``"odd"``, such as
            ``kernels.ShortRun(kernels.BlockGibbs(), num_steps=1000)``; it may be set later.

    Attributes:
        weights: :math:`W_l`, ``[size of layer l, hidden[l]]`` each.
        biases: :math:`b_l`, from the data upwards.
        event_shape: ``(visible,)``.

    Raises:
        ValueError: if a number of units is not positive, or data do not fit.

    References:
        R. Salakhutdinov, G. Hinton, *Deep Boltzmann machines*, 2009.

    Example:
        >>> import torch
        >>> from pyrogen import kernels
        >>> model = DeepBoltzmannMachine(6, hidden=(4, 3))
        >>> model.distribution().weights.shape  # h1 against x and h2
        torch.Size([4, 9])
        >>> model.sampler = kernels.ShortRun(kernels.BlockGibbs(), num_steps=10)
        >>> model(None, num_samples=5).shape
        torch.Size([5, 6])
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
        if not self.hidden:
            raise ValueError("hidden: expected at least one layer, got none")
        self.units = as_units(units)
        sizes = (self.units.size(visible), *self.hidden)
        self.weights = nn.ParameterList(
            _SCALE * torch.randn(below, above) for below, above in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.sampler = sampler
        self.event_shape = (visible,)

    @classmethod
    def from_stack(cls, stack: Sequence[RestrictedBoltzmannMachine]) -> DeepBoltzmannMachine:
        """The machine that a greedily trained stack starts.

        A layer inside takes its input from both sides, where in the stack either side alone
        accounted for it: so the weights between two hidden layers are halved.

        Args:
            stack: machines, each trained on the features of the one before.

        Raises:
            ValueError: if they do not fit together.
        """
        check_stack(stack)
        model = cls(stack[0].visible, [rbm.hidden for rbm in stack], stack[0].units)
        with torch.no_grad():
            model.to(stack[0].weights)
            for level, rbm in enumerate(stack):
                model.weights[level].copy_(rbm.weights if level == 0 else 0.5 * rbm.weights)
                model.biases[level + 1].copy_(rbm.hidden_bias)
            model.biases[0].copy_(stack[0].bias)
        return model

    def distribution(self) -> Harmonium:
        """Returns the machine as a harmonium: the odd layers, against the even ones, data first."""
        layers = range(len(self.biases))
        odd, even = layers[1::2], layers[0::2]
        blocks = [torch.cat([self._block(i, j) for j in even], 1) for i in odd]
        even_hidden = sum(self.hidden[1::2])
        parts = [(self.units, self.visible)]
        if even_hidden:
            parts.append((BernoulliUnits(), even_hidden))
        return Harmonium(
            torch.cat(blocks),
            torch.cat([self.biases[i] for i in odd]),
            torch.cat([self.biases[j] for j in even]),
            "bernoulli",
            JointUnits(parts) if len(parts) > 1 else self.units,
            self.sampler,
        )

    def _block(self, odd: int, even: int) -> Tensor:
        block: Tensor
        if even == odd - 1:
            block = self.weights[even].T
        elif even == odd + 1:
            block = self.weights[odd]
        else:
            block = self.biases[odd].new_zeros(len(self.biases[odd]), len(self.biases[even]))
        return block

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws with the sampler.

        Args:
            data: ``[n, visible]``, or ``None`` to draw.
            num_samples: how many to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, visible]``.
        """
        machine = self.distribution()
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            size = self._checked(data).shape[-2]
        with pyro.plate("data", size, dim=-1):
            odd = pyro.sample("odd", machine)
            natural = machine.other_natural(odd)
            width = len(self.biases[0])
            if natural.shape[-1] > width:
                pyro.sample("even", BernoulliUnits().law(natural[..., width:]))
            x: Tensor = pyro.sample("x", self.units.law(natural[..., :width]), obs=data)
        return x

    def initialize(self, data: Tensor) -> None:
        """Sets the visible bias so that without weights the means are those of the data.

        Args:
            data: ``[n, visible]``.
        """
        self._checked(data)
        with torch.no_grad():
            self.biases[0].copy_(natural_of_mean(data, self.units, self.biases[0]))

    def _checked(self, data: Tensor) -> Tensor:
        levels = isinstance(self.units, CategoricalUnits)
        dtype = torch.int64 if levels else self.biases[0].dtype
        return check_data(data, self.event_shape, dtype)


def check_stack(stack: Sequence[Any]) -> None:
    """Checks that each machine of a stack takes the features of the one before.

    Raises:
        ValueError: otherwise.
    """
    if not stack or not all(isinstance(rbm, RestrictedBoltzmannMachine) for rbm in stack):
        raise ValueError("stack: expected restricted Boltzmann machines, got none, or another")
    binary = BernoulliUnits()
    for below, above in pairwise(stack):
        if below.hidden != above.visible or above.units != binary:
            raise ValueError(
                f"stack: expected {below.hidden} visible Bernoulli units above {below.hidden} "
                f"hidden units, got {above.visible} {above.units!r}"
            )
    if any(rbm.hidden_units != binary for rbm in stack):
        raise ValueError("stack: expected Bernoulli hidden units throughout")
