"""Draws and statistics of a run, kept in memory that is set aside once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Draws"]

_POSITION = " position"  # no name of a field


class Draws:
    """Positions ``[draws, chains, size]`` and the fields of ``Info``, one row a draw.

    Args:
        num_chains: how many chains.
        unrecorded: fields of ``Info`` to leave out.
    """

    def __init__(self, num_chains: int, unrecorded: tuple[str, ...] = ()) -> None:
        self._num_chains = num_chains
        self._unrecorded = unrecorded
        self._count = 0
        self._capacity = 0
        self._rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    def reserve(self, count: int) -> None:
        """Makes room for so many more draws."""
        self._capacity = self._count + count

    def add(self, position: Tensor, info: Any) -> None:
        """Keeps one draw of every chain."""
        row = {_POSITION: position, **info._asdict()}
        for name, value in row.items():
            if name not in self._unrecorded:
                self._rows_of(name, value)[self._count] = value
        self._count += 1

    def cut(self, count: int) -> None:
        """Forgets all draws but the first ``count``."""
        self._count = count

    def position(self) -> Tensor:
        """``[chains, draws, size]``."""
        return self._by_chain(self._rows[_POSITION])

    def info(self) -> dict[str, Tensor]:
        """``[chains, draws]`` for each field; what the chains share is repeated."""
        return {name: self._by_chain(x) for name, x in self._rows.items() if name != _POSITION}

    def _rows_of(self, name: str, value: Tensor) -> Tensor:
        rows = self._rows.get(name)
        if rows is None or len(rows) <= self._count:
            fresh = value.new_empty(self._capacity - self._count, *value.shape)
            self._rows[name] = rows = fresh if rows is None else torch.cat([rows, fresh])
        return rows

    def _by_chain(self, rows: Tensor) -> Tensor:
        rows = rows[: self._count]
        if rows.dim() == 1:
            return rows.expand(self._num_chains, -1)
        return rows.transpose(0, 1)
