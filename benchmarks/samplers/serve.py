"""A sampler in a process of its own: runs when asked to, says how long it took, keeps the draws.

    python torch_side.py SAMPLER PROBLEM SETTINGS FOLDER

reads a seed from each line of standard input and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[int], dict[str, Any]]


def serve(make: Callable[[str, str, dict[str, Any], dict[str, int]], Run]) -> None:
    """Answers until the input ends."""
    sampler, problem, settings, folder = sys.argv[1:]
    with np.load(Path(folder) / "data.npz") as arrays:
        data = dict(arrays)
    run = make(sampler, problem, data, json.loads(settings))
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        draws = run(int(line))
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        np.savez(Path(folder) / "draws.npz", **draws)
        print(json.dumps(times), flush=True)
