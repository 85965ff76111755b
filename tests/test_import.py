"""Importing PyroGen changes nothing in torch, Pyro or Python, and the top module stays light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pyrogen
from tests.modules import MODULES

HEAVY = {"arviz", "matplotlib", "lightning_fabric", "torchsde", "torchdiffeq", "scipy", "sklearn"}

# The third-party libraries are imported first: what they do to the state is not ours to answer for.
PROBE = """
import importlib, json, sys, warnings
import numpy, random, torch, pyro
warnings.simplefilter("ignore")
for name in ("arviz", "matplotlib.pyplot", "lightning_fabric", "torchsde", "torchdiffeq"):
    importlib.import_module(name)

def state():
    return {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": str(numpy.random.get_state()),
        "python rng": str(random.getstate()),
        "settings": repr(pyro.settings.get()),
        "validation": torch.distributions.Distribution._validate_args,
        "parameters": sorted(pyro.get_param_store().keys()),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "warnings": repr(warnings.filters),
        "backend": sys.modules["matplotlib"].get_backend(),
        "rcParams": repr(dict(sys.modules["matplotlib"].rcParams)),
    }

before = state()
importlib.import_module(sys.argv[1])
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def run(*args):
    command = [sys.executable, "-c", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_every_module_changes_no_global_state():
    imports = "".join(f"importlib.import_module({name!r})\n" for name in MODULES)
    script = PROBE.replace("importlib.import_module(sys.argv[1])\n", imports)
    assert script != PROBE
    assert run(script) == []


def test_the_probe_notices_a_change():
    """zuko-like side effects on import are what the test above is there for."""
    script = PROBE.replace(
        "importlib.import_module(sys.argv[1])",
        "torch.set_default_dtype(torch.float64); torch.rand(1); warnings.simplefilter('error')",
    )
    assert run(script) == ["dtype", "torch rng", "warnings"]


def test_the_top_module_is_light():
    loaded = run("import json, sys, pyrogen; print(json.dumps(list(sys.modules)))")
    assert not HEAVY & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("name", pyrogen.__all__)
def test_parts_are_attributes(name):
    assert getattr(pyrogen, name).__name__ == f"pyrogen.{name}"
    assert name in dir(pyrogen)


def test_an_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pyrogen.nonsense
