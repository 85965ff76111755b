"""Starts a module of the tests in two processes, and reads what each of them leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import torch

from tests.modules import ROOT

TIMEOUT = 240


def ends_of_two_processes(module, directory, *, launcher=()):
    """Runs ``python [launcher] -m module directory``; loads both ``directory/rank<r>.pt``."""
    clean = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", module, str(directory)],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output.decode()
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
