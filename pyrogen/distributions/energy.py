r"""Densities that are known up to a constant.

An energy tilts a base distribution,

.. math:: p(x) = \frac{1}{Z}\, p_0(x)\, e^{-E(x)}, \qquad
   Z = \mathbb{E}_{p_0}\!\left[e^{-E(x)}\right],

and nobody knows :math:`Z`. What needs :math:`p` up to a constant may use it: Markov chain Monte
Carlo with fixed parameters, contrastive divergence, score matching. What would use it as if
:math:`Z` were 1 would be wrong without a sign: an ELBO would train the energy to be low everywhere.
So :meth:`EnergyBased.log_prob` answers only where a constant does not matter.

References:
    Y. LeCun, S. Chopra, R. Hadsell, M. Ranzato, F. J. Huang, *A tutorial on energy-based learning*,
    2006. B. Pang, T. Han, E. Nijkamp, S.-C. Zhu, Y. N. Wu, *Learning latent space energy-based
    prior model*, 2020, arXiv:2006.08205.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor, nn
from torch.distributions import biject_to, constraints

from pyrogen.modes import constants_are_free, up_to_a_constant
from pyrogen.transforms._moved import tensors

__all__ = ["EnergyBased", "unnormalized"]


class EnergyBased(TorchDistribution):
    r"""An energy that tilts a base distribution, :math:`p(x) \propto p_0(x)\, e^{-E(x)}`.

    Args:
        energy: ``[n, *event_shape] -> [n]`` (or ``[n, 1]``), a function or a module; with a context
            ``([n, *event_shape], [n, features]) -> [n]``.
        base: :math:`p_0`, whose event, batch and support are those of the result. An
            ``ImproperUniform`` leaves the energy alone.
        context: ``[*batch, features]``, what the energy is conditional on.
        sampler: draws, ``(distribution, sample_shape) -> [*sample_shape, *batch, *event_shape]``,
            such as :class:`pyrogen.kernels.ShortRun`. Without it there is no sampling.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if the log-density is asked for where its constant matters, if there is no
            sampler to draw with, or if the energy returns another shape.

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> tilted = EnergyBased(lambda x: 1.5 * x.square().sum(-1), base)
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> density = tilted.unnormalized_log_prob(x)
        >>> float(density[0] - density[1])  # that of a normal distribution of variance 1/4
        2.0
        >>> tilted.log_prob(x)
        Traceback (most recent call last):
        ...
        ValueError: expected a normalised density, got an energy, known up to a constant. ...
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        energy: Callable[..., Tensor],
        base: TorchDistribution,
        context: Tensor | None = None,
        sampler: Callable[[EnergyBased, Size], Tensor] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.energy = energy
        self.base = base
        self.context = context
        self.sampler = sampler
        super().__init__(self._own_batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def _own_batch_shape(self) -> Size:
        shape: Size = self.base.batch_shape
        if self.context is not None:
            shape = torch.broadcast_shapes(shape, self.context.shape[:-1])
        return shape

    @property
    def support(self) -> Any:
        """That of the base."""
        return self.base.support

    @property
    def is_conditional(self) -> bool:
        """Whether points of the batch have densities of their own."""
        return len(self._own_batch_shape) > 0

    def energy_at(self, value: Tensor) -> Tensor:
        """The energy ``E(x)``, of shape ``[*sample, *batch]``, of ``[*sample, *batch, *event]``."""
        split = value.dim() - len(self.event_shape)
        if split < 0 or value.shape[split:] != self.event_shape:
            raise ValueError(
                f"value: expected events of shape {list(self.event_shape)}, got shape "
                f"{list(value.shape)}"
            )
        shape = value.shape[:split]
        inputs = [value.reshape((-1, *self.event_shape))]
        if self.context is not None:
            shape = torch.broadcast_shapes(shape, self.batch_shape)
            full = value.expand((*shape, *self.event_shape))
            context = self.context.expand((*shape, self.context.shape[-1]))
            inputs = [full.reshape((-1, *self.event_shape)), context.flatten(0, -2)]
        energy: Tensor = self.energy(*inputs)
        if energy.shape not in {(len(inputs[0]),), (len(inputs[0]), 1)}:
            raise ValueError(
                f"energy: expected one number for each of {len(inputs[0])} points, got shape "
                f"{list(energy.shape)}"
            )
        return energy.reshape(shape)

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """The log-density but for its constant, ``log p0(x) - E(x)``, ``[*sample, *batch]``."""
        density: Tensor = self.base.log_prob(value) - self.energy_at(value)
        return density

    def log_prob(self, value: Tensor) -> Tensor:
        """As :meth:`unnormalized_log_prob`, where the constant does not matter.

        Raises:
            ValueError: where it does.
        """
        if not constants_are_free():
            raise ValueError(
                "expected a normalised density, got an energy, known up to a constant. An ELBO, a "
                "guide, a KL divergence or a leave-one-out estimate would be wrong by log Z. Train "
                "it with losses.ContrastiveDivergence, ScoreMatching or NoiseContrastive; sample "
                "it with pyrogen.kernels; where the parameters are fixed and a constant does not "
                "matter, wrap the model: distributions.unnormalized(model)"
            )
        if self._validate_args:
            self._validate_sample(value)
        density = self.unnormalized_log_prob(value)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws by the sampler, ``[*sample_shape, *batch, *event]``.

        Raises:
            ValueError: if there is none.
        """
        shape = Size(sample_shape)
        with torch.no_grad():
            if self.sampler is not None:
                return self.sampler(self, shape)
            if constants_are_free():  # inference needs a point to start from
                return self.initial_point(shape)
        raise ValueError(
            "expected a sampler, got none: an energy has no draws of its own. Give "
            "EnergyBased(..., sampler=kernels.ShortRun(kernels.Langevin(step_size=0.01), "
            "num_steps=100)), or draw with kernels.MCMC"
        )

    def initial_point(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Where a chain may start: a draw of the base, or of its support if that is improper."""
        try:
            start: Tensor = self.base.expand(self.batch_shape).sample(Size(sample_shape))
        except NotImplementedError:
            transform = biject_to(self.support)
            shape = transform.inverse_shape(self.shape(Size(sample_shape)))
            start = transform(self.like.new_empty(shape).uniform_(-2, 2))
        return start

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device of draws."""
        known = [*tensors(self.base), *([] if self.context is None else [self.context])]
        if isinstance(self.energy, nn.Module):
            known += self.energy.parameters()
        return next((x for x in known if x.is_floating_point()), torch.empty(0))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> EnergyBased:
        """The same energy for a larger batch."""
        expanded = copy.copy(self)
        expanded._batch_shape = torch.broadcast_shapes(self.batch_shape, Size(batch_shape))
        return expanded

    def unexpanded(self) -> EnergyBased:
        """The same without the batch dimensions that plates gave it: those where points of the
        batch have densities of their own stay."""
        single = copy.copy(self)
        single._batch_shape = self._own_batch_shape
        return single


def unnormalized(model: Callable[..., Any]) -> Callable[..., Any]:
    r"""The model with its :class:`EnergyBased` sites scored without their constant.

    For inference that needs the density up to a constant, with fixed parameters: Pyro's own
    ``HMC(unnormalized(model))``, importance sampling, or an ELBO of a guide, which then is a bound
    on :math:`\log Z`. This library's kernels need no such word.

    Args:
        model: a Pyro model.

    Returns:
        a model with the same arguments.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        ...     pyro.sample("x", EnergyBased(lambda x: x.square().sum(-1), base))
        >>> trace = pyro.poutine.trace(unnormalized(model)).get_trace()
        >>> bool(trace.log_prob_sum().isfinite())
        True
    """
    wrapped: Callable[..., Any] = _UpToAConstant()(model)
    return wrapped


class _UpToAConstant(Messenger):
    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if isinstance(innermost(msg["fn"]), EnergyBased):
            msg["fn"] = _Unnormalized(msg["fn"])


def innermost(fn: Any) -> Any:
    """The distribution inside masks, plates and event dimensions."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


class _Unnormalized(TorchDistribution):
    """A distribution that is scored without its constant."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, base_dist: Any) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def log_prob(self, value: Tensor) -> Tensor:
        with up_to_a_constant():
            density: Tensor = self.base_dist.log_prob(value)
        return density

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        with up_to_a_constant():
            drawn: Tensor = self.base_dist.sample(Size(sample_shape))
        return drawn

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _Unnormalized:
        return _Unnormalized(self.base_dist.expand(Size(batch_shape)))
