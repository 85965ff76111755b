"""What holds for every test: a fixed seed, an empty parameter store, and no state left behind."""

from __future__ import annotations

import matplotlib as mpl
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

mpl.use("Agg")

# name: (how to read it, how to put it back)
GLOBAL_STATE = {
    "torch default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch default device": (torch.get_default_device, torch.set_default_device),
    "torch grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "torch deterministic mode": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    "torch threads": (torch.get_num_threads, torch.set_num_threads),
    "torch matmul precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "Pyro settings": (pyro.settings.get, lambda values: pyro.settings.set(**values)),
    "Pyro handlers": (lambda: list(_PYRO_STACK), lambda _: _PYRO_STACK.clear()),
}


@pytest.fixture(autouse=True)
def guarded_state():
    """Seeds every generator, empties the parameter store, and fails a test that leaks state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    before = {name: read() for name, (read, _) in GLOBAL_STATE.items()}
    yield
    leaked = {}
    for name, (read, restore) in GLOBAL_STATE.items():
        if (after := read()) != before[name]:
            leaked[name] = f"{before[name]} -> {after}"
            restore(before[name])
    pyro.clear_param_store()
    assert not leaked, f"the test left global state changed: {leaked}"
