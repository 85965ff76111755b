"""Checkpoints on disk: written whole or not at all, and checked when read.

A checkpoint is a directory ``checkpoint-<n>`` with two files: ``tensors.pt``, a flat dictionary of
tensors, and ``state.json``, which holds all else, the configuration of the run, and the SHA-256 of
the tensors' file. Both are written and flushed to disk under a temporary name; the renaming of the
directory, which is atomic, makes them a checkpoint. The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyrogen.training._packing import pack, unpack

FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{8})")
_PARTIAL = ".partial-"


class CheckpointDirectory:
    """The checkpoints of one run.

    Args:
        path: where they lie; made when the first is saved.
        config: what must agree for the run to be continued; JSON.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._config = json.loads(json.dumps(config))
        self._first = 0

    def start_anew(self) -> None:
        """Checkpoints that are here now give way to the next one saved."""
        self._first = max(self._found(), default=-1) + 1

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or ``None`` if there is none.

        Raises:
            ValueError: if it is of a run of another configuration.
        """
        for number, path in sorted(self._found().items(), reverse=True):
            try:
                content = _read(path)
            except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                warnings.warn(f"{path} is damaged and not used: {error}", stacklevel=2)
                continue
            self._check(content["config"])
            self._first = min(self._first, number)
            state: dict[str, Any] = content["state"]
            return state
        return None

    def save(self, state: Mapping[str, Any]) -> Path:
        """Writes a state as the newest checkpoint and removes the one before the last."""
        self.path.mkdir(parents=True, exist_ok=True)
        number = max(self._found(), default=-1) + 1
        partial = self.path / f"{_PARTIAL}{number:08d}-{os.getpid()}"
        final = self.path / f"checkpoint-{number:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write(partial, self._config, state)
        partial.rename(final)
        _flush(self.path)
        self._remove_before(max(self._first, number - 1))
        return final

    def _found(self) -> dict[int, Path]:
        if not self.path.is_dir():
            return {}
        matches = ((_NAME.fullmatch(path.name), path) for path in self.path.iterdir())
        return {int(match[1]): path for match, path in matches if match and path.is_dir()}

    def _remove_before(self, oldest: int) -> None:
        old = [path for number, path in self._found().items() if number < oldest]
        for path in [*old, *self.path.glob(f"{_PARTIAL}*")]:
            shutil.rmtree(path, ignore_errors=True)

    def _check(self, saved: Mapping[str, Any]) -> None:
        names = [*saved, *(name for name in self._config if name not in saved)]
        different = [
            f"{name}: expected {saved.get(name)} as saved, got {self._config.get(name)}"
            for name in names
            if saved.get(name) != self._config.get(name)
        ]
        if different:
            raise ValueError(
                f"{self.path} holds a run of another configuration: {'; '.join(different)}. Call "
                "fit as before, choose another checkpoint_dir, or pass resume=False to replace it"
            )


def _write(directory: Path, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    tree, tensors = pack(state)
    torch.save(tensors, directory / "tensors.pt")
    content = {
        "format": FORMAT,
        "config": config,
        "state": tree,
        "sha256": _sha256(directory / "tensors.pt"),
    }
    (directory / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    for path in (directory / "tensors.pt", directory / "state.json", directory):
        _flush(path)


def _read(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {content['format']}")
    if _sha256(directory / "tensors.pt") != content["sha256"]:
        raise ValueError("the checksum of tensors.pt does not match")
    tensors = torch.load(directory / "tensors.pt", map_location="cpu", weights_only=True)
    return {"config": content["config"], "state": unpack(content["state"], tensors)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
