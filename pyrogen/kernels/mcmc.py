"""The driver: all chains of a kernel, moved together, in one process or in several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from torch import Tensor

from pyrogen.kernels._chains import Chains
from pyrogen.kernels._draws import Draws
from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._options import whole
from pyrogen.kernels._processes import Processes
from pyrogen.kernels._progress import Progress

__all__ = ["MCMC"]

_LEAST_DRAWS = 4  # split R-hat halves each chain
_ENOUGH_TO_MOVE = 50


class MCMC:
    """Runs many chains of a kernel at once, with the interface of ``pyro.infer.MCMC``.

    In the processes that ``torchrun`` starts, each runs its share of the chains and tunes the
    kernel for itself. The first process (rank 0) then holds the draws of all, the others their own.
    Every process has to call :meth:`run`.

    Args:
        kernel: how the chains move; it holds the model.
        num_samples: draws of each chain.
        warmup_steps: steps before the first draw, in which the kernel is tuned; by default as many
            as ``num_samples``, or none where the kernel's draws are independent.
        num_chains: how many chains.
        chain_batch_size: the most chains that are moved at once, to bound memory; the batches run
            one after another and each tunes the kernel for itself.
        thinning: keep every so many-th state.
        initial_params: unconstrained values where the chains start, each ``[num_chains, *shape]``;
            by default random.
        disable_progbar: show no progress bar.

    Attributes:
        info: after a run, statistics of every draw: name to ``[chains, draws]``.

    Raises:
        ValueError: for a number out of its range.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrogen.kernels import HMC
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> mcmc = MCMC(HMC(model, compile=False), 30, 30, num_chains=100, disable_progbar=True)
        >>> mcmc.run(torch.tensor([1.0, 2.0]))
        >>> mcmc.get_samples()["mu"].shape
        torch.Size([3000])
        >>> mcmc.info["accept_prob"].shape
        torch.Size([100, 30])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 1,
        chain_batch_size: int | None = None,
        thinning: int = 1,
        initial_params: Mapping[str, Tensor] | None = None,
        disable_progbar: bool = False,
    ) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel: expected a kernel of pyrogen.kernels, got {type(kernel).__name__}; "
                "Pyro's own kernels run under pyro.infer.MCMC"
            )
        kernel.check_target()
        self.kernel = kernel
        self.num_samples = whole("num_samples", num_samples, 1)
        usual = 0 if kernel.is_independent else num_samples
        self.warmup_steps = whole(
            "warmup_steps", usual if warmup_steps is None else warmup_steps, 0
        )
        self.num_chains = whole("num_chains", num_chains, 1)
        self.thinning = whole("thinning", thinning, 1)
        size = num_chains if chain_batch_size is None else chain_batch_size
        self.chain_batch_size = min(whole("chain_batch_size", size, 1), num_chains)
        self.initial_params = None if initial_params is None else dict(initial_params)
        self.disable_progbar = disable_progbar
        self.info: dict[str, Tensor] = {}
        self._batches: list[Chains] = []
        self._draws: list[Draws] = []
        self._processes: Processes
        self._samples: dict[str, Tensor] | None = None
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warms up and draws; what an earlier run drew is forgotten.

        Ctrl-C while drawing ends the run with a warning and keeps the draws so far.

        Args:
            *args: arguments of the model.
            **kwargs: likewise.

        Raises:
            ValueError: if the model cannot be sampled, or no finite initial point is found.
            GraphError: if the structure of the model depends on values and ``compile`` is on.
        """
        self._args, self._kwargs = args, kwargs
        self._samples, self.info, self._batches, self._draws = None, {}, [], []
        self._processes = Processes()
        first, count = self._processes.share(self.num_chains)
        sizes = _sizes(count, self.chain_batch_size)
        steps = self.warmup_steps + self.num_samples * self.thinning
        self._collect(
            lambda progress: self._run_batches(first, sizes, progress), steps * len(sizes)
        )

    def extend(self, num_samples: int | None = None) -> None:
        """Draws more, from where the chains stand and as they are tuned, and appends the draws.

        Args:
            num_samples: how many more of each chain; by default as many as the first time.

        Raises:
            ValueError: if there was no run.
        """
        before = next(iter(self._drawn().values())).shape[1]
        if not self._batches:
            raise ValueError("expected chains to go on with; a copied or pickled MCMC has none")
        count = whole("num_samples", self.num_samples if num_samples is None else num_samples, 1)
        steps = count * self.thinning * len(self._batches)
        self._collect(lambda progress: self._extend_batches(count, progress), steps, before)

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """The draws, in the support of their sites.

        Args:
            num_samples: if given, so many draws, picked at random with replacement.
            group_by_chain: ``[chains, draws, *event]`` instead of ``[chains * draws, *event]``.
        """
        samples: dict[str, Tensor] = select_samples(self._drawn(), num_samples, group_by_chain)
        return samples

    def summary(self, prob: float = 0.9) -> None:
        """Prints mean, spread, interval, effective sample size and split R-hat of every site.

        The columns are those of Pyro. For rank-normalised R-hat and ESS give
        :func:`pyrogen.diagnostics.from_mcmc` to ``arviz.summary``.

        Args:
            prob: probability mass of the interval.

        Raises:
            ValueError: if there was no run, or there are fewer than 4 draws of each chain.
        """
        print_summary(self._enough(), prob=prob)
        print(f"Number of divergences: {int(self.info['diverging'].sum())}")  # noqa: T201

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and R-hat of every site; divergences and acceptance per chain.

        Raises:
            ValueError: if there was no run, or there are fewer than 4 draws of each chain.
        """
        result: dict[str, Any] = diagnostics(self._enough())
        for name in ("divergences", "acceptance rate"):
            reports = enumerate(self._diagnostics)
            result[name] = {f"chain {i}": report[name] for i, report in reports}
        return result

    @property
    def _diagnostics(self) -> list[dict[str, Any]]:
        """What Pyro's driver keeps of each chain."""
        rates = self.info["accept_prob"].mean(1).tolist()
        divergences: list[list[int]] = [[] for _ in rates]
        for chain, draw in self.info["diverging"].nonzero().tolist():
            divergences[chain].append(draw)
        return [
            {"divergences": draws, "acceptance rate": rate}
            for draws, rate in zip(divergences, rates, strict=True)
        ]

    def _drawn(self) -> dict[str, Tensor]:
        if self._samples is None:
            raise ValueError("expected a finished run, got none; call run(...) first")
        return self._samples

    def _enough(self) -> dict[str, Tensor]:
        samples = self._drawn()
        count = next(iter(samples.values())).shape[1]
        if count < _LEAST_DRAWS:
            raise ValueError(
                f"expected at least {_LEAST_DRAWS} draws of each chain, got {count}; for many "
                "short chains there is pyrogen.diagnostics.nested_rhat"
            )
        return samples

    def __getstate__(self) -> dict[str, Any]:
        """The draws without the chains, which cannot be copied: a copy cannot go on."""
        state = {**vars(self), "_batches": [], "_draws": []}
        state.pop("_processes", None)
        return state

    def _collect(self, move: Callable[[Progress], None], steps: int, before: int = 0) -> None:
        """Moves the chains of this process, and gathers what all of them drew."""
        processes = self._processes
        progress = Progress(steps, self.disable_progbar or processes.rank > 0)
        error: BaseException | None = None
        try:
            with (
                processes.own_noise(),
                poutine.block(),
                torch.no_grad(),
                pyro.validation_enabled(False),
            ):
                move(progress)
        except KeyboardInterrupt as interrupt:
            if any(self._draws):
                warnings.warn("interrupted: the result holds the draws so far", stacklevel=3)
            else:
                error = interrupt
        except Exception as failure:
            error = failure
        finally:
            progress.close()
        processes.check(error)
        self._even_out(before)
        self._gather()

    def _run_batches(self, first: int, sizes: list[int], progress: Progress) -> None:
        for size in sizes:
            params = self._params(first, size)
            chains = self.kernel.start(size, self.warmup_steps, self._args, self._kwargs, params)
            chains.run.on_move = progress.within
            for _ in range(self.warmup_steps):
                progress.step("Warmup", chains.advance())
            draws = Draws(size, self.kernel.unrecorded)
            self._batches.append(chains)
            self._draws.append(draws)
            self._draw(chains, draws, self.num_samples, progress)
            first += size

    def _extend_batches(self, count: int, progress: Progress) -> None:
        for chains, draws in zip(self._batches, self._draws, strict=True):
            chains.run.on_move = progress.within
            self._draw(chains, draws, count, progress)

    def _draw(self, chains: Chains, draws: Draws, count: int, progress: Progress) -> None:
        draws.reserve(count)
        for _ in range(count):
            for _ in range(self.thinning):
                info = chains.advance()
                progress.step("Sample", info)
            draws.add(chains.position, info)

    def _params(self, first: int, size: int) -> dict[str, Tensor] | None:
        if self.initial_params is None:
            return None
        params = {name: torch.as_tensor(x) for name, x in self.initial_params.items()}
        lengths = {name: list(x.shape) for name, x in params.items()}
        if any(not shape or shape[0] != self.num_chains for shape in lengths.values()):
            raise ValueError(
                f"initial_params: expected unconstrained values with a leading dimension of "
                f"{self.num_chains} chains, got shapes {lengths}"
            )
        return {name: x[first : first + size] for name, x in params.items()}

    def _even_out(self, before: int) -> None:
        """After an interruption, leaves out what is short: chains, but of finished ones draws."""
        longest = max(map(len, self._draws))
        if before == 0:
            complete = [len(draws) == longest for draws in self._draws]
            self._batches = list(compress(self._batches, complete))
            self._draws = list(compress(self._draws, complete))
        shortest = min(map(len, self._draws))
        for draws in self._draws:
            draws.cut(shortest)

    def _gather(self) -> None:
        """Joins the batches, and all processes."""
        position = torch.cat([draws.position() for draws in self._draws])
        infos = [draws.info() for draws in self._draws]
        info = {name: torch.cat([each[name] for each in infos]) for name in infos[0]}
        position, self.info = self._processes.gather(position, info)
        _warn_of_still_chains(position)
        target = self._batches[0].target
        self._samples = target.constrain(target.unflatten(position))


def _warn_of_still_chains(position: Tensor) -> None:
    chains, draws, _ = position.shape
    still = int((position == position[:, :1]).all(-1).all(-1).sum())
    if draws >= _ENOUGH_TO_MOVE and still > 0:
        warnings.warn(
            f"{still} of {chains} chains did not move in {draws} draws: their steps are all "
            "rejected; expected more warm-up, other initial_params, or a smaller step size",
            stacklevel=4,
        )


def _sizes(total: int, largest: int) -> list[int]:
    whole, rest = divmod(total, largest)
    return [largest] * whole + ([rest] if rest else [])
