"""Lightning Fabric, started so that it leaves the process as it found it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
from pyro.nn import PyroModule
from torch import nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric


PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
_SET_ON_IMPORT = "PYTORCH_NVML_BASED_CUDA_CHECK"


def start_fabric(accelerator: str, devices: Any, strategy: Any, precision: Any) -> Fabric:
    """A Fabric for one device, or for several processes that hold whole copies of the parameters.

    Raises:
        ImportError: if Lightning Fabric is not installed.
        ValueError: if the precision or strategy is none that ``fit`` can continue exactly.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}; 16-bit floats "
            "need a loss scale that skips steps, use 'bf16-mixed'"
        )
    with _unchanged_globals():
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies import (
                DDPStrategy,
                SingleDeviceStrategy,
            )
        except ImportError as error:
            raise ImportError(
                "training.fit runs on Lightning Fabric: pip install 'pyrogen[train]'"
            ) from error
        fabric = Fabric(
            accelerator=accelerator, devices=devices, strategy=strategy, precision=precision
        )
    spawns = getattr(fabric.strategy, "_start_method", "popen") != "popen"
    if spawns or not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            "strategy: expected 'auto' or 'ddp' (which run the script once per device), got "
            f"{strategy!r}; in a notebook, use devices=1"
        )
    return fabric


@contextmanager
def _unchanged_globals() -> Iterator[None]:
    """Importing Fabric adds warning filters and sets an environment variable; undo both.

    Its wrapper around ``torch.compile``, which only notes the arguments, stays: Fabric would miss
    it later.
    """
    before = os.environ.get(_SET_ON_IMPORT)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if before is None:
            os.environ.pop(_SET_ON_IMPORT, None)


@contextmanager
def local_parameters(*programs: Any) -> Iterator[None]:
    """Inside, programs keep their parameters to themselves instead of in Pyro's global store."""
    with pyro.settings.context(module_local_params=True):
        for program in programs:
            for module in _modules(program):
                # Pyro prepares this only in modules built while the setting was on.
                if isinstance(module, PyroModule) and not hasattr(
                    module._pyro_context, "param_state"
                ):
                    module._pyro_context.param_state = {"params": {}, "constraints": {}}
        yield


@contextmanager
def training_mode(*programs: Any) -> Iterator[None]:
    """Inside, a program in ``eval()`` mode is in ``train()`` mode. Where only some of its parts
    are in ``eval()`` mode, that was meant, and stays."""
    with _kept_modes(*programs):
        for program in programs:
            if isinstance(program, nn.Module) and not program.training:
                program.train()
        yield


@contextmanager
def evaluation_mode(*programs: Any) -> Iterator[None]:
    """Inside, the programs are in ``eval()`` mode."""
    with _kept_modes(*programs):
        for program in programs:
            if isinstance(program, nn.Module):
                program.eval()
        yield


@contextmanager
def _kept_modes(*programs: Any) -> Iterator[None]:
    modes = [(module, module.training) for program in programs for module in _modules(program)]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _modules(program: Any) -> list[nn.Module]:
    return list(program.modules()) if isinstance(program, nn.Module) else []
