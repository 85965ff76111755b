"""Draws and statistics of a run, kept in memory that is set aside once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Positions ``[draws, chains, size]`` and the fields of ``Info``, one row a draw.

    Args:
        capacity: how many draws there will be.
        num_chains: how many chains.
        unrecorded: fields of ``Info`` to leave out.
    """

    def __init__(self, capacity: int, num_chains: int, unrecorded: tuple[str, ...] = ()) -> None:
        self._capacity = capacity
        self._num_chains = num_chains
        self._unrecorded = unrecorded
        self._count = 0
        self._position: Tensor | None = None
        self._info: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, position: Tensor, info: Any) -> None:
        """Keeps one draw of every chain."""
        if self._position is None:
            self._set_aside(position, info)
        assert self._position is not None  # noqa: S101
        self._position[self._count] = position
        for name, rows in self._info.items():
            rows[self._count] = getattr(info, name)
        self._count += 1

    def position(self) -> Tensor:
        """``[chains, draws, size]``."""
        assert self._position is not None  # noqa: S101
        return self._position[: self._count].transpose(0, 1)

    def info(self) -> dict[str, Tensor]:
        """``[chains, draws]`` for each field; what the chains share is repeated."""
        return {name: self._by_chain(rows[: self._count]) for name, rows in self._info.items()}

    def _set_aside(self, position: Tensor, info: Any) -> None:
        self._position = position.new_empty(self._capacity, *position.shape)
        self._info = {
            name: value.new_empty(self._capacity, *value.shape)
            for name, value in info._asdict().items()
            if name not in self._unrecorded
        }

    def _by_chain(self, rows: Tensor) -> Tensor:
        if rows.dim() == 1:
            return rows.expand(self._num_chains, -1)
        return rows.transpose(0, 1)
