r"""The mean-field posterior of a network's weights (Bayes by backprop).

.. math:: q(W) = \prod_{ij} N(W_{ij};\ M_{ij}, S_{ij}^2), \qquad S = \log(1 + e^R) .
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrogen.nn.affine import localized

__all__ = ["NormalWeights"]


class NormalWeights(PyroModule):
    """Guide for the weights of :class:`pyrogen.models.BayesianNetwork` and
    :class:`pyrogen.models.BayesianRNN`: a normal law for each.

    Means start as the weights of a network do, from a normal law of variance 2 over the number of
    inputs (1 for the last layer), and biases from zero. With a normal prior
    ``TraceMeanField_ELBO`` has the KL in closed form; ``Trace_ELBO`` takes any prior.

    Args:
        model: the program whose ``weight_shapes`` names the sites.
        init_scale: standard deviation that each weight starts with.
        local: whether, in training mode, the affine maps of the model draw their image for each
            datum (local reparametrisation) in place of one matrix for all of them. It is for
            objectives that are a mean of the log-likelihood, such as Pyro's ELBOs, but not
            importance weighted ones. After ``eval()``, and always if it is ``False``, all data
            share the drawn weights, so that draws of ``Predictive`` are functions.

    Raises:
        ValueError: if the model has no ``weight_shapes``, ``init_scale`` is not positive, or
            ``local`` is asked for a network that uses its weights again and again.

    References:
        C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra, *Weight uncertainty in neural
        networks*, 2015, arXiv:1505.05424. D. P. Kingma, T. Salimans, M. Welling, *Variational
        dropout and the local reparameterization trick*, 2015, arXiv:1506.02557.

    Example:
        >>> import torch
        >>> from pyrogen.models import BayesianNetwork
        >>> guide = NormalWeights(BayesianNetwork(2, out_features=1, hidden=(8,)), local=True)
        >>> {name: list(value.shape) for name, value in guide(torch.randn(5, 2)).items()}
        {'weights_0': [3, 8], 'weights_1': [9, 1]}
    """

    def __init__(self, model: Any, init_scale: float = 0.02, local: bool = False) -> None:
        super().__init__()
        shapes = getattr(model, "weight_shapes", None)
        if not isinstance(shapes, Mapping):
            raise ValueError(
                "model: expected one with weight_shapes, such as models.BayesianNetwork, got "
                f"{type(model).__name__}"
            )
        if local and getattr(model, "reuses_weights", False):
            raise ValueError(
                f"local: expected False for {type(model).__name__}, which uses its weights at "
                "every step of a sequence, so that its steps do not err independently; got True"
            )
        if not (math.isfinite(init_scale) and init_scale > 0):
            raise ValueError(f"init_scale: expected a positive number, got {init_scale!r}")
        self.local = local
        raw = math.log(math.expm1(init_scale))
        names = list(shapes)
        self.loc = nn.ParameterDict(
            {name: _initial(shapes[name], last=name == names[-1]) for name in names}
        )
        self.raw_scale = nn.ParameterDict(
            {name: nn.Parameter(torch.full(shapes[name], raw)) for name in names}
        )

    def scale(self, name: str) -> Tensor:
        """The standard deviations of a site's weights."""
        return softplus(self.raw_scale[name])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples the weights; arguments are those of the model, and are not used.

        Returns:
            The draw of each site.
        """
        draws = {}
        for name, loc in self.loc.items():
            scale = self.scale(name)
            draw = pyro.sample(name, dist.Normal(loc, scale).to_event(2))
            draws[name] = localized(draw, loc, scale) if self.local and self.training else draw
        return draws


def _initial(shape: tuple[int, int], last: bool) -> nn.Parameter:
    start = torch.randn(shape) * math.sqrt((1 if last else 2) / (shape[0] - 1))
    start[-1] = 0.0
    return nn.Parameter(start)
