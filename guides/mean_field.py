r"""The mean-field posterior of a deep Boltzmann machine.

.. math:: q(h \mid x) = \prod_j \mu_j^{h_j} (1 - \mu_j)^{1 - h_j}, \qquad
   \mu_{\text{odd}} = \sigma(\alpha + W [\phi(x), \mu_{\text{even}}]), \quad
   \mu_{\text{even}} = \sigma(\beta + W^\top \mu_{\text{odd}})_{\text{even}}

Updates of one side with the other held fixed raise the evidence lower bound, so that they converge,
to a maximum of it among factorised laws.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn.functional import linear

from pyrogen.distributions import BernoulliUnits, JointUnits

__all__ = ["MeanField"]


class MeanField(PyroModule):
    """Guide for the sites ``"odd"`` and ``"even"`` of a deep Boltzmann machine, by fixed point.

    It has no parameters of its own: means are found anew at every call from those of the model.

    Args:
        model: a :class:`pyrogen.models.DeepBoltzmannMachine`.
        num_iterations: how often each side is updated.

    Raises:
        ValueError: if it is not positive, or there are no data.

    References:
        R. Salakhutdinov, G. Hinton, *Deep Boltzmann machines*, 2009. C. Peterson, J. R. Anderson,
        *A mean field theory learning algorithm for neural networks*, 1987.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI
        >>> from pyrogen import kernels, losses
        >>> from pyrogen.models import DeepBoltzmannMachine
        >>> model = DeepBoltzmannMachine(6, hidden=(4, 3))
        >>> loss = losses.ContrastiveDivergence(kernels.BlockGibbs(), persistent=True)
        >>> svi = SVI(model, MeanField(model), pyro.optim.Adam({"lr": 0.01}), loss=loss)
        >>> x = torch.bernoulli(torch.full((20, 6), 0.3))
        >>> losses = [svi.step(x) for _ in range(10)]
        >>> odd, even = MeanField(model).means(x)
        >>> odd.shape, even.shape
        (torch.Size([20, 4]), torch.Size([20, 3]))
    """

    def __init__(self, model: Any, num_iterations: int = 20) -> None:
        super().__init__()
        if not isinstance(num_iterations, int) or num_iterations < 1:
            raise ValueError(f"num_iterations: expected a positive integer, got {num_iterations!r}")
        self.num_iterations = num_iterations
        self._model = (model,)  # no submodule: its parameters are the model's

    def means(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """The means of the odd and of the even hidden layers.

        Args:
            data: ``[*, visible]``.

        Returns:
            ``[*, odd units]`` and ``[*, even units]``.
        """
        with torch.no_grad():
            machine = self._model[0].distribution()
            units, weights, other_bias = machine.other_units, machine.weights, machine.other_bias
            visible = units.parts[0][0] if isinstance(units, JointUnits) else units
            features = visible.features(data, weights)
            width = features.shape[-1]
            from_data = linear(features, weights[:, :width], machine.bias)
            above, above_bias = weights[:, width:], other_bias[width:]
            odd = torch.sigmoid(from_data)
            for _ in range(self.num_iterations):
                even = torch.sigmoid(linear(odd, above.T, above_bias))
                odd = torch.sigmoid(from_data + even @ above.T)
        return odd, even

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> None:
        """Samples the hidden layers given data.

        Args:
            data: ``[n, visible]``.
            num_samples: only for the model's signature; must be ``None``.
        """
        if data is None or num_samples is not None:
            raise ValueError(
                "guide: expected data to infer hidden layers from and no num_samples, got "
                f"{'no data' if data is None else f'num_samples={num_samples}'}"
            )
        odd, even = self.means(data)
        with pyro.plate("data", data.shape[-2], dim=-1):
            pyro.sample("odd", _law(odd))
            if even.shape[-1]:
                pyro.sample("even", _law(even))


def _law(mean: Tensor) -> Any:
    tiny = torch.finfo(mean.dtype).eps
    return BernoulliUnits().law(torch.logit(mean, eps=tiny))
