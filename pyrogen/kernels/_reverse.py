"""What all samplers of score-based sites share: one draw is one run from noise to data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Size, Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.errors import NonFiniteError
from pyrogen.kernels._chains import Chains
from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._one_site import OneSite
from pyrogen.kernels._options import one_of, whole
from pyrogen.kernels._phase import Direct
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._score_site import (
    Denoising,
    ScoreSite,
    score_site,
    target_of_distribution,
    target_of_site,
)
from pyrogen.kernels._target import Target
from pyrogen.processes import time_grid
from pyrogen.processes.grids import GRIDS
from pyrogen.transforms._ode import is_recorded

__all__ = ["DrawInfo", "Reverse", "ReverseState", "Walk"]


class ReverseState(NamedTuple):
    """The last draw, ``[chains, size]``."""

    position: Tensor


class DrawInfo(NamedTuple):
    """What is to be said of a draw.

    Attributes:
        accept_prob: 1 for every chain.
        diverging: whether a chain went astray: none, as numbers that are not finite raise.
        num_steps: how often the network was asked.
    """

    accept_prob: Tensor
    diverging: Tensor
    num_steps: Tensor


class Walk(NamedTuple):
    """Where a run stands.

    Attributes:
        x: the states, ``[chains, *shape]``.
        carry: what the last step left for the next.
        steps: how many there were.
        failed: the number of the first step after which ``x`` was not finite, or -1.
    """

    x: Tensor
    carry: Any
    steps: Tensor
    failed: Tensor

    def to(self, x: Tensor, carry: Any) -> Walk:
        """One step further."""
        finite = x.isfinite().all() | (self.failed >= 0)
        return Walk(x, carry, self.steps + 1, torch.where(finite, self.failed, self.steps))


class Reverse(Kernel):
    """A kernel whose draws are runs from noise to data, each independent of the one before.

    A subclass defines :meth:`pairs`, between which times to move, :meth:`move`, how, and
    :attr:`evaluations`. A move is one graph; memory does not grow with their number.

    Args:
        model: a Pyro model whose one latent site is :class:`~pyrogen.distributions.ScoreBased`, or
            such a distribution itself, whose site is then called ``"x"``. ``None``, to be used as
            the ``sampler`` of such distributions.
        num_steps: how many times there are on the grid, less one; with ``denoise`` so many.
        grid: what is evenly spaced on it; see :func:`pyrogen.processes.time_grid`.
        denoise: end with the mean of the data given the state at the last time.
        compile: run moves as compiled graphs.
    """

    is_independent: ClassVar[bool] = True
    can_diverge: ClassVar[bool] = False

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None,
        num_steps: int,
        grid: str,
        denoise: bool,
        compile: bool,
    ) -> None:
        super().__init__(
            OneSite(model) if isinstance(model, ScoreBased) else model, compile=compile
        )
        self.num_steps = whole("num_steps", num_steps, 2 if denoise else 1)
        self.grid = one_of("grid", grid, tuple(GRIDS))
        self.denoise = denoise

    # What a sampler defines.

    @abstractmethod
    def pairs(self, times: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """From which time to which each move goes."""

    @abstractmethod
    def move(self, potential: Denoising, walk: Walk, t: Tensor, s: Tensor) -> Walk:
        """The states at ``s``, of those at ``t``."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """How often a run asks the network."""

    def first_carry(self, x: Tensor) -> Any:
        """What the first move is handed as left by one before."""
        return ()

    def obstacle(self, fn: ScoreBased) -> str | None:
        """Why a distribution cannot be sampled so; ``None`` if it can."""
        if not bool(fn.process.std(fn.min_time) > 0):
            return (
                f"expected some noise at min_time = {fn.min_time:g}, got none of "
                f"{type(fn.process).__name__}; end at ScoreBased(..., min_time=1e-5)"
            )
        return None

    # A run.

    def walk(self, run: Any, num_chains: Tensor) -> tuple[Walk, list[Tensor]]:
        """One run of all chains.

        Args:
            run: calls ``function(potential, *tensors)``.
            num_chains: a tensor with a row for each chain.

        Returns:
            Where they end, and the times of the grid.
        """
        walk, grid = run.once(self._begin, num_chains)
        times = list(grid.unbind())
        pairs = list(self.pairs(times))
        for i, (t, s) in enumerate(pairs):
            walk = run(self.move, walk, t, s)
            run.moved((i + 1) / len(pairs))
        return (run.once(self._finish, walk, times[-1]) if self.denoise else walk), times

    def _begin(self, potential: Denoising, rows: Tensor) -> tuple[Walk, Tensor]:
        x, fn = potential.draw(len(rows)), potential.fn
        count = self.num_steps + (0 if self.denoise else 1)
        options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
        times = time_grid(fn.process, count, self.grid, fn.max_time, fn.min_time, **options)
        steps = torch.zeros((), dtype=torch.long, device=x.device)
        return Walk(x, self.first_carry(x), steps, steps - 1), times

    def _finish(self, potential: Denoising, walk: Walk, t: Tensor) -> Walk:
        return walk.to(potential.predict(walk.x, t).data, walk.carry)

    def __call__(self, fn: ScoreBased, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, ``[*sample_shape, *batch, *event]``: the kernel as a distribution's ``sampler``.

        Args:
            fn: what is sampled.
            sample_shape: how many draws.

        Raises:
            NonFiniteError: if a draw is not finite.
        """
        shape = Size((*sample_shape, *fn.batch_shape))
        target, num_chains = target_of_distribution(fn), shape.numel()
        if fn.is_conditional:
            num_chains //= fn.batch_shape.numel()
        rows = torch.empty(num_chains, 0, dtype=target.dtype, device=target.device)
        with torch.no_grad():
            if is_recorded():
                walk, _ = self.walk(Direct(target.potential()), rows)
            else:
                self._check(fn)
                self._shell.runner = run = Runner(target, self.compile, self._shell.runner)
                walk, times = self.walk(run, rows)
                self._check_finite(walk, times, None)
        return walk.x.reshape((*shape, *fn.event_shape))

    def _check(self, fn: ScoreBased) -> None:
        if (reason := self.obstacle(fn)) is not None:
            raise ValueError(f"{type(self).__name__}: {reason}")

    def _check_finite(self, walk: Walk, times: Sequence[Tensor], site: str | None) -> None:
        step = int(walk.failed)
        if step < 0:
            return
        at = [s for _, s in self.pairs(times)]
        words = f"at time {float(at[step]):.4g}" if step < len(at) else "denoised at the end"
        raise NonFiniteError(
            f"{type(self).__name__}: the state{'' if site is None else f' of site {site!r}'} is "
            f"not finite after step {step} of {len(at)}, {words}: the network's prediction is NaN, "
            "infinite or far too large there",
            site=site,
            step=step,
        )

    # The kernel.

    def init(self, potential: Any, position: Tensor, tuning: Any) -> ReverseState:
        """Nothing is drawn yet."""
        return ReverseState(position)

    def initial_tuning(self, target: Target) -> tuple[()]:
        """Nothing is tuned."""
        return ()

    def step(self, potential: Any, state: ReverseState, tuning: Any) -> tuple[ReverseState, Any]:
        """One run of every chain."""
        walk, _ = self.walk(Direct(potential), state.position)
        return self._drawn(walk)

    def transition(
        self, run: Runner, state: ReverseState, tuning: Any, iteration: int
    ) -> tuple[ReverseState, DrawInfo]:
        """One run of every chain, move by move."""
        walk, times = self.walk(run, state.position)
        self._check_finite(walk, times, run.target.layout[0][0])
        return self._drawn(walk)

    def _drawn(self, walk: Walk) -> tuple[ReverseState, DrawInfo]:
        position = walk.x.reshape(len(walk.x), -1)
        ones = torch.ones_like(position[:, 0])
        return ReverseState(position), DrawInfo(ones, ones < 0, self._asked(walk))

    def _asked(self, walk: Walk) -> Tensor:
        return walk.x.new_full((), self.evaluations)

    def target(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
    ) -> Target:
        """The score-based site of the model."""
        self.check_target()
        if self.model is None:
            raise TypeError(f"{type(self).__name__}: expected a model, got none")
        site = score_site(self.model, args, kwargs)
        self.check_site(site)
        self._check(site.fn)
        return target_of_site(self.model, site, tuple(args), dict(kwargs))

    def check_site(self, site: ScoreSite) -> None:
        """Raises ``ValueError`` if the site cannot be sampled as its model has it."""
        if site.observed:
            raise ValueError(
                f"{type(self).__name__}: expected a model that observes nothing, got the observed "
                f"sites {list(site.observed)}, which would not count; "
                'ReverseDiffusion(..., guidance="mmps") heeds them'
            )

    def _start(
        self,
        num_chains: int,
        warmup_steps: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        initial_params: Mapping[str, Tensor] | None,
    ) -> Chains:
        if initial_params is not None:
            raise ValueError(
                f"initial_params: expected None, as every draw of {type(self).__name__} begins "
                f"with noise, got values of {sorted(initial_params)}"
            )
        target = self.target(args, kwargs, {})
        self._shell.runner = run = Runner(target, self.compile, self._shell.runner)
        self._shell.transforms = target.transforms
        position = torch.zeros(num_chains, target.size, dtype=target.dtype, device=target.device)
        return Chains(self, target, run, position, warmup_steps)

    def logging(self) -> dict[str, str]:
        """How often the network was asked for a draw, for a progress bar."""
        infos = self._shell.infos
        return {"evaluations": str(int(infos[-1].num_steps))} if infos else {}
