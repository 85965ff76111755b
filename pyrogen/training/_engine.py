"""Lightning Fabric, started so that it leaves the process as it found it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import Precision


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
            from lightning_fabric.plugins import MixedPrecision
            from lightning_fabric.strategies import (
                DDPStrategy,
                SingleDeviceStrategy,
            )
        except ImportError as error:
            raise ImportError(
                "training.fit runs on Lightning Fabric: pip install 'pyrogen[train]'"
            ) from error
        options = {"accelerator": accelerator, "devices": devices, "strategy": strategy}
        plugin = _precision(precision)
        fabric = Fabric(**options, plugins=[plugin])
        if isinstance(plugin, MixedPrecision):
            plugin.device = fabric.device.type
    spawns = getattr(fabric.strategy, "_start_method", "popen") != "popen"
    if spawns or not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            "strategy: expected 'auto' or 'ddp' (which run the script once per device), got "
            f"{strategy!r}; in a notebook, use devices=1"
        )
    return fabric


def _precision(name: str) -> Precision:
    """Fabric's precision of this name, but it rounds neither the data under autocast, of which a
    likelihood scores the values, nor a loss in float64."""
    from lightning_fabric.plugins import DoublePrecision, HalfPrecision, MixedPrecision
    from lightning_fabric.plugins.precision import Precision

    class Mixed(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    class Double(DoublePrecision):
        def convert_output(self, data: Any) -> Any:
            return data

    if name == "bf16-mixed":
        return Mixed("bf16-mixed", device="cpu")  # until Fabric has chosen one
    if name == "bf16-true":
        return HalfPrecision("bf16-true")
    return Double() if name == "64-true" else Precision()


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
