r"""Any ELBO, run as one compiled graph.

A gradient step of stochastic variational inference minimises

.. math:: \mathcal{L}(\theta, \phi)
   = -\mathbb{E}_{q_\phi(z|x)}[\log p_\theta(x, z) - \log q_\phi(z|x)],

or a bound like it, whose estimate an ELBO of Pyro interprets site by site. :class:`Compiled`
captures that estimate and its gradient as one graph (:mod:`pyrogen.graph`) and runs the graph.
"""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrogen.checks import check_pair, nonfinite_site
from pyrogen.errors import NonFiniteError
from pyrogen.graph import Captured
from pyrogen.losses._scoring import ScoringELBO
from pyrogen.losses._stateful import StatefulELBO

__all__ = ["Compiled"]

Program = Callable[..., Any]
_MANY_PAIRS = 16
# Compiled already, or with a gradient but no loss.
_REFUSED = (JitTrace_ELBO, JitTraceGraph_ELBO, JitTraceEnum_ELBO, TraceTailAdaptive_ELBO)


class Compiled(ELBO):
    r"""Runs ``elbo`` and its gradient as one compiled graph.

    It stands wherever an ELBO stands: ``SVI(model, guide, optim, loss=Compiled(elbo))``, or
    ``Compiled(elbo)(model, guide)`` as a module to be minimised by any torch optimiser. Loss,
    gradient and noise are those of ``elbo`` under the same seed, to rounding. The first call with
    each shape takes some seconds: it runs the pair under Pyro's validation, captures and compiles.

    Args:
        elbo: ``Trace_ELBO``, ``TraceMeanField_ELBO``, ``TraceEnum_ELBO``, ``TraceGraph_ELBO``,
            ``RenyiELBO``, ``ReweightedWakeSleep``, or another objective with their interface, in
            any number of particles (vectorise many: a loop over particles is unrolled).
        compile: ``False`` runs the captured graph operation by operation, to look for faults.

    Raises:
        GraphError: at the first call, if the structure of the programs depends on values.
        ValueError: at the first call, if the sites of model and guide do not match.
        NonFiniteError: if the loss is infinite or NaN, with the name of the site and the number of
            this object's gradient steps so far.

    Shapes: the loss is a scalar, in nats, summed over the data and scaled by plates as Pyro does.

    Note:
        The programs run uncompiled while a handler of the caller's surrounds the call (such as
        ``poutine.trace``), because the handler must see every site.

    References:
        Ranganath, Gerrish, Blei, *Black Box Variational Inference*, 2014 (arXiv:1401.0118).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> pyro.set_rng_seed(0)
        >>> x = 3.0 + torch.randn(100)
        >>> guide = AutoNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=Compiled(Trace_ELBO()))
        >>> losses = [svi.step(x) for _ in range(500)]
        >>> abs(float(guide.median()["mean"]) - float(x.mean())) < 0.1
        True
    """

    def __init__(self, elbo: ELBO, compile: bool = True) -> None:
        name = type(elbo).__name__
        if not isinstance(elbo, ELBO) or isinstance(elbo, (Compiled, *_REFUSED)):
            raise TypeError(
                f"Compiled: expected an uncompiled ELBO, such as Trace_ELBO(), got {name}"
            )
        super().__init__(num_particles=elbo.num_particles)
        self.elbo: Any = elbo
        self.compile = compile
        self._steps = 0
        self._pairs: dict[Any, _Pair] = {}

    @property
    def carried(self) -> dict[str, Tensor]:
        """What the objective carries from step to step, such as persistent chains."""
        return getattr(self.elbo, "carried", {})

    def carry(self, carried: Mapping[str, Tensor]) -> None:
        """Goes on from ``carried``."""
        self.elbo.carry(carried)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The estimate, without gradient, as a float (or what ``elbo`` returns in its place)."""
        if _is_watched():
            return self.elbo.loss(model, guide, *args, **kwargs)
        pair = self._pair(model, guide)
        return self._finite(pair, pair.value(args, kwargs), args, kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The estimate as a float; its gradient is added to the ``grad`` of each parameter."""
        if _is_watched():
            return self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        pair = self._pair(model, guide)
        loss, leaves, gradients = pair.value_and_grad(args, kwargs)
        loss = self._finite(pair, loss, args, kwargs)
        self._steps += 1
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if not leaf.is_leaf:  # an argument that was computed from other parameters
                leaf.backward(gradient)
            elif leaf.grad is None:
                leaf.grad = gradient
            else:
                leaf.grad.add_(gradient)  # in place, as autograd accumulates
        pair.announce(leaves)
        return loss

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The estimate as a scalar tensor with a gradient (of first order)."""
        if _is_watched():
            loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            return loss
        pair = self._pair(model, guide)
        if not torch.is_grad_enabled():
            value = pair.value(args, kwargs)
            self._finite(pair, value, args, kwargs)
            return torch.as_tensor(value)
        value, leaves, gradients = pair.value_and_grad(args, kwargs)
        self._finite(pair, value, args, kwargs)
        self._steps += 1
        differentiable: Tensor = _WithGradient.apply(value, gradients, *leaves)
        return differentiable

    def _pair(self, model: Program, guide: Program) -> _Pair:
        key = _identity(model), _identity(guide)
        pair = self._pairs.get(key)
        if pair is None or pair.options != _options(self.elbo):
            if len(self._pairs) == _MANY_PAIRS:
                warnings.warn(
                    f"Compiled was given {_MANY_PAIRS} pairs of programs and compiles each; wrap a "
                    "model or guide in its handlers once, not at every call",
                    RuntimeWarning,
                    stacklevel=4,
                )
            kind = _StatefulPair if isinstance(self.elbo, StatefulELBO) else _Pair
            pair = self._pairs[key] = kind(self.elbo, model, guide, self.compile)
        return pair

    def _finite(
        self, pair: _Pair, loss: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """``loss`` in Python numbers, or an error that names the site."""
        parts = loss if isinstance(loss, tuple) else (loss,)
        numbers = tuple(float(part) for part in parts)
        if not all(map(math.isfinite, numbers)):
            site = nonfinite_site(pair.model, pair.guide, args, kwargs)
            suspects = getattr(self.elbo, "suspects", "their sum")
            where = f"site {site!r}" if site else f"no single site ({suspects})"
            raise NonFiniteError(
                f"step {self._steps}: the loss is {loss}; not finite at {where}. Look at the data "
                "of that site, lower the learning rate, or bound its parameters",
                site,
                self._steps,
            )
        return numbers if isinstance(loss, tuple) else numbers[0]

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": {}}  # graphs are made anew where they are needed


class _Pair:
    """A model and a guide, with the graphs of their loss."""

    def __init__(self, elbo: Any, model: Program, guide: Program, compile: bool) -> None:
        self.model, self.guide = model, guide
        self.options = _options(elbo)
        # A copy of its own: Pyro keeps the plate depth of one pair on the object.
        self._elbo = copy.copy(elbo)
        if isinstance(elbo, ScoringELBO):
            self._elbo.elbo = copy.copy(elbo.elbo)
        self._compile = compile
        self._loss = self._captured(self._bound("loss"), self._prepare)
        self._run = self._bound("loss_and_grads")
        self._loss_and_grads = self._captured(self._run, self._prepare_gradient)
        self._names: set[str] = set()
        self._trained: set[int] = set()

    def value(self, args: Any, kwargs: Any) -> Any:
        """The estimate."""
        return self._loss(*args, **kwargs)

    def value_and_grad(self, args: Any, kwargs: Any) -> tuple[Any, list[Tensor], Any]:
        """The estimate, the parameters that it depends on, and its gradient in them."""
        return self._loss_and_grads.value_and_grad(*args, **kwargs)

    def _captured(self, function: Callable[..., Any], prepare: Callable[..., Any]) -> Captured:
        return Captured(function, prepare, self._compile)

    def _bound(self, name: str) -> Callable[..., Any]:
        """A method of the objective as a pure function of its arguments."""
        elbo, model, guide = self._elbo, self.model, self.guide
        if isinstance(elbo, ScoringELBO):
            method = getattr(elbo.elbo, name)
            return lambda *args, **kwargs: elbo.in_place(method, model, guide, args, kwargs)
        method = getattr(elbo, name)
        return lambda *args, **kwargs: method(model, guide, *args, **kwargs)

    def announce(self, leaves: Sequence[Tensor]) -> None:
        """Sends the ``param`` messages of the pair, by which ``SVI`` learns what to optimise."""
        if not _PYRO_STACK:
            return
        store = pyro.get_param_store()
        for i, leaf in enumerate(leaves):
            name = store.param_name(leaf)
            if name in self._names or (name is None and id(leaf) in self._trained):
                value = leaf.detach()
                value.unconstrained = weakref.ref(leaf)  # type: ignore[attr-defined]
                name = name or f"parameter {i}"
                effectful(_Constant(value), type="param")(name, name=name)

    def _prepare(self, *args: Any, **kwargs: Any) -> None:
        """Raises the user's errors, in Pyro's words or ours."""
        with torch.no_grad():
            check_pair(self.model, self.guide, args, kwargs)

    def _prepare_gradient(self, *args: Any, **kwargs: Any) -> None:
        """Besides, runs as Pyro does: to create lazy parameters, and to see which are announced."""
        self._prepare(*args, **kwargs)
        with poutine.trace(param_only=True) as seen, _WithoutBackward():
            self._run(*args, **kwargs)
        self._names = set(seen.trace.nodes)
        values = [site["value"] for site in seen.trace.nodes.values()]
        self._trained = {id(getattr(x, "unconstrained", lambda x=x: x)()) for x in values}


class _StatefulPair(_Pair):
    """A pair whose objective carries tensors from step to step: arguments and results of graphs."""

    def __init__(self, elbo: Any, model: Program, guide: Program, compile: bool) -> None:
        super().__init__(elbo, model, guide, compile)
        self._owner = elbo
        copied = self._elbo
        self._advance = self._captured(
            lambda carried, *args, **kwargs: copied.advance(carried, model, guide, args, kwargs),
            self._prepare,
        )

    def value(self, args: Any, kwargs: Any) -> Any:
        loss, _ = self._loss(self._gone_ahead(args, kwargs), *args, **kwargs)
        return loss

    def value_and_grad(self, args: Any, kwargs: Any) -> tuple[Any, list[Tensor], Any]:
        carried = self._gone_ahead(args, kwargs)
        (loss, carried), leaves, gradients = self._loss_and_grads.value_and_grad(
            carried, *args, **kwargs
        )
        self._owner.carry(carried)
        return loss, leaves, gradients

    def _gone_ahead(self, args: Any, kwargs: Any) -> Any:
        self._owner.start(self.model, self.guide, args, kwargs)
        carried = self._owner.carried
        for _ in range(self._owner.ahead):
            carried = self._advance(carried, *args, **kwargs)
        return carried

    def _bound(self, name: str) -> Callable[..., Any]:
        elbo, model, guide = self._elbo, self.model, self.guide
        method = getattr(elbo.elbo, name)
        return lambda carried, *args, **kwargs: elbo.step(
            method, carried, model, guide, args, kwargs
        )

    def _prepare(self, carried: Any, *args: Any, **kwargs: Any) -> None:
        super()._prepare(*args, **kwargs)


class _WithoutBackward(TorchFunctionMode):
    """Inside, ``backward`` does nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return None if func is Tensor.backward else func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Constant:
    value: Tensor

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.value


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *leaves: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("backward was called twice on a compiled loss; call the loss again")
        # The usual scale is 1. Reading it is free on a CPU; elsewhere it would wait for the device.
        if scale.device.type != "cpu" or float(scale) != 1.0:
            gradients = tuple(torch._foreach_mul(gradients, scale))
        return None, None, *gradients


def _options(elbo: ELBO) -> dict[str, Any]:
    progress = getattr(elbo, "progress", ())
    return {name: value for name, value in vars(elbo).items() if name not in progress}


def _identity(program: Program) -> tuple[int, ...]:
    """A method is a new object each time it is looked up; its owner and function are not."""
    if isinstance(program, MethodType):
        return id(program.__self__), id(program.__func__)
    return (id(program),)


def _is_watched() -> bool:
    """Whether a handler other than SVI's own search for parameters surrounds the call."""
    return any(not getattr(handler, "param_only", False) for handler in _PYRO_STACK)
