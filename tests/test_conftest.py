"""The guard around every test notices what a test leaves behind, and puts it right again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

LEAKY = """
import pyro, pytest, torch

LEAKS = [
    lambda: torch.set_default_dtype(torch.float64),
    lambda: torch.set_grad_enabled(False),
    lambda: torch.use_deterministic_algorithms(True),
    lambda: pyro.enable_validation(False),
    lambda: pyro.settings.set(module_local_params=True),
    lambda: pyro.poutine.scale(scale=2.0).__enter__(),
]

@pytest.mark.parametrize("number", range(len(LEAKS)))
def test_leaky(number):
    LEAKS[number]()

def test_clean_after_all():
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    pyro.param("p", torch.zeros(1))

def test_fresh_store_and_seed():
    assert not pyro.get_param_store().keys()
    first = torch.rand(1)
    pyro.set_rng_seed(0)
    assert torch.equal(first, torch.rand(1))
"""


def test_the_guard_fails_a_leaking_test(tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # A leak fails the teardown, which pytest counts as an error beside the passed test.
    assert done.stdout.count("left global state changed") >= 6
    assert "8 passed, 6 errors" in done.stdout, done.stdout
