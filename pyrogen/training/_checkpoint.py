"""Checkpoints on disk: written whole or not at all, and checked when read.

A checkpoint is a directory ``checkpoint-<n>`` with two files: ``tensors.pt``, a flat dictionary of
tensors, and ``state.json``, which holds all else, the configuration of the run, and the SHA-256 of
the two. Both are written and flushed to disk under a temporary name, which says who writes; the
renaming of the directory, which is atomic, makes them a checkpoint. The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyrogen.training._packing import pack, unpack

FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{8})")
_DAMAGES = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    pickle.UnpicklingError,
)


class CheckpointDirectory:
    """The checkpoints of one run.

    Args:
        path: where they lie.
        config: what must agree for the run to be continued; JSON.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._config = json.loads(json.dumps(config))
        self._first = 0

    def prepare(self) -> None:
        """Makes the directory, and tries to write in it.

        Raises:
            ValueError: if that fails.
        """
        try:
            with self._partial():
                self._found()
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir: expected a directory to read and write in, got {self.path} "
                f"({error}); choose another"
            ) from error

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
            except _DAMAGES as error:
                warnings.warn(f"{path} is damaged and not used: {error}", stacklevel=2)
                continue
            self._check(content["config"])
            self._first = min(self._first, number)
            state: dict[str, Any] = content["state"]
            return state
        return None

    def save(self, state: Mapping[str, Any]) -> Path:
        """Writes a state as the newest checkpoint and removes the one before the last."""
        with self._partial() as partial:
            _write(partial, self._config, state)
            number = self._publish(partial)
        self._remove_before(max(self._first, number - 1))
        return self._named(number)

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """A directory to write in, which is gone afterwards."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f"{_own_partials()}{os.getpid()}-{secrets.token_hex(8)}"
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _publish(self, partial: Path) -> int:
        """Makes the directory the newest checkpoint."""
        number = max(self._found(), default=-1) + 1
        while True:
            try:
                partial.rename(self._named(number))
            except OSError:
                if not self._named(number).exists():
                    raise
                number += 1  # another run was faster
            else:
                _flush(self.path)
                return number

    def _named(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:08d}"

    def _found(self) -> dict[int, Path]:
        if not self.path.is_dir():
            return {}
        matches = ((_NAME.fullmatch(path.name), path) for path in self.path.iterdir())
        return {int(match[1]): path for match, path in matches if match and path.is_dir()}

    def _remove_before(self, oldest: int) -> None:
        old = [path for number, path in self._found().items() if number < oldest]
        for path in [*old, *_abandoned(self.path)]:
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


def _own_partials() -> str:
    """How the names of what this machine is still writing begin; the number of the process and
    something random follow."""
    return f".partial-{socket.gethostname()}-"


def _abandoned(directory: Path) -> list[Path]:
    """What processes of this machine were writing when they were killed."""
    begin = _own_partials()
    partials = (path for path in directory.iterdir() if path.name.startswith(begin))
    writers = ((path, path.name[len(begin) :].partition("-")[0]) for path in partials)
    return [path for path, pid in writers if pid.isdecimal() and not _lives(int(pid))]


def _lives(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _write(directory: Path, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    tree, tensors = pack(state)
    torch.save(tensors, directory / "tensors.pt")
    content = {
        "format": FORMAT,
        "config": config,
        "state": tree,
        "sha256": _sha256(directory / "tensors.pt", config, tree),
    }
    (directory / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    for path in (directory / "tensors.pt", directory / "state.json", directory):
        _flush(path)


def _read(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {content['format']}")
    expected = _sha256(directory / "tensors.pt", content["config"], content["state"])
    if content["sha256"] != expected:
        raise ValueError("the checksum does not match")
    tensors = torch.load(directory / "tensors.pt", map_location="cpu", weights_only=True)
    return {"config": content["config"], "state": unpack(content["state"], tensors)}


def _sha256(tensors: Path, config: Any, tree: Any) -> str:
    digest = hashlib.sha256(tensors.read_bytes())
    digest.update(json.dumps([config, tree]).encode())
    return digest.hexdigest()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
