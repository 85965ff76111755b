r"""A recurrent network whose weights are latent.

One draw of the weights runs a long short-term memory along a whole sequence,

.. math:: (i, f, o, g) = [x_t, h_{t-1}, 1]\, W, \qquad
   c_t = \sigma(f)\, c_{t-1} + \sigma(i) \tanh g, \qquad h_t = \sigma(o) \tanh c_t ,

and each step puts out the law of its target, :math:`p(y_{1:L} \mid x_{1:L}, W, V) =
\prod_t p(y_t \mid [h_t, 1]\, V)`.
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from pyrogen.checks import check_data
from pyrogen.models._outputs import Outputs, positive_int
from pyrogen.models.bayesian_network import WeightPrior
from pyrogen.models.likelihoods import Likelihood
from pyrogen.nn.affine import affine

__all__ = ["BayesianRNN"]


class BayesianRNN(PyroModule):
    """Long short-term memory with latent weights, sites ``"weights_cell"`` and ``"weights_out"``,
    and a sequence of targets ``"y"`` in plate ``"data"``.

    Its guide is :class:`pyrogen.guides.NormalWeights`, without local reparametrisation: the steps
    of a sequence share their weights.

    Args:
        in_features: size of the input of a step.
        num_classes: number of classes of a step; or
        out_features: size of the target of a step.
        hidden: number of units.
        prior: as for :class:`pyrogen.models.BayesianNetwork`.
        likelihood: of a regression: a name or a likelihood, by default normal with a learned scale.
        num_data: number N of all sequences, if the program is called with parts of them.

    Attributes:
        weight_shapes: shape of each site of weights, by its name.

    Raises:
        ValueError: if a size is not positive, not one of ``num_classes`` and ``out_features`` is
            given, or prior or likelihood do not fit; on call, if inputs or targets do not.

    References:
        M. Fortunato, C. Blundell, O. Vinyals, *Bayesian recurrent neural networks*, 2017,
        arXiv:1704.02798. S. Hochreiter, J. Schmidhuber, *Long short-term memory*, 1997,
        doi:10.1162/neco.1997.9.8.1735.

    Example:
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from pyrogen.guides import NormalWeights
        >>> model = BayesianRNN(2, num_classes=3, hidden=8)
        >>> x, y = torch.randn(4, 7, 2), torch.randint(3, (4, 7))  # 4 sequences of 7 steps
        >>> loss = Trace_ELBO().loss(model, NormalWeights(model), x, y)
        >>> model(x).shape
        torch.Size([4, 7])
    """

    reuses_weights = True

    def __init__(
        self,
        in_features: int,
        num_classes: int | None = None,
        out_features: int | None = None,
        hidden: int = 32,
        prior: float | TorchDistribution = 1.0,
        likelihood: str | Likelihood | None = None,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        self.outputs = Outputs(num_classes, out_features, likelihood, sequence=True)
        self.in_features = positive_int("in_features", in_features)
        self.hidden = positive_int("hidden", hidden)
        self.weight_shapes = {
            "weights_cell": (in_features + hidden + 1, 4 * hidden),
            "weights_out": (hidden + 1, self.outputs.size),
        }
        self.weight_prior = WeightPrior(prior)
        self.num_data = None if num_data is None else positive_int("num_data", num_data)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Scores sequences of targets, or draws them.

        Args:
            x: ``[n, length, in_features]``.
            y: ``[n, length]``, int64, of a classification; ``[n, length, out_features]`` of a
                regression; ``None`` to draw.

        Returns:
            The value of site ``"y"``.
        """
        check_data(x, (self.in_features,), name="x")
        if x.dim() < 3:
            raise ValueError(
                f"x: expected sequences [n, length, {self.in_features}], got {list(x.shape)}"
            )
        self.outputs.check(x, y, self.num_data)
        cell, out = (
            pyro.sample(name, self.weight_prior(shape))
            for name, shape in self.weight_shapes.items()
        )
        states = self._run(x, cell)
        h = torch.stack([affine(state, out) for state in states], -2)
        result: Tensor = self.outputs.observe(h, y, self.num_data)
        return result

    def _run(self, x: Tensor, weights: Tensor) -> list[Tensor]:
        """The states after each step, ``[*particles, n, hidden]``."""
        batch = torch.broadcast_shapes(weights.shape[:-2], x.shape[:-2])
        h = c = x.new_zeros((*batch, self.hidden))
        states = []
        for step in x.unbind(-2):
            given = torch.cat([step.expand((*batch, self.in_features)), h], -1)
            i, f, o, g = affine(given, weights).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return states
