"""Objectives that carry tensors, such as persistent chains, from one step to the next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrogen.losses._scoring import ScoringELBO

__all__ = ["StatefulELBO"]

Carried = dict[str, Tensor]


class StatefulELBO(ScoringELBO):
    """An objective that carries tensors from one gradient step to the next.

    A gradient step is a pure function :meth:`step` of what was carried, which returns what to carry
    on. So it can be captured as a graph, and what is carried belongs into a checkpoint.

    Attributes:
        carried: what the next step starts from.
    """

    progress: ClassVar[tuple[str, ...]] = (*ScoringELBO.progress, "carried")

    def __init__(self, elbo: Any = None) -> None:
        super().__init__(elbo)
        self.carried: Carried = {}

    @property
    def ahead(self) -> int:
        """How many times :meth:`advance` is to be called before :meth:`step`."""
        return 0

    @abstractmethod
    def start(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Makes what the first step starts from; does nothing if that is there."""

    @abstractmethod
    def advance(
        self, carried: Mapping[str, Tensor], model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Carried:
        """A part of a long step, without gradient."""

    def carry(self, carried: Mapping[str, Tensor]) -> None:
        """Takes over what a step returned."""
        self.carried = dict(carried)

    def step(
        self,
        method: Callable[..., Any],
        carried: Mapping[str, Tensor],
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, Carried]:
        """What a method of the ELBO returns, and what to carry on."""
        following = dict(carried)
        score = partial(self.score_and_carry, following)
        return self.in_place(method, model, guide, args, kwargs, score), following

    @abstractmethod
    def score_and_carry(self, carried: Carried, name: str, fn: Any, value: Tensor) -> Tensor:
        """What stands for the log-density; entries of ``carried`` are replaced by what to carry on,
        never changed in place."""

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """As :meth:`score_and_carry`, of which nothing is carried on."""
        return self.score_and_carry(dict(self.carried), name, fn, value)

    def gone_ahead(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Carried:
        """What is carried when :meth:`step` is due."""
        self.start(model, guide, args, kwargs)
        carried = self.carried
        for _ in range(self.ahead):
            carried = self.advance(carried, model, guide, args, kwargs)
        return carried

    def loss(self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The estimate, without gradient; nothing is carried on from it."""
        carried = self.gone_ahead(model, guide, args, kwargs)
        result, _ = self.step(self.elbo.loss, carried, model, guide, args, kwargs)
        return self.finite(result, model, guide, args, kwargs)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The estimate as a tensor with a gradient."""
        carried = self.gone_ahead(model, guide, args, kwargs)
        result, carried = self.step(
            self.elbo.differentiable_loss, carried, model, guide, args, kwargs
        )
        if torch.is_grad_enabled():
            self.steps += 1
            self.carry(carried)
        return result

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The estimate; its gradient is added to the parameters."""
        carried = self.gone_ahead(model, guide, args, kwargs)
        result, carried = self.step(self.elbo.loss_and_grads, carried, model, guide, args, kwargs)
        self.finite(result, model, guide, args, kwargs)
        self.steps += 1
        self.carry(carried)
        return result
