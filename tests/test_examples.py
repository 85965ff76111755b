"""Every example runs to its end with ``--smoke``, in a folder of its own, and writes something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# These compile so much that even their smallest run takes about half a minute or more.
LONG = {"deep_boltzmann_digits", "diffusion_samplers", "ising", "rbm_digits"}


def marked(script):
    return pytest.param(
        script, id=script.stem, marks=[pytest.mark.slow] if script.stem in LONG else []
    )


@pytest.mark.parametrize("script", [marked(script) for script in EXAMPLES])
def test_example_runs(script, tmp_path):
    output = tmp_path / "output"
    done = subprocess.run(
        [sys.executable, str(script), "--smoke", "--output-dir", str(output)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert any(output.iterdir()), "the example wrote nothing to --output-dir"
    assert [path.name for path in tmp_path.iterdir()] == ["output"], "it wrote beside --output-dir"


def test_there_are_examples():
    assert {script.stem for script in EXAMPLES} > LONG
