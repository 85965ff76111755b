r"""Maximum likelihood of an energy, with chains for its gradient.

The gradient of the log-density of :math:`p_\theta(x) \propto p_0(x) e^{-E_\theta(x)}` is a
difference of two means, of the data and of the model,

.. math:: \nabla_\theta \log p_\theta(x) = -\nabla_\theta E_\theta(x)
   + \mathbb{E}_{x^- \sim p_\theta}\!\left[\nabla_\theta E_\theta(x^-)\right].

The second mean is estimated by chains that take a few steps of a kernel. Where they start names the
method: at the data (contrastive divergence, CD-k), where they stood after the last gradient step
(persistent, PCD), or at one of many such places kept in a buffer.

References:
    G. E. Hinton, *Training products of experts by minimizing contrastive divergence*, 2002,
    doi:10.1162/089976602760128018. T. Tieleman, *Training restricted Boltzmann machines using
    approximations to the likelihood gradient*, 2008, doi:10.1145/1390156.1390290. Y. Du,
    I. Mordatch, *Implicit generation and modeling with energy-based models*, 2019,
    arXiv:1903.08689.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyrogen.distributions import EnergyBased
from pyrogen.kernels import Kernel
from pyrogen.kernels._options import whole
from pyrogen.kernels._phase import Phase, initial_position, moved, points
from pyrogen.kernels._target import Target
from pyrogen.losses._scoring import expanded, visit
from pyrogen.losses._stateful import Carried, StatefulELBO

__all__ = ["ContrastiveDivergence"]

_STEPS_PER_GRAPH = 10
_RESTARTS, _PLACES, _ACTIVE, _DIVERGED = (
    f" {what}" for what in ("restarts", "places", "active", "diverged")
)


class ContrastiveDivergence(StatefulELBO):
    r"""An ELBO whose energy-based sites are trained by contrast with chains.

    In place of the log-density of an :class:`~pyrogen.distributions.EnergyBased` site stands

    .. math:: \log \tilde p(x) - \frac1M \sum_{j=1}^M \log \tilde p(x^-_j), \qquad
       \log \tilde p(x) = \log p_0(x) - E(x) ,

    with negatives :math:`x^-` that are held fixed. Its gradient estimates that of the log-density.
    Its value is no likelihood: it is near zero while the chains look like the data.

    Where points of a batch have energies of their own (a context), each has one chain; else
    ``num_chains`` chains serve all. A latent energy-based site is scored at the guide's draws.

    Args:
        kernel: how the chains move, made without a model: ``Langevin(step_size=0.01)``.
        num_steps: transitions in each gradient step.
        persistent: chains go on from where they stood.
        num_chains: how many chains, if they do not start at the data; by default as many as the
            batch of the first step.
        buffer_size: keep so many states and start chains from some of them at random, in place of
            the chains of ``persistent``.
        restart_prob: probability of starting a chain anew from the base.
        energy_penalty: weight of the mean squared energies of data and negatives, which keeps them
            near zero.
        sampler: where chains start instead: ``num_chains -> [num_chains, *event]``, such as a
            generator. With ``num_steps=0`` they stay there.
        elbo: the estimate that all this enters; ``Trace_ELBO()`` by default.

    Attributes:
        num_restarts: how many chains diverged so far. They are left out of the mean and start anew.

    Raises:
        ValueError: if options contradict each other, or a site has no energy.
        NonFiniteError: if the loss is not finite, with the site and the number of gradient steps.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyrogen import kernels, guides, models
        >>> class Precision(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.precision = torch.nn.Parameter(torch.tensor(0.0))
        ...     def forward(self, x):
        ...         return 0.5 * self.precision * x.square().sum(-1)
        >>> model = models.EnergyModel(Precision(), dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        >>> loss = ContrastiveDivergence(kernels.MALA(step_size=0.5), num_steps=2, persistent=True)
        >>> svi = SVI(model, guides.Empty(), pyro.optim.Adam({"lr": 0.05}), loss=loss)
        >>> x = 0.5 * torch.randn(500, 1)  # of precision 4 = 1 + 3
        >>> losses = [svi.step(x) for _ in range(300)]
        >>> abs(float(model.energy.precision.detach()) + 1 - 1 / float(x.var())) < 0.5
        True
    """

    progress = (*StatefulELBO.progress, "_warned")
    suspects = "their sum, or all chains of a site diverged"

    def __init__(
        self,
        kernel: Kernel,
        num_steps: int = 1,
        *,
        persistent: bool = False,
        num_chains: int | None = None,
        buffer_size: int | None = None,
        restart_prob: float = 0.0,
        energy_penalty: float = 0.0,
        sampler: Callable[[int], Tensor] | None = None,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel: expected one of pyrogen.kernels, got {type(kernel).__name__}")
        self.kernel = kernel
        self.num_steps = whole("num_steps", num_steps, 0 if sampler is not None else 1)
        self.persistent = persistent
        self.num_chains = None if num_chains is None else whole("num_chains", num_chains, 1)
        self.buffer_size = None if buffer_size is None else whole("buffer_size", buffer_size, 1)
        self.restart_prob = _probability("restart_prob", restart_prob)
        if not (energy_penalty >= 0 and math.isfinite(energy_penalty)):
            raise ValueError(
                f"energy_penalty: expected a number of at least 0, got {energy_penalty}"
            )
        self.energy_penalty = float(energy_penalty)
        self.sampler = sampler
        self._check_options()
        self._warned = 0

    def _check_options(self) -> None:
        given = {
            "persistent": self.persistent,
            "buffer_size": self.buffer_size is not None,
            "sampler": self.sampler is not None,
        }
        if sum(given.values()) > 1:
            chosen = [name for name, is_given in given.items() if is_given]
            raise ValueError(f"expected one place for chains to start from, got {chosen}")
        if not any(given.values()) and (self.num_chains is not None or self.restart_prob > 0):
            raise ValueError(
                "num_chains and restart_prob: expected persistent=True or a buffer_size with them; "
                "without, there is one chain for each datum, which starts at it"
            )
        if self.buffer_size is not None and (self.num_chains or 0) > self.buffer_size:
            raise ValueError(
                f"buffer_size: expected at least num_chains = {self.num_chains}, got "
                f"{self.buffer_size}"
            )

    @property
    def ahead(self) -> int:
        """A long chain takes all but its last steps in graphs of their own."""
        return max(0, math.ceil(self.num_steps / _STEPS_PER_GRAPH) - 1)

    @property
    def num_restarts(self) -> int:
        """How many chains diverged so far, and were started anew."""
        counts = [value for name, value in self.carried.items() if name.endswith(_RESTARTS)]
        return sum(int(count) for count in counts)

    # What is carried: for each site its chains or its buffer, and how many chains diverged.

    def start(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Places the chains at draws of the base."""
        if self.carried:
            return
        made: Carried = {}
        with torch.no_grad():
            for name, fn, value, _ in visit(self.kind, model, guide, args, kwargs):
                made[name + _RESTARTS] = torch.zeros((), dtype=torch.long, device=value.device)
                self._refuse_options(name, fn)
                if self.persistent or self.buffer_size is not None:
                    size = self.buffer_size or self._count(fn)
                    made[name] = initial_position(self.kernel.target_of(name, fn), fn, size)
        self.carried = made

    def advance(
        self, carried: Mapping[str, Tensor], model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Carried:
        """Some of the steps of the chains."""
        following = dict(carried)
        with torch.no_grad():
            for name, fn, value, by_chance in visit(self.kind, model, guide, args, kwargs):
                if fn.is_conditional and by_chance:
                    continue  # the step's own run will be in another context
                target = self.kernel.target_of(name, fn)
                phase = self._moved(following, target, name, fn, value, _STEPS_PER_GRAPH)
                following[name + _ACTIVE], following[name + _DIVERGED] = phase
        return following

    def carry(self, carried: Mapping[str, Tensor]) -> None:
        """Takes over what a step returned, and says if chains diverged."""
        super().carry(carried)
        if self.kernel.can_diverge and (total := self.num_restarts) > 2 * self._warned:
            warnings.warn(
                f"{total - self._warned} chains diverged and start anew ({total} so far; the next "
                "warning is at twice as many): expected a smaller step size, or an energy that "
                "grows outwards (energy_penalty, or a base that does)",
                RuntimeWarning,
                stacklevel=4,
            )
            self._warned = total

    def score_and_carry(self, carried: Carried, name: str, fn: Any, value: Tensor) -> Tensor:
        """The contrast of data and negatives."""
        target = self.kernel.target_of(name, fn)
        with torch.no_grad():
            gone = self.ahead * _STEPS_PER_GRAPH if name + _ACTIVE in carried else 0
            phase = self._moved(carried, target, name, fn, value, self.num_steps - gone)
            self._keep(carried, target, name, fn, phase)
            negatives = points(target, fn, phase.position)
        density = self._density(fn, value, 1.0)
        if fn.is_conditional:
            return density - self._own_mean(fn, value, negatives, phase.diverged)
        return density - self._mean(fn, negatives, phase.diverged)

    def _mean(self, fn: EnergyBased, negatives: Tensor, diverged: Tensor) -> Tensor:
        """Over the chains that did not diverge."""
        fn = fn.unexpanded()
        if not self.kernel.can_diverge:
            return self._density(fn, negatives, -1.0).mean()
        # Others stand in a sound place, since what is not finite has no gradient, not even times 0.
        sound = negatives.index_select(0, (~diverged).to(torch.uint8).argmax(0, keepdim=True))
        negatives = torch.where(_like(diverged, negatives), sound, negatives)
        density = self._density(fn, negatives, -1.0)
        return torch.where(diverged, 0.0, density).sum() / (~diverged).sum()

    def _own_mean(
        self, fn: EnergyBased, value: Tensor, negatives: Tensor, diverged: Tensor
    ) -> Tensor:
        """Of each datum's chain, in the place of which, if it diverged, stands the datum."""
        data = expanded(fn, value.detach())
        diverged = _like(diverged.reshape(data.shape[: data.dim() - fn.event_dim]), data)
        negatives = torch.where(diverged, data, negatives.reshape(data.shape))
        return self._density(fn, negatives, -1.0)

    def _density(self, fn: EnergyBased, value: Tensor, sign: float) -> Tensor:
        density = fn.unnormalized_log_prob(value)
        if self.energy_penalty > 0:
            density = density - sign * self.energy_penalty * fn.energy_at(value).square()
        return density

    def _moved(
        self,
        carried: Carried,
        target: Target,
        name: str,
        fn: EnergyBased,
        value: Tensor,
        num_steps: int,
    ) -> Phase:
        self._refuse_others(carried, target, name)
        if name + _ACTIVE in carried:
            position, diverged = carried.pop(name + _ACTIVE), carried.pop(name + _DIVERGED)
        else:
            position = self._begin(carried, target, name, fn, value)
            diverged = torch.zeros(len(position), dtype=torch.bool, device=position.device)
        phase = moved(self.kernel, target, position, num_steps)
        return Phase(phase.position, diverged | phase.diverged)

    def _begin(
        self, carried: Carried, target: Target, name: str, fn: EnergyBased, value: Tensor
    ) -> Tensor:
        """Where chains start, ``[chains, size]``."""
        if self.sampler is not None:
            position = target.start(self._sampled(self.sampler, fn))
        elif self.persistent:
            position = carried[name]
        elif self.buffer_size is not None:
            places = torch.randperm(self.buffer_size, device=carried[name].device)
            carried[name + _PLACES] = places = places[: self._count(fn)]
            position = carried[name][places]
        else:
            position = target.start(expanded(fn, value))
        if self.restart_prob > 0:
            anew = torch.rand_like(position[:, :1]) < self.restart_prob
            position = torch.where(anew, initial_position(target, fn, len(position)), position)
        return position

    def _keep(
        self, carried: Carried, target: Target, name: str, fn: EnergyBased, phase: Phase
    ) -> None:
        """Carries on the states, and those that diverged anew from the base."""
        position = phase.position
        if self.kernel.can_diverge:
            carried[name + _RESTARTS] = carried[name + _RESTARTS] + phase.diverged.sum()
        if not (self.persistent or self.buffer_size is not None):
            return
        if self.kernel.can_diverge:
            anew = initial_position(target, fn, len(position))
            position = torch.where(phase.diverged.unsqueeze(-1), anew, position)
        if self.buffer_size is not None:
            position = carried[name].index_copy(0, carried.pop(name + _PLACES), position)
        carried[name] = position

    def _count(self, fn: EnergyBased) -> int:
        count = fn.batch_shape.numel() if self.num_chains is None else self.num_chains
        return count if self.buffer_size is None else min(count, self.buffer_size)

    def _sampled(self, sampler: Callable[[int], Tensor], fn: EnergyBased) -> Tensor:
        count = self._count(fn)
        value = sampler(count)
        if value.shape != (count, *fn.event_shape):
            raise ValueError(
                f"sampler: expected {count} points, shape {[count, *fn.event_shape]}, got "
                f"{list(value.shape)}"
            )
        return value.reshape((*fn.batch_shape, *fn.event_shape)) if fn.is_conditional else value

    def _refuse_others(self, carried: Mapping[str, Tensor], target: Target, name: str) -> None:
        """An objective carries the chains of one model."""
        found = carried.get(name)
        if name + _RESTARTS not in carried or (
            found is not None and found.shape[-1] != target.size
        ):
            raise ValueError(
                f"site {name!r}: expected the sites that the objective met at its first step, got "
                "another; give each model a ContrastiveDivergence of its own"
            )

    def _refuse_options(self, name: str, fn: EnergyBased) -> None:
        if fn.is_conditional and self.num_chains is not None and self.sampler is not None:
            raise ValueError(
                f"site {name!r}: expected no num_chains, because its energy has a context, and so "
                f"each datum a chain of its own; got {self.num_chains}"
            )
        if fn.is_conditional and (self.persistent or self.buffer_size is not None):
            raise ValueError(
                f"site {name!r}: expected chains that start at the data, because its energy has a "
                "context, which differs from batch to batch; got persistent=True or a buffer_size"
            )


def _like(flags: Tensor, value: Tensor) -> Tensor:
    """Flags ``[*batch]`` as ``[*batch, 1, ...]`` beside ``value [*batch, *event]``."""
    return flags.reshape((*flags.shape, *[1] * (value.dim() - flags.dim())))


def _probability(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a probability below 1, got {value!r}")
    return float(value)
