"""Batches of data, cut the same way in one process and in several.

The order of epoch ``e`` is a function of a seed and of ``e`` alone: ``torch.randperm`` of a
generator seeded with ``seed + e``. So a run can be continued in the middle of an epoch, and all
processes agree on the order without speaking to each other. Of each batch of ``B`` data, process
``r`` of ``W`` takes every ``W``-th datum from the ``r``-th on, and weights its loss by its share of
the ``B``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyrogen.checks import check_data
from pyrogen.training._random import forked_rng


class Batch(NamedTuple):
    """What one process sees of a batch.

    Attributes:
        args: arguments of the program; tensors ``[b, *event]``.
        num_data: the data ``B`` of the whole batch, over all processes.
        share: ``b / B``; 0 where the batch has fewer data than there are processes. Such a process
            computes with the batch's first datum, so that it takes part in the communication.
    """

    args: tuple[Tensor, ...]
    num_data: int
    share: float


@dataclass(frozen=True)
class Shard:
    """Which part of each batch this process takes, and where to."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def of_index(self, index: Tensor) -> tuple[Tensor, float]:
        """This process's part of the indices of a batch, and its share."""
        if self.world_size == 1:
            return index, 1.0
        mine = index[self.rank :: self.world_size]
        return (mine, len(mine) / len(index)) if len(mine) else (index[:1], 0.0)


class Batches(Protocol):
    """Data that can be walked through once per epoch."""

    num_batches: int | None
    seed: int

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first ``skip``."""

    def example(self) -> Batch:
        """A batch to try the programs on."""

    def describe(self) -> dict[str, Any]:
        """What must agree for a run to be continued."""


class TensorBatches:
    """Tensors in memory, cut by an index. The last batch may be smaller."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        shard: Shard,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        self._tensors = tuple(tensor.to(shard.device) for tensor in tensors)
        self._num_data = len(tensors[0])
        self._batch_size = min(batch_size, self._num_data)
        self._shard = shard
        self.seed = seed
        self._shuffle = shuffle
        self.num_batches: int | None = -(-self._num_data // self._batch_size)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        for index in self._order(number).split(self._batch_size)[skip:]:
            yield self._take(index)

    def example(self) -> Batch:
        return self._take(torch.arange(self._batch_size, device=self._shard.device))

    def describe(self) -> dict[str, Any]:
        return {
            "data": [f"{list(tensor.shape)} {tensor.dtype}" for tensor in self._tensors],
            "data checksum": [_checksum(tensor) for tensor in self._tensors],
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
        }

    def _order(self, number: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(self._num_data, device=self._shard.device)
        generator = torch.Generator().manual_seed(self.seed + number)
        return torch.randperm(self._num_data, generator=generator).to(self._shard.device)

    def _take(self, index: Tensor) -> Batch:
        mine, share = self._shard.of_index(index)
        args = tuple(tensor.index_select(0, mine) for tensor in self._tensors)
        return Batch(args, len(index), share)


class IterableBatches:
    """A ``DataLoader``, or any other iterable of batches that can be walked through again."""

    def __init__(self, loader: Iterable[Any], shard: Shard, seed: int) -> None:
        self._loader = loader
        self._shard = shard
        self.seed = seed
        self.num_batches: int | None = _length(loader)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        # A DataLoader draws its seeds from torch's generator when its first batch is asked for.
        with forked_rng(torch.device("cpu"), self.seed + number):
            iterator = iter(self._loader)
            head = list(islice(iterator, skip + 1))[skip:]
        for batch in head:
            yield self._take(batch)
        for batch in iterator:
            yield self._take(batch)

    def example(self) -> Batch:
        with forked_rng(torch.device("cpu"), self.seed):
            for batch in self._loader:
                return self._take(batch)
        raise ValueError("data: expected at least one batch, got an iterable that yields none")

    def describe(self) -> dict[str, Any]:
        return {"data": type(self._loader).__name__, "batches": self.num_batches}

    def _take(self, batch: Any) -> Batch:
        tensors = as_tensors(batch, "data (a batch of the iterable)")
        index, share = self._shard.of_index(torch.arange(len(tensors[0])))
        args = tuple(tensor.to(self._shard.device, non_blocking=True) for tensor in tensors)
        if self._shard.world_size > 1:
            args = tuple(tensor[index.to(tensor.device)] for tensor in args)
        return Batch(args, len(tensors[0]), share)


def make_batches(
    data: Any, name: str, shard: Shard, *, batch_size: int, seed: int, shuffle: bool
) -> Batches:
    """Batches of a tensor, of a tuple of tensors of one length, or of an iterable of batches.

    Raises:
        ValueError: if the data are none of these, empty, of different lengths, or not finite.
    """
    if isinstance(data, Tensor | tuple):
        tensors = as_tensors(data, name)
        return TensorBatches(tensors, shard, batch_size=batch_size, seed=seed, shuffle=shuffle)
    is_array = isinstance(data, str | dict) or hasattr(data, "__array__")
    if is_array or not isinstance(data, Iterable):
        raise ValueError(
            f"{name}: expected a Tensor, a tuple of Tensors or a DataLoader, got "
            f"{type(data).__name__}; convert with torch.as_tensor"
        )
    if iter(data) is data:
        raise ValueError(
            f"{name}: expected an iterable that can be walked through once per epoch, got the "
            f"iterator {type(data).__name__}; pass a list of batches or a DataLoader"
        )
    return IterableBatches(data, shard, seed)


def as_tensors(data: Any, name: str) -> tuple[Tensor, ...]:
    """The arguments of a program that a batch stands for, checked."""
    tensors = tuple(data) if isinstance(data, tuple | list) else (data,)
    if not tensors:
        raise ValueError(
            f"{name}: expected at least one Tensor, got an empty {type(data).__name__}"
        )
    for tensor in tensors:
        check_data(tensor, tuple(getattr(tensor, "shape", ()))[1:], name=name)
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: expected tensors of one length, got lengths {lengths}")
    return tensors


def _length(loader: Any) -> int | None:
    """The number of batches, where known: a ``DataLoader`` has ``__len__`` in any case, which fails
    over an ``IterableDataset``."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)
