"""Flows side by side with zuko 1.6: a training step of FFJORD and MAF, draws from MAF.

Equal architecture: the same hidden sizes, activation, number of layers, batch, data and optimiser
(fused Adam); for FFJORD the same solver (Dormand-Prince), tolerances and trace. Both libraries take
turns, round after round; what is printed is the median time and the median ratio over rounds.
Targets: FFJORD step <= 0.7, MAF step <= 1, MAF draws in 64 dimensions <= 0.25 of zuko's time.

zuko is run by another interpreter, which needs ``zuko`` and the same version of torch:

    python benchmarks/flows_zuko.py --zuko-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from side_by_side import ratio, side_by_side
from torch import Tensor, nn

Function = Callable[[], float]
ATOL, RTOL = 1e-6, 1e-5
HIDDEN = (64, 64)
# name: kind, dimensions, batch, trace, target
CASES: dict[str, tuple[str, int, int, str, float]] = {
    "FFJORD step, 2 dimensions, exact": ("ffjord", 2, 256, "exact", 0.7),
    "FFJORD step, 6 dimensions, exact": ("ffjord", 6, 256, "exact", 0.7),
    "FFJORD step, 16 dimensions, Hutchinson": ("ffjord", 16, 256, "hutchinson", 0.7),
    "MAF step, 6 dimensions": ("maf", 6, 256, "", 1.0),
    "MAF step, 64 dimensions": ("maf", 64, 256, "", 1.0),
    "MAF draws, 64 dimensions": ("draws", 64, 256, "", 0.25),
}


def data(dim: int, batch: int) -> Tensor:
    """A bent and correlated cloud, the same for both."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, dim, generator=generator).cumsum(-1) / dim**0.5
    return x + 0.5 * x.roll(1, -1).square()


def training(loss: Callable[[], Tensor], parameters: Any) -> Function:
    """A step of fused Adam."""
    optimizer = torch.optim.Adam(list(parameters), lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def trained(step: Function, draw: Callable[[], Tensor]) -> Function:
    """Draws after some training, so that the dimensions depend on each other."""
    for _ in range(200):
        step()

    def run() -> float:
        with torch.no_grad():
            return draw().sum().item()

    return run


def of_zuko(name: str) -> Function:
    """The contestant of another interpreter."""
    import zuko

    kind, dim, batch, trace, _ = CASES[name]
    x = data(dim, batch)
    flow: Any
    if kind == "ffjord":
        flow = zuko.flows.CNF(
            dim, hidden_features=HIDDEN, activation=nn.Tanh, exact=trace == "exact", atol=ATOL,
            rtol=RTOL,
        )  # fmt: skip
    else:
        flow = zuko.flows.MAF(dim, transforms=3, hidden_features=HIDDEN)
    step = training(lambda: -flow().log_prob(x).mean(), flow.parameters())
    return step if kind != "draws" else trained(step, lambda: flow().sample((batch,)))


def of_pyrogen(name: str) -> Function:
    """The contestant of this library, trained by the ELBO of Pyro."""
    from pyro.infer import Trace_ELBO

    from pyrogen.guides import Empty
    from pyrogen.losses import Compiled
    from pyrogen.models import ffjord, maf

    kind, dim, batch, trace, _ = CASES[name]
    x = data(dim, batch)
    if kind == "ffjord":
        solver = {"atol": ATOL, "rtol": RTOL, "trace": trace, "compile": True}
        model: Any = ffjord(dim, HIDDEN, solver=solver)
        elbo = Trace_ELBO()(model, Empty())
    else:
        model = maf(dim, num_layers=3, hidden=HIDDEN)
        elbo = Compiled(Trace_ELBO())(model, Empty())
    step = training(lambda: elbo(x) / batch, model.parameters())
    return step if kind != "draws" else trained(step, lambda: model(None, num_samples=batch))


class Remote:
    """A function of another interpreter, called through a pipe."""

    def __init__(self, python: str, name: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [python, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> float:
        """Asks for one call and waits for its result."""
        sent, received = self._process.stdin, self._process.stdout
        if sent is None or received is None:
            raise RuntimeError("the other interpreter has no pipes")
        print(file=sent, flush=True)
        return float(received.readline())

    def close(self) -> None:
        """Ends the other interpreter."""
        self._process.communicate()


def serve(name: str) -> None:
    """Answers each line of the input with the result of a call."""
    function = of_zuko(name)
    for _ in sys.stdin:
        print(function(), flush=True)


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zuko-python", help="an interpreter with zuko")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="the cases whose name holds this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.serve:
        serve(options.serve)
        return
    if not options.zuko_python:
        parser.error("--zuko-python: expected the path of an interpreter with zuko")
    print(f"{'case':40s}{'zuko':>10s}{'PyroGen':>10s}{'ratio':>8s}{'target':>8s}")
    for name, (*_, target) in CASES.items():
        if options.only in name:
            print(line(name, target, options), flush=True)


def line(name: str, target: float, options: argparse.Namespace) -> str:
    """Times one case."""
    remote = Remote(options.zuko_python, name)
    functions = {"zuko": remote, "PyroGen": of_pyrogen(name)}
    times = side_by_side(functions, options.rounds, calls=3, warmup=20)
    remote.close()
    zuko, ours = (times[key] for key in ("zuko", "PyroGen"))
    return (
        f"{name:40s}{median(zuko):7.2f} ms{median(ours):7.2f} ms"
        f"{ratio(ours, zuko):8.2f}{target:8.2f}"
    )


if __name__ == "__main__":
    main()
