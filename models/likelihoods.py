r"""Likelihoods: from the numbers a decoder puts out to the distribution of one observed event.

A likelihood is a small module :math:`\theta \mapsto p(x \mid \theta)` whose event dimensions are
made dependent (``to_event``), so that a plate sees one log-density for each datum. It also knows
which dtype and which values its data have, and what to show for a distribution of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen import distributions as extra

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Likelihood",
    "Normal",
    "as_likelihood",
]


class Likelihood(PyroModule):
    """Base of the likelihoods; a new one defines :meth:`forward` and :meth:`supports`.

    Attributes:
        parameter_dim: number of dimensions that the parameters have beyond those of the event.
        advice: what to do with data that the likelihood cannot score.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> class Laplace(Likelihood):
        ...     def forward(self, parameters, event_dim):
        ...         return dist.Laplace(parameters, 1.0).to_event(event_dim)
        ...
        ...     def supports(self, data, parameter_shape):
        ...         return data.isfinite(), "finite values"
        >>> Laplace()(torch.zeros(5, 3), event_dim=1).event_shape
        torch.Size([3])
    """

    parameter_dim: int = 0
    advice: str = "transform the data or choose another likelihood"

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistribution:
        """Returns the distribution with these parameters.

        Args:
            parameters: the decoder's output, ``[*, *event_shape]`` and ``parameter_dim`` more.
            event_dim: number of dimensions of the event.

        Returns:
            A distribution of batch shape ``[*]`` and event shape ``event_shape``.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def supports(self, data: Tensor, parameter_shape: Sequence[int]) -> tuple[Tensor, str]:
        """Returns which values of ``data`` can be scored, and in words which ones could be.

        Args:
            data: floating point or, for discrete data, integers, ``[*, *event_shape]``.
            parameter_shape: shape of the parameters of one event.

        Returns:
            Booleans that broadcast to the shape of ``data``, and the words.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no supports")

    def data_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of data for parameters of ``dtype``; by default the same."""
        return dtype

    def mean(self, distribution: Any) -> Tensor:
        """Returns the expected event of a distribution that :meth:`forward` made, for pictures."""
        mean: Tensor = distribution.mean
        return mean

    def check_support(self, data: Tensor, parameter_shape: Sequence[int], name: str) -> None:
        """Checks the values of ``data``; reads them, so it runs only while Pyro validates.

        Raises:
            ValueError: if ``data`` hold values that the likelihood cannot score.
        """
        if not is_validation_enabled():
            return
        supported, words = self.supports(data, parameter_shape)
        if not supported.all():
            raise ValueError(
                f"site {name!r}: expected {words}, got values from {data.min().item():.6g} to "
                f"{data.max().item():.6g}; {self.advice}"
            )


class Bernoulli(Likelihood):
    """Independent binary pixels; the parameters are logits, the data 0 or 1 in floating point.

    Example:
        >>> import torch
        >>> Bernoulli()(torch.zeros(5, 8, 8), event_dim=2).event_shape
        torch.Size([8, 8])
    """

    advice = "binarise the data, or use likelihood='continuous_bernoulli' for grey values in [0, 1]"

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistribution:
        """Returns ``Bernoulli(logits=parameters)``."""
        return _join(dist.Bernoulli(logits=parameters), event_dim)

    def supports(self, data: Tensor, parameter_shape: Sequence[int]) -> tuple[Tensor, str]:
        """Zero and one."""
        return (data == 0) | (data == 1), "values 0 or 1 (likelihood 'bernoulli')"


class ContinuousBernoulli(Likelihood):
    """Independent grey values in [0, 1]; the parameters are logits.

    Uses :class:`pyrogen.distributions.ContinuousBernoulli`, which stays accurate near logit zero
    and for saturated pixels.

    Example:
        >>> import torch
        >>> likelihood = ContinuousBernoulli()
        >>> likelihood.mean(likelihood(torch.zeros(3), event_dim=0))
        tensor([0.5000, 0.5000, 0.5000])
    """

    advice = "rescale the data, or use likelihood='normal' for real values"

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistribution:
        """Returns ``ContinuousBernoulli(logits=parameters)``."""
        return _join(extra.ContinuousBernoulli(parameters), event_dim)

    def supports(self, data: Tensor, parameter_shape: Sequence[int]) -> tuple[Tensor, str]:
        """The closed interval from 0 to 1."""
        return (data >= 0) & (data <= 1), "values in [0, 1] (likelihood 'continuous_bernoulli')"


class Normal(Likelihood):
    r"""Independent real values :math:`x \sim N(\theta, \sigma^2)`; the parameters are the means.

    Args:
        scale: standard deviation :math:`\sigma`, in units of the data: a number, or a tensor that
            broadcasts to the event (one for each dimension).
        learned: whether :math:`\sigma` is a parameter that starts at ``scale``, or fixed.

    Raises:
        ValueError: if ``scale`` is not positive and finite.

    Example:
        >>> import torch
        >>> Normal(scale=0.1, learned=False)(torch.zeros(5, 3), event_dim=1).batch_shape
        torch.Size([5])
    """

    advice = "remove the others or mask the site"
    scale: Any

    def __init__(self, scale: float | Tensor = 1.0, learned: bool = True) -> None:
        super().__init__()
        start = torch.as_tensor(scale).detach().clone()
        if not start.is_floating_point():
            start = start.to(torch.get_default_dtype())
        if not bool((start.isfinite() & (start > 0)).all()):
            raise ValueError(f"scale: expected positive finite numbers, got {scale}")
        if learned:
            self.scale = PyroParam(start, constraints.positive)
        else:
            self.register_buffer("scale", start)

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistribution:
        """Returns ``Normal(parameters, scale)``."""
        return _join(dist.Normal(parameters, self.scale), event_dim)

    def supports(self, data: Tensor, parameter_shape: Sequence[int]) -> tuple[Tensor, str]:
        """Every finite number."""
        return data.isfinite(), "finite values (likelihood 'normal')"


class Categorical(Likelihood):
    """Independent levels ``0..K-1``, of dtype int64; the parameters are logits ``[..., K]``.

    Example:
        >>> import torch
        >>> likelihood = Categorical()
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf, 0.0, -torch.inf]])
        >>> likelihood.mean(likelihood(logits, event_dim=1))
        tensor([0.5000, 1.0000])
    """

    parameter_dim = 1
    advice = "number the levels from 0, and give the decoder as many logits as there are levels"

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistribution:
        """Returns ``Categorical(logits=parameters)``."""
        return _join(dist.Categorical(logits=parameters), event_dim)

    def supports(self, data: Tensor, parameter_shape: Sequence[int]) -> tuple[Tensor, str]:
        """The levels ``0..K-1``."""
        last = parameter_shape[-1] - 1
        return (data >= 0) & (data <= last), f"levels 0..{last} (likelihood 'categorical')"

    def data_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns ``torch.int64``."""
        return torch.int64

    def mean(self, distribution: Any) -> Tensor:
        """Returns the expected level."""
        probs: Tensor = getattr(distribution, "base_dist", distribution).probs
        return probs @ torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "continuous_bernoulli": ContinuousBernoulli,
    "normal": Normal,
}


def _join(pixels: TorchDistribution, event_dim: int) -> TorchDistribution:
    """Returns one distribution of events from independent ones of their elements."""
    event: TorchDistribution = pixels.to_event(event_dim)
    return event


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Returns a likelihood from its name or itself.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if it is neither a name nor a likelihood.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood: expected a name or a pyrogen.models.Likelihood, got {likelihood!r}"
        )
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood: expected one of {sorted(LIKELIHOODS)} or a pyrogen.models.Likelihood, "
            f"got {likelihood!r}"
        )
    return LIKELIHOODS[likelihood]()
