r"""Parallel tempering, with non-reversible swaps.

Replicas at the inverse temperatures :math:`1 = \beta_1 > \dots > \beta_K` sample
:math:`p_k(x) \propto e^{-\beta_k U(x)}` side by side, each by the inner kernel. After every step
neighbours propose to exchange their positions, accepted with probability

.. math::
    \min\bigl(1,\; e^{(\beta_k - \beta_{k+1}) (U(x_k) - U(x_{k+1}))}\bigr),

the pairs :math:`(1,2), (3,4), \dots` at even steps and :math:`(2,3), (4,5), \dots` at odd ones. The
fixed order carries a position from hot to cold in a number of steps that grows as :math:`K`, not as
:math:`K^2` as it does when the pairs are picked at random.

A replica is moved in the coordinates :math:`y = \sqrt{\beta_k}\, x`, in which its potential
:math:`\beta_k U(y / \sqrt{\beta_k})` is as curved as :math:`U`: one step size and one mass matrix,
learned from the cold replica, then suit all temperatures.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._adaptation import WarmUp
from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._target import Target

__all__ = ["ParallelTempering", "TemperedInfo", "TemperedState"]

_CARRIED = {"position", "potential_energy", "gradient"}


class TemperedState(NamedTuple):
    """The cold replicas' position ``[chains, size]``, and what moves them.

    Attributes:
        position: of the cold replicas.
        replicas: the inner kernel's state of ``temperatures * chains`` rows, the cold ones first,
            in the coordinates ``sqrt(beta) x``.
        beta: inverse temperatures ``[temperatures]``.
        odd: ``[]``, 0 or 1: which pairs are next.
    """

    position: Tensor
    replicas: Any
    beta: Tensor
    odd: Tensor


class TemperedInfo(NamedTuple):
    """:class:`~pyrogen.kernels.Info` of the cold replicas, and the swaps of all.

    Attributes:
        swap_accept_prob: ``[chains, temperatures - 1]``, the probability with which neighbours
            would exchange, whether or not it was their turn.
    """

    accept_prob: Tensor
    diverging: Tensor
    potential_energy: Tensor
    energy: Tensor
    num_steps: Tensor
    step_size: Tensor
    swap_accept_prob: Tensor


class ParallelTempering(Kernel):
    r"""Moves each chain at several temperatures, and lets the replicas change places.

    At a high temperature the modes of a target run into one another; swaps hand what is found there
    down to the cold replica, which alone is reported. With :math:`K` temperatures a step costs
    :math:`K` times the inner kernel's.

    Read ``info["swap_accept_prob"]``. The barrier between the ends is
    :math:`\Lambda = \sum_k (1 - \bar a_k)`, where :math:`\bar a_k` is its mean for pair :math:`k`;
    about :math:`2\Lambda + 1` temperatures, with equal :math:`\bar a_k` near one half, are best.

    The whole joint density is tempered, prior and likelihood, in unconstrained space: the hottest
    :math:`e^{-U(x)/T}` must have a finite integral, so a target with tails like a Cauchy's, whose
    square root has none, cannot be heated to ``T = 2``. All replicas of a chain start at one point.

    Args:
        inner: the kernel that moves the replicas; it holds the model.
        temperatures: rising, from 1; a geometric ladder is a good start.

    Raises:
        TypeError: if ``inner`` is no kernel of this package.
        ValueError: if ``inner`` is for minibatches, or the temperatures do not rise from 1.

    References:
        Geyer, *Markov chain Monte Carlo maximum likelihood*, 1991. Syed, Bouchard-Côté,
        Deligiannidis, Doucet, *Non-Reversible Parallel Tempering: a Scalable Highly Parallel MCMC
        Scheme*, JRSS B 2022 (arXiv:1905.02939).

    Example:
        >>> from pyrogen.kernels import HMC, MCMC
        >>> def two_wells(x):  # at -4 and 4
        ...     return 8 * ((x / 4) ** 2 - 1).square().sum(-1)
        >>> inner = HMC(energy=two_wells, event_shape=(1,), compile=False)
        >>> kernel = ParallelTempering(inner, temperatures=[1.0, 2.0, 4.0, 8.0])
        >>> mcmc = MCMC(kernel, 20, warmup_steps=20, num_chains=10, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.info["swap_accept_prob"].shape
        torch.Size([10, 20, 3])
    """

    def __init__(self, inner: Kernel, temperatures: Sequence[float] = (1.0, 2.0, 4.0, 8.0)) -> None:
        if not isinstance(inner, Kernel):
            raise TypeError(
                f"inner: expected a kernel of pyrogen.kernels, got {type(inner).__name__}"
            )
        if isinstance(inner, ParallelTempering):
            raise TypeError("inner: expected a kernel of one temperature, got ParallelTempering")
        if not inner.needs_exact_potential:
            raise ValueError(
                f"inner: expected a kernel of exact energies, got {type(inner).__name__}; swaps "
                "compare energies, which a minibatch only estimates"
            )
        super().__init__(
            inner.model,
            potential_fn=inner.potential_fn,
            energy=inner.energy,
            event_shape=inner.event_shape,
            compile=inner.compile,
        )
        self.inner = inner
        self.temperatures = _checked(temperatures)
        self.unrecorded = inner.unrecorded  # type: ignore[misc]

    def initial_tuning(self, target: Target) -> Any:
        """The inner kernel's."""
        return self.inner.initial_tuning(target)

    def warm_up(self) -> WarmUp | None:
        """The inner kernel's, from the cold replicas."""
        return self.inner.warm_up()

    def init(self, potential: Potential, position: Tensor, tuning: Any) -> TemperedState:
        """All replicas of a chain at its position."""
        beta = 1 / position.new_tensor(self.temperatures)
        rows = _rows(beta, position)
        everywhere = rows.sqrt().unsqueeze(-1) * position.repeat(len(beta), 1)
        replicas = self.inner.init(Heated(potential, rows), everywhere, tuning)
        return TemperedState(position, replicas, beta, torch.zeros_like(beta[0]))

    def step(self, potential: Potential, state: TemperedState, tuning: Any) -> tuple[Any, Any]:
        """One step of every replica, and a round of swaps."""
        rows = _rows(state.beta, state.position)
        replicas, info = self.inner.step(Heated(potential, rows), state.replicas, tuning)
        return self._swap(potential, state, replicas, info, tuning)

    def transition(
        self, run: Runner, state: TemperedState, tuning: Any, iteration: int
    ) -> tuple[Any, Any]:
        """The inner kernel's transition on the heated potentials, and a round of swaps."""
        if type(self.inner).transition is Kernel.transition:
            return run(self.step, state, tuning)  # type: ignore[no-any-return]
        if self.inner.regroups_chains:
            replicas, info = self._one_by_one(run, state, tuning, iteration)
        else:
            heated: Any = _HeatedRunner(run, _rows(state.beta, state.position))
            replicas, info = self.inner.transition(heated, state.replicas, tuning, iteration)
        return run(self._swap, state, replicas, info, tuning)  # type: ignore[no-any-return]

    def probe(self, run: Runner, state: TemperedState, tuning: Any) -> Tensor:
        """Of the cold replicas."""
        heated: Any = _HeatedRunner(run, _rows(state.beta, state.position))
        accept_prob = self.inner.probe(heated, state.replicas, tuning)
        return accept_prob[: len(state.position)]

    def _one_by_one(
        self, run: Runner, state: TemperedState, tuning: Any, iteration: int
    ) -> tuple[Any, Any]:
        """The inner kernel's transition, one temperature after the other; ``info`` of the first."""
        chains, replicas = len(state.position), state.replicas
        ends, infos = [], []
        for k, beta in enumerate(state.beta):
            part = type(replicas)(*(x[k * chains : (k + 1) * chains] for x in replicas))
            heated: Any = _HeatedRunner(run, beta)
            end, info = self.inner.transition(heated, part, tuning, iteration)
            ends.append(end)
            infos.append(info)
        return type(replicas)(*map(torch.cat, zip(*ends, strict=True))), infos[0]

    def _swap(
        self, potential: Potential, state: TemperedState, replicas: Any, info: Any, tuning: Any
    ) -> tuple[Any, Any]:
        """Exchanges neighbours, and reports the cold replicas as they are then."""
        beta, chains = state.beta, len(state.position)
        energy = (replicas.potential_energy / _rows(beta, state.position)).view(len(beta), chains)
        gain = (beta[:-1] - beta[1:]).unsqueeze(-1) * (energy[:-1] - energy[1:])
        accept_prob = torch.exp(gain.clamp(max=0.0))
        turn = torch.arange(len(beta) - 1, device=beta.device) % 2 == state.odd
        swapped = turn.unsqueeze(-1) & (torch.rand_like(accept_prob) < accept_prob)
        replicas = self._exchanged(potential, replicas, beta, _sources(swapped), tuning)
        position = replicas.position[:chains]
        cold = _cold(info, chains, replicas.potential_energy, accept_prob.T)
        return TemperedState(position, replicas, beta, 1 - state.odd), cold

    def _exchanged(
        self, potential: Potential, replicas: Any, beta: Tensor, source: Tensor, tuning: Any
    ) -> Any:
        """The replicas' state after row ``k`` took over the point of row ``source[k]``."""
        rows = beta.repeat_interleave(source.shape[1])
        ratio = (rows / rows[source.flatten()]).sqrt()
        moved = {
            name: getattr(replicas, name)[source.flatten()]
            for name in _CARRIED & set(replicas._fields)
        }
        moved["position"] = moved["position"] * ratio.unsqueeze(-1)
        if not _CARRIED.issuperset(replicas._fields):
            return self.inner.init(Heated(potential, rows), moved["position"], tuning)
        moved["potential_energy"] = moved["potential_energy"] * ratio.square()
        if "gradient" in moved:
            moved["gradient"] = moved["gradient"] * ratio.unsqueeze(-1)
        return replicas._replace(**moved)


class Heated(Potential):
    """``beta U(y / sqrt(beta))``, each row at its own inverse temperature ``beta [rows]`` (or all
    at one, ``[]``)."""

    def __init__(self, potential: Potential, beta: Tensor) -> None:
        self._potential = potential
        self._beta = beta

    def value(self, position: Tensor) -> Tensor:
        return self._beta * self._potential.value(position / self._root())

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self._potential.value_and_grad(position / self._root())
        return self._beta * value, self._root() * gradient

    def _root(self) -> Tensor:
        return self._beta.sqrt().unsqueeze(-1)


@dataclass(frozen=True)
class _HeatedFunction:
    """A function of the inner kernel, on the heated potential; equal for equal functions."""

    function: Callable[..., Any]

    def __call__(self, potential: Potential, beta: Tensor, *tensors: Any) -> Any:
        return self.function(Heated(potential, beta), *tensors)


class _HeatedRunner:
    """Runs the functions of the inner kernel on the heated potential."""

    def __init__(self, run: Runner, beta: Tensor) -> None:
        self._run = run
        self._beta = beta

    def __call__(self, function: Callable[..., Any], *tensors: Any) -> Any:
        return self._run(_HeatedFunction(function), self._beta, *tensors)

    def once(self, function: Callable[..., Any], *tensors: Any) -> Any:
        return self._run.once(_HeatedFunction(function), self._beta, *tensors)

    def plain(self, function: Callable[..., Any], *tensors: Any) -> Any:
        return self._run.plain(function, *tensors)


def _rows(beta: Tensor, position: Tensor) -> Tensor:
    """The inverse temperature of every row, those of one temperature together."""
    return beta.repeat_interleave(len(position))


def _sources(swapped: Tensor) -> Tensor:
    """The row whose point each row takes over, ``[temperatures, chains]``."""
    pairs, chains = swapped.shape
    none = torch.zeros_like(swapped[:1])
    up, down = torch.cat([swapped, none]), torch.cat([none, swapped])
    row = torch.arange((pairs + 1) * chains, device=swapped.device).view(pairs + 1, chains)
    return row + chains * (up.long() - down.long())


def _cold(info: Any, chains: int, potential_energy: Tensor, swap_accept_prob: Tensor) -> Any:
    """The inner kernel's report of the cold rows, with the energy of where they are now."""
    fields = {
        name: value[:chains] if value.dim() > 0 else value for name, value in info._asdict().items()
    }
    kinetic = fields["energy"] - fields["potential_energy"]
    fields["potential_energy"] = potential_energy[:chains]
    fields["energy"] = potential_energy[:chains] + kinetic
    return _info_type(tuple(fields))(**fields, swap_accept_prob=swap_accept_prob)


@lru_cache
def _info_type(names: tuple[str, ...]) -> Any:
    if names == TemperedInfo._fields[:-1]:
        return TemperedInfo
    return namedtuple("TemperedInfo", (*names, "swap_accept_prob"))


def _checked(temperatures: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(temperature) for temperature in temperatures)
    rising = all(low < high < math.inf for low, high in pairwise(values))
    if len(values) < 2 or values[0] != 1 or not rising:
        raise ValueError(
            "temperatures: expected two or more rising numbers that begin with 1, got "
            f"{list(values)}"
        )
    return values
