"""From the output of a network to the law of a target, for regression and for classification."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from pyrogen.checks import check_data
from pyrogen.models.likelihoods import Likelihood, as_likelihood

__all__ = ["Outputs", "positive_int"]


class Outputs(PyroModule):
    """The law of targets given numbers ``[*, size]``.

    Args:
        num_classes: of a classification, whose targets are ``[*]``, int64; or
        out_features: of a regression, whose targets are ``[*, out_features]``.
        likelihood: name or likelihood of a regression.
        sequence: whether targets come in sequences ``[*, length, ...]`` that are one event.
    """

    def __init__(
        self,
        num_classes: int | None,
        out_features: int | None,
        likelihood: str | Likelihood | None,
        sequence: bool = False,
    ) -> None:
        super().__init__()
        if (num_classes is None) == (out_features is None):
            raise ValueError(
                "num_classes, out_features: expected one of them, num_classes to classify or "
                f"out_features for regression, got {num_classes} and {out_features}"
            )
        classify = num_classes is not None
        default = "categorical" if classify else "normal"
        self.likelihood = as_likelihood(default if likelihood is None else likelihood)
        each = tuple(getattr(self.likelihood, "parameter_shape", ()))
        self.event_shape: tuple[int, ...] = ()
        if classify:
            self.parameter_shape: tuple[int, ...] = (positive_int("num_classes", num_classes),)
        else:
            self.event_shape = (positive_int("out_features", out_features),)
            self.parameter_shape = (*self.event_shape, *each)
        extra = len(self.parameter_shape) - len(self.event_shape)
        if extra != self.likelihood.parameter_dim or (classify and each):
            raise ValueError(
                "likelihood: expected one for "
                f"{'classes' if classify else 'numbers; to classify give num_classes'}, got "
                f"{type(self.likelihood).__name__}"
            )
        self.event_dim = len(self.event_shape) + sequence

    @property
    def size(self) -> int:
        """How many numbers a network puts out."""
        size = 1
        for width in self.parameter_shape:
            size *= width
        return size

    def forward(self, h: Tensor) -> TorchDistribution:
        """The law of the target for each of ``[*, size]``."""
        parameters = h.reshape((*h.shape[:-1], *self.parameter_shape))
        law: TorchDistribution = self.likelihood(parameters, self.event_dim)
        return law

    def check(self, inputs: Tensor, targets: Tensor | None, num_data: int | None) -> None:
        """Raises ValueError if targets cannot be scored, or there are more than ``num_data``."""
        if targets is None:
            return
        dtype = self.likelihood.data_dtype(inputs.dtype)
        check_data(targets, self.event_shape, dtype, name="y")
        batch = targets.shape[: targets.dim() - len(self.event_shape)]
        if batch != inputs.shape[:-1]:
            raise ValueError(
                f"y: expected a target for each input, batch shape {list(inputs.shape[:-1])}, got "
                f"{list(batch)}"
            )
        if num_data is not None and len(targets) > num_data:
            raise ValueError(
                f"y: expected at most num_data={num_data} targets, got {len(targets)}; num_data is "
                "the size of the whole data set"
            )
        self.likelihood.check_support(targets, self.parameter_shape, "y")

    def observe(self, h: Tensor, targets: Tensor | None, num_data: int | None) -> Any:
        """Samples site ``"y"`` in plate ``"data"``; the event of a sequence ends before it."""
        fn = self(h)
        size = fn.batch_shape[-1]
        full = size if num_data is None or targets is None else num_data
        with pyro.plate("data", full, subsample_size=size, dim=-1):
            return pyro.sample("y", fn, obs=targets)


def positive_int(name: str, value: Any) -> int:
    """Returns ``value`` if it is a positive integer.

    Raises:
        ValueError: otherwise.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value
