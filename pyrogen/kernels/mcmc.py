"""The driver: all chains of a kernel in one process, moved together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
from pyrogen.kernels._progress import Progress

__all__ = ["MCMC"]


class MCMC:
    """Runs many chains of a kernel at once, with the interface of ``pyro.infer.MCMC``.

    Args:
        kernel: how the chains move; it holds the model.
        num_samples: draws of each chain.
        warmup_steps: steps before the first draw, in which the kernel is tuned; as many as
            ``num_samples`` by default.
        num_chains: how many chains.
        chain_batch_size: the most chains that are moved at once, to bound memory; the batches run
            one after another and each tunes the kernel for itself.
        thinning: keep every so many-th state.
        initial_params: unconstrained values where the chains start, each ``[num_chains, *shape]``
            (for one chain also ``[*shape]``); by default random.
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
        self.kernel = kernel
        self.num_samples = whole("num_samples", num_samples, 1)
        self.warmup_steps = whole(
            "warmup_steps", num_samples if warmup_steps is None else warmup_steps, 0
        )
        self.num_chains = whole("num_chains", num_chains, 1)
        self.thinning = whole("thinning", thinning, 1)
        size = num_chains if chain_batch_size is None else chain_batch_size
        self.chain_batch_size = min(whole("chain_batch_size", size, 1), num_chains)
        self.initial_params = None if initial_params is None else dict(initial_params)
        self.disable_progbar = disable_progbar
        self.info: dict[str, Tensor] = {}
        self._batches: list[Chains] = []
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
        self._samples, self.info, self._batches = None, {}, []
        steps = self.warmup_steps + self.num_samples * self.thinning
        sizes = _sizes(self.num_chains, self.chain_batch_size)
        progress = Progress(steps * len(sizes), self.disable_progbar)
        drawn: list[Draws] = []
        try:
            with poutine.block(), torch.no_grad():
                self._run_batches(sizes, drawn, progress)
        except KeyboardInterrupt:
            if not any(drawn):
                raise
            self._interrupted()
        finally:
            progress.close()
        self._gather(drawn)

    def extend(self, num_samples: int | None = None) -> None:
        """Draws more, from where the chains stand and as they are tuned, and appends the draws.

        Args:
            num_samples: how many more of each chain; by default as many as the first time.

        Raises:
            ValueError: if there was no run.
        """
        if self._samples is None:
            raise ValueError("expected a finished run to extend, got none; call run(...) first")
        count = whole("num_samples", num_samples or self.num_samples, 1)
        steps = count * self.thinning * len(self._batches)
        progress = Progress(steps, self.disable_progbar)
        before, info = self._samples, self.info
        drawn: list[Draws] = []
        try:
            with poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
                for chains in self._batches:
                    drawn.append(self._draws(chains, count))
                    self._draw(chains, drawn[-1], count, progress)
        except KeyboardInterrupt:
            if not any(drawn):
                raise
            self._interrupted()
        finally:
            progress.close()
        self._gather(drawn)
        kept = len(next(iter(self._samples.values())))
        self._samples = {
            name: torch.cat([before[name][:kept], new], 1) for name, new in self._samples.items()
        }
        self.info = {
            name: torch.cat([info[name][:kept], new], 1) for name, new in self.info.items()
        }

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
        """Prints mean, spread, interval, effective sample size and R-hat of every site.

        Args:
            prob: probability mass of the interval.
        """
        print_summary(self._drawn(), prob=prob)
        print(f"Number of divergences: {int(self.info['diverging'].sum())}")  # noqa: T201

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and R-hat of every site; divergences and acceptance per chain."""
        result: dict[str, Any] = diagnostics(self._drawn())
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

    def _run_batches(self, sizes: list[int], drawn: list[Draws], progress: Progress) -> None:
        first = 0
        for size in sizes:
            params = self._params(first, size)
            chains = self.kernel.start(size, self.warmup_steps, self._args, self._kwargs, params)
            self._batches.append(chains)
            with pyro.validation_enabled(False):
                for _ in range(self.warmup_steps):
                    progress.step("Warmup", chains.advance())
                drawn.append(self._draws(chains, self.num_samples))
                self._draw(chains, drawn[-1], self.num_samples, progress)
            first += size

    def _draws(self, chains: Chains, count: int) -> Draws:
        return Draws(count, len(chains.position), self.kernel.unrecorded)

    def _draw(self, chains: Chains, draws: Draws, count: int, progress: Progress) -> None:
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

    def _gather(self, drawn: list[Draws]) -> None:
        """Joins the batches; of an interrupted run, those that are complete, or else the one."""
        longest = max(len(draws) for draws in drawn)
        complete = [draws for draws in drawn if len(draws) == longest]
        target = self._batches[0].target
        values = target.unflatten(torch.cat([draws.position() for draws in complete]))
        self._samples = target.constrain(values)
        infos = [draws.info() for draws in complete]
        self.info = {name: torch.cat([info[name] for info in infos]) for name in infos[0]}

    def _interrupted(self) -> None:
        warnings.warn("interrupted: the result holds the draws so far", stacklevel=3)


def _sizes(total: int, largest: int) -> list[int]:
    whole, rest = divmod(total, largest)
    return [largest] * whole + ([rest] if rest else [])
