"""Chains shared out among the processes that ``torchrun`` starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["Processes"]

Drawn = tuple[Tensor, dict[str, Tensor]]


class Processes:
    """The processes that run one ``MCMC`` together; one alone if ``torchrun`` started none.

    Results travel as tensors on the CPU, through gloo.

    Attributes:
        rank: number of this process.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        self._group: Any = None
        if not distributed.is_available():
            return
        if distributed.is_torchelastic_launched() and not distributed.is_initialized():
            distributed.init_process_group("gloo")
        if distributed.is_initialized():
            self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        if self.count > 1 and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def share(self, num_chains: int) -> tuple[int, int]:
        """The first of this process's chains, and how many they are.

        Raises:
            ValueError: if there are fewer chains than processes.
        """
        if num_chains < self.count:
            raise ValueError(
                f"num_chains: expected at least one for each of {self.count} processes, got "
                f"{num_chains}"
            )
        each, rest = divmod(num_chains, self.count)
        return each * self.rank + min(self.rank, rest), each + (self.rank < rest)

    @contextmanager
    def own_noise(self) -> Iterator[None]:
        """Each process draws its own random numbers inside, and the same ones after it.

        They follow from the state of the first one's generator: ``pyro.set_rng_seed`` reproduces a
        run on the same number of processes.
        """
        if self.count == 1:
            yield
            return
        seeds = [int(torch.randint(2**62, ()))]
        distributed.broadcast_object_list(seeds, group=self._group)
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seeds[0] + self.rank)
            yield

    def check(self, error: BaseException | None) -> None:
        """Raises ``error``; or says which other process failed, rather than wait for it for ever.

        Raises:
            RuntimeError: if another process failed.
        """
        errors = [error]
        if self.count > 1:
            told: list[str | None] = [None] * self.count
            own = None if error is None else f"{type(error).__name__}: {error}"
            distributed.all_gather_object(told, own, group=self._group)
            errors += [
                RuntimeError(f"process {rank} of {self.count} failed: {words}")
                for rank, words in enumerate(told)
                if words is not None
            ]
        for failure in errors:
            if failure is not None:
                raise failure

    def gather(self, position: Tensor, info: dict[str, Tensor]) -> Drawn:
        """Joins ``[chains, draws, *]`` of all processes in the first one; the others keep theirs.

        Where processes were interrupted after different numbers of draws, the least is kept.
        """
        if self.count == 1:
            return position, info
        own = position.cpu(), {name: value.cpu() for name, value in info.items()}
        everyone: list[Any] | None = [None] * self.count if self.rank == 0 else None
        distributed.gather_object(own, everyone, group=self._group)
        if everyone is None:
            return position, info
        draws = min(each.shape[1] for each, _ in everyone)
        positions = torch.cat([each[:, :draws] for each, _ in everyone])
        infos = {
            name: torch.cat([each[name][:, :draws] for _, each in everyone]).to(value.device)
            for name, value in info.items()
        }
        return positions.to(position.device), infos

    def join(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Joins ``[*, chains]`` of all processes, in each of them."""
        if self.count == 1:
            return values
        everyone: list[dict[str, Tensor]] = [{} for _ in range(self.count)]
        own = {name: value.cpu() for name, value in values.items()}
        distributed.all_gather_object(everyone, own, group=self._group)
        return {
            name: torch.cat([each[name] for each in everyone], -1).to(value.device)
            for name, value in values.items()
        }
