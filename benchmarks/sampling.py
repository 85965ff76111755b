"""Effective samples per second of HMC and NUTS: this library, NumPyro and Pyro side by side.

Every sampler lives in a process of its own; they take turns, round after round. A round is a whole
run, warm-up included; the first, in which graphs are compiled, is shown by itself. The effective
sample size is the smallest bulk ESS over all coordinates, by ArviZ. What is printed are medians
over rounds, and the median of the ratio within a round.

    python benchmarks/sampling.py                        # eight schools; or name other problems
    python benchmarks/sampling.py gaussian --numpyro-python /path/to/venv/bin/python
    python benchmarks/sampling.py --chains 1 10 100 1000 10000   # how cost grows

NumPyro is run by an interpreter that has ``numpyro`` and a CPU ``jax``. All compute in single
precision, adapt a diagonal mass matrix and aim at an acceptance of 0.8; HMC takes the same number
of leapfrog steps. NumPyro tunes each chain for itself, this library all chains together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

SIDES = Path(__file__).parent / "samplers"


@dataclass(frozen=True)
class Problem:
    """What is sampled, and how long."""

    name: str
    data: dict[str, np.ndarray]
    chains: int
    draws: int = 500
    warmup: int = 300
    num_steps: int = 8


def problems() -> dict[str, Problem]:
    """All of them."""
    random = np.random.default_rng(0)
    schools = {
        "errors": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        "effects": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    }
    features = random.standard_normal((1000, 20))
    probs = 1 / (1 + np.exp(-features @ random.standard_normal(20)))
    labels = (random.random(1000) < probs).astype(float)
    # An AR(1) process of correlation 0.9, seen through scales from 0.1 to 10.
    lags = np.abs(np.subtract.outer(np.arange(100), np.arange(100)))
    scale_tril = np.geomspace(0.1, 10, 100)[:, None] * np.linalg.cholesky(0.9**lags)
    found = [
        Problem("eight_schools", schools, chains=1000),
        Problem("logistic_regression", {"features": features, "labels": labels}, chains=100),
        Problem("gaussian", {"scale_tril": scale_tril}, chains=200, num_steps=32),
    ]
    return {problem.name: problem for problem in found}


class Sampler:
    """One sampler in its process."""

    def __init__(self, side: str, python: str, sampler: str, problem: Problem) -> None:
        self.label = sampler if sampler.startswith("Pyro ") else f"{side} {sampler}"
        self._folder = TemporaryDirectory()
        data = {name: array.astype(np.float32) for name, array in problem.data.items()}
        np.savez(Path(self._folder.name) / "data.npz", **data)
        settings = {k: getattr(problem, k) for k in ("chains", "draws", "warmup", "num_steps")}
        script = SIDES / ("jax_side.py" if side == "NumPyro" else "torch_side.py")
        self._process = subprocess.Popen(  # noqa: S603
            [python, script, sampler, problem.name, json.dumps(settings), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, seed: int) -> dict[str, float]:
        """Seconds and effective sample size of one run."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101
        assert stdout is not None  # noqa: S101
        print(seed, file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.label} ended: run its script in {SIDES} to see why")
        times: dict[str, float] = json.loads(answer)
        with np.load(Path(self._folder.name) / "draws.npz") as draws:
            return {**times, "ess": smallest_ess(dict(draws))}

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def smallest_ess(draws: dict[str, Any]) -> float:
    """Over all coordinates of all sites, each ``[chains, draws, *event]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz as az

        flat = np.concatenate([x.reshape(*x.shape[:2], -1) for x in draws.values()], axis=-1)
        return min(float(az.ess(flat[..., i])) for i in range(flat.shape[-1]))


def compare(problem: Problem, rounds: int, numpyro: str | None, with_pyro: bool) -> None:
    """Prints a line for each sampler."""
    ours = [("PyroGen", sys.executable, name) for name in ("HMC", "HMC chees", "NUTS")]
    theirs = [("NumPyro", numpyro, name) for name in ("HMC", "NUTS")] if numpyro else []
    pyro = [("Pyro", sys.executable, "Pyro NUTS")] if with_pyro else []
    samplers = [Sampler(side, python, name, problem) for side, python, name in ours + theirs + pyro]
    try:
        first = {sampler.label: sampler.run(0) for sampler in samplers}
        later: dict[str, list[dict[str, float]]] = {sampler.label: [] for sampler in samplers}
        for seed in range(1, rounds + 1):
            for sampler in samplers:
                later[sampler.label].append(sampler.run(seed))
    finally:
        for sampler in samplers:
            sampler.close()
    report(problem, first, later)


def report(
    problem: Problem, first: dict[str, dict[str, float]], later: dict[str, list[dict[str, float]]]
) -> None:
    """The table, and the ratios to each kernel of the others."""
    print(
        f"\n{problem.name}: {problem.chains} chains (Pyro: 1), {problem.warmup} steps of warm-up, "
        f"{problem.draws} draws, {problem.num_steps} leapfrog steps of HMC"
    )
    others = [label for label in later if not label.startswith("PyroGen")]
    heads = "".join(f"{'/ ' + label:>15}" for label in others)
    print(f"{'':<18}{'first':>8}{'wall s':>8}{'CPU s':>8}{'min ESS':>10}{'ESS / s':>10}{heads}")
    rates = {label: [run["ess"] / run["wall"] for run in runs] for label, runs in later.items()}
    for label, runs in later.items():
        wall, cpu, ess = (median(run[key] for run in runs) for key in ("wall", "cpu", "ess"))
        ratios = [
            median(a / b for a, b in zip(rates[label], rates[other], strict=True))
            for other in others
        ]
        print(
            f"{label:<18}{first[label]['wall']:>8.1f}{wall:>8.2f}{cpu:>8.2f}{ess:>10.0f}"
            f"{median(rates[label]):>10.0f}" + "".join(f"{ratio:>15.2f}" for ratio in ratios),
            flush=True,
        )


def main() -> None:
    """Reads the command line."""
    known = problems()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("problems", nargs="*", default=["eight_schools"], metavar="PROBLEM")
    parser.add_argument("--chains", type=int, nargs="*", help="instead of the problem's own")
    parser.add_argument("--without-pyro", action="store_true", help="Pyro's NUTS is slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--numpyro-python", help="an interpreter with NumPyro")
    options = parser.parse_args()
    for name in options.problems:
        if name not in known:
            parser.error(f"expected problems among {list(known)}, got {name!r}")
        for chains in options.chains or [known[name].chains]:
            problem = replace(known[name], chains=chains)
            compare(problem, options.rounds, options.numpyro_python, not options.without_pyro)


if __name__ == "__main__":
    main()
