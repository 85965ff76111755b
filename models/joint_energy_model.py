r"""Joint energy-based models: a classifier read as a density of its inputs.

A classifier puts out logits :math:`f(x)_y`. Read as the negative energy of the pair, they define

.. math:: p(x, y) \propto p_0(x)\, e^{f(x)_y}, \qquad
   p(x) \propto p_0(x) \sum_y e^{f(x)_y}, \qquad
   p(y \mid x) = \frac{e^{f(x)_y}}{\sum_{y'} e^{f(x)_{y'}}} ,

so that the classifier is what it was, and :math:`E(x) = -\log \sum_y e^{f(x)_y}` is an energy
besides. A constant added to all logits, which no classifier notices, is what the density is made
of. The likelihood falls apart into :math:`\log p(x) + \log p(y \mid x)`, the first trained as an
energy, the second by cross-entropy; where a label is missing the second is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyrogen.checks import check_data
from pyrogen.distributions import EnergyBased
from pyrogen.distributions._base import as_base
from pyrogen.models.flow import num_events, refuse_num_samples

__all__ = ["JointEnergyModel"]


class JointEnergyModel(PyroModule):
    """Joint energy-based model (JEM), with sites ``"x"`` and ``"y"`` in plate ``"data"``.

    It has no latent sites, so its guide is :class:`pyrogen.guides.Empty`. The loss is one for
    energies, such as :class:`pyrogen.losses.ContrastiveDivergence`; the label is scored as ever.

    Args:
        classifier: module ``[n, *event_shape] -> [n, num_classes]`` that returns logits.
        base: what the energy tilts: the shape of an event (``n`` means ``(n,)``), for a standard
            normal; a distribution of batch shape ``[]``, which stays fixed; or a module that
            returns one. ``ImproperUniform`` leaves the energy alone.
        sampler: how ``model(None)`` draws, such as :class:`pyrogen.kernels.ShortRun`; it may be set
            later, as an attribute.
        density_weight: weight of log p(x) against log p(y | x), > 0. The gradient of the first is
            of many inputs, that of the second of one label, so that at 1 few steps go to the
            labels; score matching has units of its own. It becomes a buffer.

    Attributes:
        event_shape: shape of one datum.
        num_classes: number of classes.
        density_weight: tensor of shape ``[]``.

    Raises:
        TypeError: if ``classifier`` is no module or ``base`` none of these.
        ValueError: if the classifier does not map events to logits, or the weight is not positive.

    References:
        W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi, K. Swersky, *Your
        classifier is secretly an energy based model and you should treat it like one*, 2020,
        arXiv:1912.03263.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI
        >>> from pyrogen import guides, kernels, losses
        >>> model = JointEnergyModel(torch.nn.Linear(2, 3), base=2)
        >>> x, y = torch.randn(8, 2), torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # half unlabelled
        >>> contrast = losses.ContrastiveDivergence(kernels.Langevin(step_size=0.1), num_steps=5)
        >>> svi = SVI(model, guides.Empty(), pyro.optim.Adam({"lr": 0.01}), contrast)
        >>> loss = svi.step(x, y)
        >>> model.classify(x).probs.shape
        torch.Size([8, 3])
        >>> model.distribution().unnormalized_log_prob(x).shape
        torch.Size([8])
    """

    density_weight: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        base: Any,
        sampler: Callable[..., Tensor] | None = None,
        density_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(density_weight) and density_weight > 0):
            raise ValueError(
                f"density_weight: expected a positive finite number, got {density_weight}"
            )
        if not isinstance(classifier, nn.Module):
            raise TypeError(
                f"classifier: expected a torch.nn.Module, got {type(classifier).__name__}"
            )
        self.classifier = classifier
        self.base = as_base(base)
        self.sampler = sampler
        fn = self.distribution()
        self.event_shape = tuple(fn.event_shape)
        self.num_classes = _num_classes(classifier, fn)
        weight = torch.as_tensor(density_weight, dtype=fn.like.dtype, device=fn.like.device)
        self.register_buffer("density_weight", weight)

    def distribution(self) -> EnergyBased:
        """Returns the density of an input, known up to a constant."""
        return EnergyBased(self.energy, self.base(), sampler=self.sampler)

    def given(self, labels: Tensor) -> EnergyBased:
        """Returns the density of inputs of given classes, p(x | y), known up to a constant.

        Args:
            labels: ``[*]``, int64.

        Returns:
            A distribution of batch shape ``[*]``.
        """
        context = one_hot(labels, self.num_classes).to(self.distribution().like.dtype)
        return EnergyBased(self._energy_of_class, self.base(), context, sampler=self.sampler)

    def classify(self, x: Tensor) -> dist.Categorical:
        """Returns p(y | x).

        Args:
            x: ``[*, *event_shape]``.

        Returns:
            A distribution of batch shape ``[*]``.
        """
        batch = x.shape[: x.dim() - len(self.event_shape)]
        logits = self.classifier(x.reshape((-1, *self.event_shape)))
        return dist.Categorical(logits=logits.reshape((*batch, self.num_classes)))

    def energy(self, x: Tensor) -> Tensor:
        """The energy ``-logsumexp f(x)``, ``[n]``, of ``[n, *event_shape]``."""
        energy: Tensor = -self.classifier(x).logsumexp(-1)
        return energy

    def forward(
        self,
        data: Tensor | None = None,
        labels: Tensor | None = None,
        num_samples: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores data, or draws with the sampler.

        Args:
            data: ``[n, *event_shape]``, or ``None`` to draw. Outer plates stand to the left of
                ``n``.
            labels: ``[n]``, int64; -1 where there is none. ``None`` stands for none at all.
            num_samples: how many pairs to draw; ``None`` means one. Only without data.

        Returns:
            The values of ``"x"`` and ``"y"``; what labels are missing is 0.

        Raises:
            ValueError: if data or labels are unusable, or do not match.
        """
        if data is None:
            if labels is not None:
                raise ValueError("labels: expected None without data; draw from given(labels)")
            with pyro.plate("data", num_events(num_samples), dim=-1):
                x = pyro.sample("x", self.distribution())
                return x, pyro.sample("y", self.classify(x))
        refuse_num_samples(num_samples)
        check_data(data, self.event_shape)
        labels = self._labels(data, labels)
        known: Any = labels >= 0
        with pyro.plate("data", labels.shape[-1], dim=-1):
            with poutine.scale(scale=self.density_weight):
                x = pyro.sample("x", self.distribution(), obs=data)
            with poutine.mask(mask=known):
                return x, pyro.sample("y", self.classify(x), obs=labels.clamp(min=0))

    def _labels(self, data: Tensor, labels: Tensor | None) -> Tensor:
        batch = data.shape[: data.dim() - len(self.event_shape)]
        if labels is None:
            return torch.full(batch, -1, device=data.device)
        if labels.shape != batch or labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected shape {list(batch)} of torch.int64, one for each datum and -1 "
                f"where there is none, got {list(labels.shape)} of {labels.dtype}"
            )
        if is_validation_enabled() and not ((labels >= -1) & (labels < self.num_classes)).all():
            raise ValueError(
                f"labels: expected classes 0..{self.num_classes - 1}, or -1 for none, got values "
                f"from {labels.min().item()} to {labels.max().item()}"
            )
        return labels

    def _energy_of_class(self, x: Tensor, chosen: Tensor) -> Tensor:
        energy: Tensor = -(self.classifier(x) * chosen).sum(-1)
        return energy


def _num_classes(classifier: nn.Module, fn: EnergyBased) -> int:
    """Runs a copy of the classifier on two inputs, to see how many logits it has."""
    x = torch.zeros(2, *fn.event_shape, dtype=fn.like.dtype, device=fn.like.device)
    with torch.no_grad(), poutine.block(), pyro.get_param_store().scope():
        try:
            logits = copy.deepcopy(classifier).eval()(x)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"classifier: expected a network for input {list(x.shape)}, of the events of the "
                f"base, got an error: {error}"
            ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"classifier: expected output [2, num_classes] for input {list(x.shape)}, got {got}"
        )
    return logits.shape[1]
