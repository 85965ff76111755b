r"""Densities that are known by their scores, at every level of noise.

A linear process turns data at time 0 into noise at time 1, :math:`x_t = \alpha x_0 + \sigma
\epsilon`. A network that removes noise knows the score :math:`s(x, t) = \nabla_x \log p_t(x)`, by
Tweedie's formula

.. math:: \mathbb{E}[x_0 \mid x_t] = \frac{x_t + \sigma^2 s(x_t, t)}{\alpha} ,

and the score drives the ordinary differential equation of the probability flow back from noise to
data. That flow is a bijection, so draws have a density, the one that :meth:`ScoreBased.log_prob`
returns:

.. math:: \frac{dx}{dt} = v(x, t) = f x - \tfrac12 g^2 s(x, t), \qquad
   \log p(x) = \log p_{t_1}(x_{t_1}) + \int_{t_0}^{t_1} \nabla \cdot v(x_t, t)\, dt .

It begins at a small time :math:`t_0`, since the score of data on a surface is infinite at 0: the
density is that of data under the noise that they have then.

References:
    Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
    2021, arXiv:2011.13456. J. Ho, T. Salimans, *Classifier-free diffusion guidance*, 2022,
    arXiv:2207.12598.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyrogen.processes import LinearProcess, convert
from pyrogen.processes.parametrization import check_parametrization
from pyrogen.processes.process import as_time
from pyrogen.transforms import ContinuousFlow
from pyrogen.transforms._moved import moved, tensors

__all__ = ["ScoreBased"]

_EXACT_UP_TO = 64  # dimensions in which the exact trace is worth its price
_LOST_AT_THE_START = 0.05  # of the data, by processes that begin with a little noise


class ScoreBased(TorchDistribution):
    r"""The law of data that a denoising network has learned.

    Args:
        process: how data become noise.
        denoiser: ``([n, *event_shape], [n]) -> [n, *event_shape]`` of the state and its time, a
            function or a module; with a context
            ``([n, *event_shape], [n], [n, features]) -> [n, *event_shape]``.
        event_shape: shape of one event; an integer ``n`` means ``(n,)``.
        prediction: what the network predicts: ``"noise"``, ``"data"``, ``"score"``,
            ``"velocity"`` or ``"v"``; see :func:`pyrogen.processes.convert`.
        context: ``[*batch, features]``, what the law is conditional on.
        guidance_scale: :math:`w` of classifier-free guidance: the prediction is
            :math:`\mathrm{net}(x, t, 0) + w\,[\mathrm{net}(x, t, c) - \mathrm{net}(x, t, 0)]`; 1
            is the conditional law itself. The context 0 stands for none: train with
            ``context_dropout``.
        min_time: :math:`t_0`, where the flow begins.
        max_time: :math:`t_1`, where the flow ends.
        terminal: the law of one event at ``max_time``; by default :math:`N(0, \sigma^2(t_1))`.
        trace: ``"exact"`` or ``"hutchinson"`` divergence; by default exact in up to 64 dimensions.
            Hutchinson's makes log-densities random, without bias.
        method: the flow's solver; see :class:`pyrogen.transforms.ContinuousFlow`. Densities of an
            adaptive one cannot be captured in a graph: kernels that need them take
            ``compile=False``.
        atol: absolute tolerance of an adaptive solver, per step and element.
        rtol: relative tolerance, likewise.
        steps: how many steps a solver of fixed steps takes.
        max_steps: how many steps an adaptive solver may take.
        sampler: draws, ``(distribution, sample_shape) -> [*sample_shape, *batch, *event_shape]``,
            such as :class:`pyrogen.kernels.ReverseDiffusion`. By default the probability flow,
            whose draws have the very density that is returned.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        TypeError: if the process is not linear, or the denoiser cannot be called.
        ValueError: for an unknown prediction, times that are not ``0 <= min_time < max_time``, a
            process that does not begin with data, sizes that are not positive, a context that is
            not ``[*batch, features]``, guidance without a context; on call, for times out of range
            or if the network returns another shape.

    Example:
        >>> from pyrogen.processes import VariancePreserving
        >>> def noise(x, t):  # the best prediction for standard normal data
        ...     return VariancePreserving().std(t).unsqueeze(-1) * x
        >>> fn = ScoreBased(VariancePreserving(), noise, event_shape=2)
        >>> fn.log_prob(torch.zeros(2)).round(decimals=3)  # -log(2 pi)
        tensor(-1.8380)
        >>> fn.score(torch.ones(2), 0.5)
        tensor([-1., -1.])
        >>> fn.sample((5,)).shape
        torch.Size([5, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        process: LinearProcess,
        denoiser: Callable[..., Tensor],
        event_shape: int | Sequence[int],
        prediction: str = "noise",
        context: Tensor | None = None,
        guidance_scale: float = 1.0,
        min_time: float = 1e-5,
        max_time: float = 1.0,
        terminal: TorchDistribution | None = None,
        trace: str | None = None,
        method: str = "dopri5",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        steps: int | None = None,
        max_steps: int = 1000,
        sampler: Callable[[ScoreBased, Size], Tensor] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check(process, denoiser, prediction, min_time, max_time)
        _check_context(context)
        if guidance_scale != 1 and context is None:
            raise ValueError(
                f"guidance_scale: expected 1 without a context, got {guidance_scale}; guidance "
                "compares the network with a context and without"
            )
        self.process = process
        self.denoiser = denoiser
        self.prediction = prediction
        self.context = context
        self.guidance_scale = float(guidance_scale)
        self.min_time, self.max_time = float(min_time), float(max_time)
        self.sampler = sampler
        shape = Size((event_shape,) if isinstance(event_shape, int) else event_shape)
        if any(size < 1 for size in shape):
            raise ValueError(f"event_shape: expected positive sizes, got {list(shape)}")
        if terminal is not None and (terminal.batch_shape, terminal.event_shape) != (Size(), shape):
            raise ValueError(
                f"terminal: expected batch shape [] and event shape {list(shape)}, got "
                f"{list(terminal.batch_shape)} and {list(terminal.event_shape)}"
            )
        self._terminal = terminal
        self._flow_options = {"method": method, "atol": atol, "rtol": rtol, "steps": steps}
        self._flow_options["max_steps"] = max_steps
        self._flow_options["trace"] = trace or (
            "exact" if math.prod(shape) <= _EXACT_UP_TO else "hutchinson"
        )
        batch = Size() if context is None else context.shape[:-1]
        super().__init__(batch, shape, validate_args=validate_args)
        self._check_start()

    @property
    def support(self) -> Any:
        """The whole space."""
        dims = len(self.event_shape)
        return constraints.independent(constraints.real, dims) if dims else constraints.real

    @property
    def is_conditional(self) -> bool:
        """Whether points of the batch have laws of their own."""
        return self.context is not None and self.context.dim() > 1

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device of draws."""
        known = [] if self.context is None else [self.context]
        for part in (self.denoiser, self.process):
            if isinstance(part, nn.Module):
                known += [*part.parameters(), *part.buffers()]
        if self._terminal is not None:
            known += tensors(self._terminal)
        return next((x for x in known if x.is_floating_point()), torch.empty(0))

    def predict(self, x: Tensor, t: Any, target: str) -> Tensor:
        """What the network says of ``x`` at time ``t``.

        Args:
            x: ``[*sample, *batch, *event]``.
            t: a number, or a tensor that broadcasts against ``[*sample, *batch]``.
            target: ``"noise"``, ``"data"``, ``"score"``, ``"velocity"`` or ``"v"``.

        Returns:
            the shape of ``x`` (with the batch dimensions of a context).
        """
        x, t = self._expanded(x), as_time(t, x)
        self._check_time(t)
        if t.dim():
            t = t.expand(x.shape[: x.dim() - len(self.event_shape)])
        return convert(self.process, self.raw(x, t), x, t, self.prediction, target)

    def raw(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network returns (with guidance), unconverted; arguments as for
        :meth:`predict`."""
        x = self._expanded(x)
        shape = x.shape[: x.dim() - len(self.event_shape)]
        if self.context is None:
            return self._called(x, t, shape, None)
        context = self.context.expand((*shape, self.context.shape[-1]))
        conditional = self._called(x, t, shape, context)
        if self.guidance_scale == 1:
            return conditional
        free = self._called(x, t, shape, torch.zeros_like(context))
        return free + self.guidance_scale * (conditional - free)

    def score(self, x: Tensor, t: Any) -> Tensor:
        """The gradient of the log-density at time ``t``; arguments as for :meth:`predict`."""
        return self.predict(x, t, "score")

    def denoise(self, x: Tensor, t: Any) -> Tensor:
        """The mean of the data given a state; arguments as for :meth:`predict`."""
        return self.predict(x, t, "data")

    def velocity(self, x: Tensor, t: Any) -> Tensor:
        """``dx/dt`` of the probability flow; arguments as for :meth:`predict`."""
        return self.predict(x, t, "velocity")

    def terminal(self) -> TorchDistribution:
        """The law at ``max_time``, over one event, where draws are: a module does not move it."""
        like = self.like
        if self._terminal is not None:
            return moved(
                self._terminal, lambda x: x.to(like if x.is_floating_point() else like.device)
            )
        std = self.process.std(torch.tensor(self.max_time, dtype=like.dtype, device=like.device))
        zeros = std.new_zeros(self.event_shape)
        joined: TorchDistribution = dist.Normal(zeros, std).to_event(len(self.event_shape))
        return joined

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of draws of the probability flow, in nats, ``[*sample, *batch]``.

        Differentiable in the value and the parameters.
        """
        if self._validate_args:
            self._validate_sample(value)
        x = self._expanded(value)
        if _is_one_of_many(x) and not _is_one_of_many(self.context):
            together: Tensor = _Together.apply(x, self)[0]
            return together
        noise, log_det = self.flow().forward_and_log_det(x)
        log_prob: Tensor = self.terminal().log_prob(noise) + log_det
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws, ``[*sample_shape, *batch, *event]``."""
        shape = Size(sample_shape)
        with torch.no_grad():
            if self.sampler is not None:
                return self.sampler(self, shape)
            noise = self.terminal().sample(shape + self.batch_shape)
            return self.flow().inverse_value(noise)

    def flow(self) -> ContinuousFlow:
        """The bijection from the law of data (at ``min_time``) to that of noise."""
        return ContinuousFlow(_Velocity(self), len(self.event_shape), **self._flow_options)  # type: ignore[arg-type]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ScoreBased:
        """The same law for a larger batch."""
        expanded = copy.copy(self)
        expanded._batch_shape = torch.broadcast_shapes(self.batch_shape, Size(batch_shape))
        return expanded

    def with_context(self, context: Tensor | None, guidance_scale: float = 1.0) -> ScoreBased:
        """The same network with another context, ``[*batch, features]``."""
        _check_context(context)
        other = copy.copy(self)
        other.context, other.guidance_scale = context, guidance_scale
        other._batch_shape = (
            self.batch_shape
            if context is None
            else torch.broadcast_shapes(self.batch_shape, context.shape[:-1])
        )
        return other

    def _expanded(self, x: Tensor) -> Tensor:
        """Values with the batch dimensions that they and the context have together."""
        split = x.dim() - len(self.event_shape)
        if split < 0 or x.shape[split:] != self.event_shape:
            raise ValueError(
                f"value: expected events of shape {list(self.event_shape)}, got shape "
                f"{list(x.shape)}"
            )
        if self.context is None:
            return x
        shape = torch.broadcast_shapes(x.shape[:split], self.context.shape[:-1])
        return x.expand((*shape, *self.event_shape))

    def _check_start(self) -> None:
        if is_validation_enabled():
            kept = float(self.process.mean_scale(self.like.new_zeros(())).detach())
            if abs(kept - 1) > _LOST_AT_THE_START:
                raise ValueError(
                    f"process: expected mean_scale(0) = 1, as data stand at time 0, got {kept:g}"
                )

    def _check_time(self, t: Tensor) -> None:
        if is_validation_enabled() and bool(((t < 0) | (t > self.max_time * (1 + 1e-6))).any()):
            raise ValueError(
                f"t: expected times from 0 (data) to {self.max_time:g} (noise), got "
                f"{float(t.min()):g} to {float(t.max()):g}"
            )

    def _called(self, x: Tensor, t: Tensor, shape: Size, context: Tensor | None) -> Tensor:
        flat = x.reshape((-1, *self.event_shape))
        inputs = [flat, t.expand(shape).reshape(-1)]
        if context is not None:
            inputs.append(context.reshape((-1, context.shape[-1])))
        result = self.denoiser(*inputs)
        if result.shape != flat.shape:
            raise ValueError(
                f"denoiser: expected the shape of its first argument, {list(flat.shape)}, got "
                f"{list(result.shape)}"
            )
        return result.reshape(x.shape)


class _Velocity(nn.Module):
    """The probability flow in a time that runs from 0 to 1."""

    def __init__(self, fn: ScoreBased) -> None:
        super().__init__()
        self._fn = fn
        self._parts = nn.ModuleList(
            part for part in (fn.denoiser, fn.process) if isinstance(part, nn.Module)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        start, duration = self._fn.min_time, self._fn.max_time - self._fn.min_time
        return duration * self._fn.velocity(x, start + duration * t)


def _is_one_of_many(x: Tensor | None) -> bool:
    """Whether ``vmap`` holds the batch, in which no solver can choose its steps."""
    return x is not None and torch._C._functorch.is_batchedtensor(x)


class _Together(torch.autograd.Function):
    """The log-density where ``vmap`` has split a batch: solved for the batch, as ever. Its gradient
    is that in the value."""

    @staticmethod
    def forward(x: Tensor, fn: ScoreBased) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            log_prob = fn.log_prob(at)
            (gradient,) = torch.autograd.grad(log_prob.sum(), at)
        return log_prob.detach(), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dims = len(inputs[1].event_shape)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, weight: Tensor, _: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * weight.reshape(weight.shape + (1,) * ctx.dims), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, fn: ScoreBased
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The batch in front."""
        dim = in_dims[0]
        return _Together.apply(x.movedim(0 if dim is None else dim, 0), fn), (0, 0)


def _check(process: Any, denoiser: Any, prediction: str, min_time: float, max_time: float) -> None:
    if not isinstance(process, LinearProcess):
        raise TypeError(f"process: expected a LinearProcess, got {type(process).__name__}")
    if not callable(denoiser):
        raise TypeError(f"denoiser: expected a module or a function, got {type(denoiser).__name__}")
    check_parametrization("prediction", prediction)
    if not (0 <= min_time < max_time < math.inf):
        raise ValueError(
            f"expected times 0 <= min_time < max_time, got {min_time!r} and {max_time!r}"
        )


def _check_context(context: Any) -> None:
    if context is not None and not (isinstance(context, Tensor) and context.dim()):
        got = list(context.shape) if isinstance(context, Tensor) else type(context).__name__
        raise ValueError(f"context: expected a tensor of shape [*batch, features], got {got}")
