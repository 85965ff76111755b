r"""Neural networks whose weights are latent.

.. math:: W_l \sim p(W), \qquad h_{l+1} = a([h_l, 1]\, W_l), \qquad y_n \sim p(y \mid h_L(x_n)) .

The weights of a layer, its bias as their last row, are one site. A prior is given for one weight,
and holds for each. The scale mixture

.. math:: p(w) = \pi\, N(w; 0, \sigma_1^2) + (1 - \pi)\, N(w; 0, \sigma_2^2), \qquad
   \sigma_1 > \sigma_2 ,

says that a weight is near zero unless it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions._base import as_base
from pyrogen.models._outputs import Outputs, positive_int
from pyrogen.models.likelihoods import Likelihood
from pyrogen.nn.affine import affine
from pyrogen.nn.shapes import positive_ints

__all__ = ["BayesianNetwork", "scale_mixture"]


def scale_mixture(weight: float = 0.5, wide: float = 1.0, narrow: float = 0.05) -> Any:
    r"""The prior :math:`\pi N(0, \sigma_1^2) + (1 - \pi) N(0, \sigma_2^2)` of one weight.

    Args:
        weight: :math:`\pi`, of the wide component, between 0 and 1.
        wide: :math:`\sigma_1`.
        narrow: :math:`\sigma_2`.

    Returns:
        A distribution of batch shape ``[]``.

    Raises:
        ValueError: if the weight is not between 0 and 1, or ``wide > narrow > 0`` does not hold.

    References:
        C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra, *Weight uncertainty in neural
        networks*, 2015, arXiv:1505.05424.

    Example:
        >>> scale_mixture(0.25, wide=1.0, narrow=0.1).variance  # 0.25 + 0.75 * 0.01
        tensor(0.2575)
    """
    if not 0 < weight < 1:
        raise ValueError(f"weight: expected a number between 0 and 1, got {weight!r}")
    if not (math.isfinite(wide) and wide > narrow > 0):
        raise ValueError(f"wide, narrow: expected wide > narrow > 0, got {wide!r} and {narrow!r}")
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([weight, 1 - weight])),
        dist.Normal(torch.zeros(2), torch.tensor([wide, narrow])),
    )


class WeightPrior(PyroModule):
    """Independent weights of one prior.

    Args:
        prior: the standard deviation of a normal prior, or the law of one weight.
    """

    def __init__(self, prior: float | TorchDistribution) -> None:
        super().__init__()
        if isinstance(prior, (int, float)):
            if not (math.isfinite(prior) and prior > 0):
                raise ValueError(f"prior: expected a positive standard deviation, got {prior!r}")
            prior = dist.Normal(0.0, float(prior))
        self.base = as_base(prior)
        if self.base().event_shape:
            raise ValueError(
                "prior: expected the law of one weight, of event shape [], got "
                f"{list(self.base().event_shape)}"
            )

    def forward(self, shape: Sequence[int]) -> TorchDistribution:
        """The law of a matrix of weights."""
        matrix: TorchDistribution = self.base().expand(shape).to_event(len(shape))
        return matrix


class BayesianNetwork(PyroModule):
    """Network with latent weights, sites ``"weights_0"``, ``"weights_1"``, ..., and target ``"y"``
    in plate ``"data"``.

    Its guide by backpropagation is :class:`pyrogen.guides.NormalWeights`. Any guide of Pyro for
    global latents serves as well, such as ``AutoLaplaceApproximation``, and so do ``pyro.infer``'s
    and this library's kernels.

    Args:
        in_features: size of an input.
        num_classes: number of classes, to classify; or
        out_features: size of a target, for regression.
        hidden: widths of the hidden layers; ``()`` makes an affine map.
        prior: the standard deviation of a normal prior, or the law of one weight, such as
            :func:`scale_mixture`.
        likelihood: of a regression: a name or a likelihood, by default normal with a learned scale.
        activation: makes the module that stands after each hidden layer.
        num_data: size N of the whole data set, if the program is called with parts of it. The
            likelihood of a part is scaled by N over its size; the prior is not.

    Attributes:
        weight_shapes: shape of each site of weights, by its name.
        num_data: as given; may be set later.

    Raises:
        ValueError: if a size is not positive, not one of ``num_classes`` and ``out_features`` is
            given, or prior or likelihood do not fit; on call, if inputs or targets do not.

    References:
        C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra, *Weight uncertainty in neural
        networks*, 2015, arXiv:1505.05424.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyrogen.guides import NormalWeights
        >>> model = BayesianNetwork(2, num_classes=3, prior=scale_mixture())
        >>> guide = NormalWeights(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> loss = svi.step(torch.randn(20, 2), torch.randint(3, (20,)))
        >>> predict = pyro.infer.Predictive(model, guide=guide, num_samples=4)
        >>> predict(torch.randn(5, 2))["y"].shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int | None = None,
        out_features: int | None = None,
        hidden: Sequence[int] = (50,),
        prior: float | TorchDistribution = 1.0,
        likelihood: str | Likelihood | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        self.outputs = Outputs(num_classes, out_features, likelihood)
        self.in_features = positive_int("in_features", in_features)
        widths = [in_features, *positive_ints(hidden, "hidden"), self.outputs.size]
        self.weight_shapes = {
            f"weights_{i}": (widths[i] + 1, widths[i + 1]) for i in range(len(widths) - 1)
        }
        self.weight_prior = WeightPrior(prior)
        self.activation = activation()
        self.num_data = None if num_data is None else positive_int("num_data", num_data)

    def predict(self, x: Tensor, weights: Sequence[Tensor]) -> TorchDistribution:
        """The law of targets given weights.

        Args:
            x: ``[n, in_features]``.
            weights: of each layer, ``[in + 1, out]``, or with batches ``[*particles, 1]`` before.

        Returns:
            A distribution of batch shape ``[*particles, n]``.
        """
        law: TorchDistribution = self.outputs(self.network(x, weights))
        return law

    def network(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """What the last layer puts out, ``[*particles, n, size]``; arguments as for
        :meth:`predict`."""
        h = affine(x, weights[0])
        for layer in weights[1:]:
            h = affine(self.activation(h), layer)
        return h

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Scores targets, or draws them.

        Args:
            x: ``[n, in_features]``.
            y: ``[n]``, int64, of a classification; ``[n, out_features]`` of a regression; ``None``
                to draw.

        Returns:
            The value of site ``"y"``.
        """
        check_data(x, (self.in_features,), name="x")
        self.outputs.check(x, y, self.num_data)
        weights = [
            pyro.sample(name, self.weight_prior(shape))
            for name, shape in self.weight_shapes.items()
        ]
        result: Tensor = self.outputs.observe(self.network(x, weights), y, self.num_data)
        return result
