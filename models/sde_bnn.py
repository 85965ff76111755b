r"""A network of infinite depth whose weights are a diffusion in depth (SDE-BNN).

The weights of a small network start at a learned point and move as a process; a hidden state is
carried along by the network whose weights they are,

.. math:: dw = f_p(w, t)\, dt + \sigma\, dW, \qquad w(0) = w_0, \qquad
   \frac{dh}{dt} = \mathrm{field}(h;\ w(t)), \qquad h(0) = A x + a, \qquad
   y \sim p(y \mid B\, h(1) + b).

The path of the weights is the latent site; data are independent given it. The layers :math:`A, B`,
the point :math:`w_0` and the likelihood are learned parameters, as in the paper. Weights and hidden
state are looked at on one grid of depths. On it the weights take Euler's and Maruyama's steps, and
the hidden state those of Euler, or of the midpoint rule with :math:`w` halfway between its values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import Path
from pyrogen.models._outputs import Outputs, positive_int
from pyrogen.models.likelihoods import Likelihood
from pyrogen.nn.affine import without_plate
from pyrogen.nn.shapes import positive_ints
from pyrogen.processes import OrnsteinUhlenbeck, Process

__all__ = ["SDEBNN"]

SOLVERS = ("euler", "midpoint")


class SDEBNN(PyroModule):
    """Bayesian network with a path of weights, site ``"w"``, and target ``"y"`` in plate
    ``"data"``.

    Its guide is :class:`pyrogen.guides.PathDrift`, and its loss :class:`pyrogen.losses.PathELBO`,
    whose ``kl_weight`` says how much the divergence of the path counts.

    Args:
        in_features: size of an input.
        num_classes: number of classes, to classify; or
        out_features: size of a target, for regression.
        state_dim: size of the hidden state h.
        hidden: widths of the hidden layers of the field.
        prior: the process of the weights; by default Ornstein–Uhlenbeck's of rate 1 and scale 0.2.
        num_steps: steps from depth 0 to 1.
        solver: of the hidden state: ``"euler"`` or ``"midpoint"``.
        likelihood: of a regression: a name or a likelihood, by default normal with a learned scale.
        activation: makes the module that stands after each hidden layer of the field.
        num_data: size N of the whole data set, if the program is called with parts of it. The
            likelihood of a part is scaled by N over its size; the prior is not.

    Attributes:
        initial: the weights at depth 0, ``[D]``, which start as those of a network do.
        times: depths, ``[num_steps + 1]``.
        layer_shapes: shape of each layer of the field, its bias as the last row; the D weights are
            these one after the other.
        num_data: as given; may be set later.

    Raises:
        TypeError: if ``prior`` is no process.
        ValueError: if a size is not positive, not one of ``num_classes`` and ``out_features`` is
            given, or the solver is unknown; on call, if inputs or targets do not fit.

    References:
        W. Xu, R. T. Q. Chen, X. Li, D. Duvenaud, *Infinitely deep Bayesian neural networks with
        stochastic differential equations*, 2021, arXiv:2102.06559.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Predictive
        >>> from pyrogen.guides import PathDrift
        >>> from pyrogen.losses import PathELBO
        >>> model = SDEBNN(in_features=2, num_classes=3, state_dim=4, hidden=(8,), num_steps=10)
        >>> guide = PathDrift(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=PathELBO())
        >>> loss = svi.step(torch.randn(20, 2), torch.randint(3, (20,)))
        >>> draws = Predictive(model, guide=guide, num_samples=4)(torch.randn(5, 2))
        >>> draws["y"].shape, model.predict(torch.randn(5, 2), draws["w"]).probs.shape
        (torch.Size([4, 5]), torch.Size([4, 5, 3]))
    """

    path_site = "w"
    path_plate = None
    times: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int | None = None,
        out_features: int | None = None,
        state_dim: int = 32,
        hidden: Sequence[int] = (32,),
        prior: Process | None = None,
        num_steps: int = 20,
        solver: str = "midpoint",
        likelihood: str | Likelihood | None = None,
        activation: Callable[[], nn.Module] = nn.Tanh,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        if solver not in SOLVERS:
            raise ValueError(f"solver: expected one of {SOLVERS}, got {solver!r}")
        self.outputs = Outputs(num_classes, out_features, likelihood)
        self.in_features = positive_int("in_features", in_features)
        positive_int("state_dim", state_dim)
        widths = [state_dim, *positive_ints(hidden, "hidden"), state_dim]
        self.layer_shapes = [(i + 1, o) for i, o in itertools.pairwise(widths)]
        self.into = _linear(in_features, state_dim)
        self.out = _linear(state_dim, self.outputs.size)
        self.initial = nn.Parameter(_network_weights(self.layer_shapes))
        self.process = OrnsteinUhlenbeck(rate=1.0, scale=0.2) if prior is None else prior
        times = torch.linspace(0.0, 1.0, positive_int("num_steps", num_steps) + 1)
        self.register_buffer("times", times)
        self.solver = solver
        self.activation = activation()
        self.num_data = None if num_data is None else positive_int("num_data", num_data)
        self.prior()  # which refuses what is no process

    def prior(self, *args: Any, **kwargs: Any) -> Path:
        """The law of the weights' path, event ``[num_steps + 1, D]``; it depends on no argument."""
        return Path(self.process, self.initial, self.times)

    def states(self, x: Tensor, w: Tensor) -> Tensor:
        """The hidden state at each depth.

        Args:
            x: ``[n, in_features]``.
            w: a path of weights, ``[num_steps + 1, D]``, or with batches ``[*particles, 1]``
                before.

        Returns:
            ``[*particles, n, num_steps + 1, state_dim]``.

        Raises:
            ValueError: if the batch shape of the paths does not end in 1.
        """
        if w.dim() > 2:
            w = without_plate(w, 2)
        path = self._layers(w)
        halfway = self._layers(0.5 * (w[..., 1:, :] + w[..., :-1, :]))
        h: Tensor = self.into(x)
        h = h.expand((*w.shape[:-2], *h.shape[-2:]))
        states = [h]
        for k, step in enumerate(self.times.diff().unbind()):
            slope = self._field(h, path[k])
            if self.solver == "midpoint":
                slope = self._field(torch.addcmul(h, slope, 0.5 * step), halfway[k])
            h = torch.addcmul(h, slope, step)
            states.append(h)
        return torch.stack(states, -2)

    def predict(self, x: Tensor, w: Tensor) -> TorchDistribution:
        """The law of targets given a path of weights; arguments as for :meth:`states`.

        Returns:
            A distribution of batch shape ``[*particles, n]``.
        """
        law: TorchDistribution = self.outputs(self.out(self.states(x, w)[..., -1, :]))
        return law

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
        w = pyro.sample(self.path_site, self.prior())
        final = self.states(x, w)[..., -1, :]
        result: Tensor = self.outputs.observe(self.out(final), y, self.num_data)
        return result

    def _layers(self, w: Tensor) -> list[tuple[Tensor, ...]]:
        """At each depth the matrix and the bias of the first layer of the field, of the second,
        and so on, each ``[*particles, rows, columns]``."""
        shapes = [part for rows, out in self.layer_shapes for part in ((rows - 1, out), (1, out))]
        parts = [
            part.reshape((*w.shape[:-1], *shape)).unbind(-3)
            for part, shape in zip(w.split([r * c for r, c in shapes], -1), shapes, strict=True)
        ]
        return list(zip(*parts, strict=True))

    def _field(self, h: Tensor, layers: Sequence[Tensor]) -> Tensor:
        h = _affine(h, *layers[:2])
        for matrix, bias in zip(layers[2::2], layers[3::2], strict=True):
            h = _affine(self.activation(h), matrix, bias)
        return h


def _affine(h: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, h, matrix) if h.dim() == 2 else h @ matrix + bias


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(fan_in))
    nn.init.zeros_(layer.bias)
    return layer


def _network_weights(shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Weights of variance one over the number of inputs, and biases of zero."""
    layers = []
    for rows, columns in shapes:
        layer = torch.randn(rows, columns) / math.sqrt(rows - 1)
        layer[-1] = 0.0
        layers.append(layer.flatten())
    return torch.cat(layers)
