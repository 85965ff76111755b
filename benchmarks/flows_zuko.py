"""Flows side by side with zuko 1.6: a training step of FFJORD and MAF, draws from MAF.

Equal architecture: the same hidden sizes, activation, number of layers, batch, data and optimiser
(fused Adam). Both libraries take turns, round after round; what is printed is the median time and
the median ratio over rounds. Targets: FFJORD step <= 0.7, MAF step <= 1, MAF draws in 64 dimensions
<= 0.25 of zuko's time.

FFJORD also starts from equal parameters (zuko's after some training, with time turned round, as the
two map opposite ways), has the same solver (Dormand-Prince), trace and distribution of the probe,
and is compared at equal *accuracy*. Equal tolerances would not be that: zuko lets a log-determinant
err by 100 times the absolute tolerance of the value, PyroGen treats both alike. So zuko runs at its
own defaults; the worst error over the batch, of value and log-determinant, is measured for both
against zuko's solution in double precision with tolerances of 1e-9 (with the same probe); and
PyroGen takes the loosest tolerances of a ladder for which neither of its errors is above zuko's.
Errors, evaluations of the field in a solution, and our tolerances are printed below the times.

zuko is run by another interpreter, which needs ``zuko`` and the same version of torch:

    python benchmarks/flows_zuko.py --zuko-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from side_by_side import Remote, answer, ratio, side_by_side
from torch import Tensor, nn

Function = Callable[[], float]
ATOL, RTOL = 1e-6, 1e-5
LADDER = (200, 100, 50, 30, 20, 10, 5, 3, 2, 1, 0.5, 0.3, 0.1)  # times these tolerances
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


def of_zuko(name: str, state: Path) -> Function:
    """The contestant of another interpreter; leaves its parameters and errors in a file."""
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
    if kind == "ffjord":
        for _ in range(50):
            step()
        torch.save(examined(flow, x), state)
    return step if kind != "draws" else trained(step, lambda: flow().sample((batch,)))


def examined(flow: Any, x: Tensor) -> dict[str, Any]:
    """Parameters, worst errors and evaluations of zuko's flow."""
    probe = torch.randn_like(x)
    evaluations = []
    counting = flow.transform.ode.register_forward_hook(lambda *_: evaluations.append(1))
    with torch.no_grad(), patch("torch.randn_like", probe.to):
        found = flow.transform().call_and_ladj(x)
        counting.remove()
        flow.double()
        flow.transform.atol = flow.transform.rtol = 1e-9
        exact = flow.transform().call_and_ladj(x.double())
    flow.float()
    flow.transform.atol, flow.transform.rtol = ATOL, RTOL
    return {
        "parameters": [p.detach().clone() for p in flow.parameters()],
        "probe": probe,
        "exact": exact,
        "errors": errors(found, exact),
        "evaluations": len(evaluations),
    }


def errors(found: Any, exact: Any) -> list[float]:
    """The worst error of the value and of the log-determinant over the batch."""
    return [(a - b).abs().max().item() for a, b in zip(found, exact, strict=True)]


def of_pyrogen(name: str, state: Path) -> tuple[Function, str]:
    """The contestant of this library, trained by the ELBO of Pyro, and what is to be said of it."""
    from pyro.infer import Trace_ELBO

    from pyrogen.guides import Empty
    from pyrogen.losses import Compiled
    from pyrogen.models import maf

    kind, dim, batch, _, _ = CASES[name]
    x = data(dim, batch)
    report = ""
    if kind == "ffjord":
        model, report = matched(name, x, torch.load(state))
        elbo: Any = Trace_ELBO()(model, Empty())
    else:
        model = maf(dim, num_layers=3, hidden=HIDDEN)
        elbo = Compiled(Trace_ELBO())(model, Empty())
    step = training(lambda: elbo(x) / batch, model.parameters())
    if kind == "draws":
        step = trained(step, lambda: model(None, num_samples=batch))
    return step, report


def matched(name: str, x: Tensor, zuko: dict[str, Any]) -> tuple[Any, str]:
    """Our model of zuko's parameters, with tolerances for which its errors are not larger."""
    from pyrogen.models import ffjord

    _, dim, _, trace, _ = CASES[name]
    for times in LADDER:
        solver = {"atol": times * ATOL, "rtol": times * RTOL, "trace": trace, "probe": "gaussian"}
        model: Any = ffjord(dim, HIDDEN, solver={**solver, "compile": True})
        (flow,) = (m for m in model.modules() if hasattr(m, "dynamics") and hasattr(m, "solver"))
        adopt(flow.dynamics, zuko["parameters"])
        with (
            torch.no_grad(),
            patch("pyrogen.transforms.continuous.probe_like", lambda x, _: zuko["probe"].to(x)),
        ):
            value, log_det = flow.inverse_and_log_det(x)
        ours = errors((value, -log_det), zuko["exact"])
        if all(a <= b for a, b in zip(ours, zuko["errors"], strict=True)):
            break
    lines = [
        f"    {who:8s}worst error of value {e[0]:.1e}, of log-determinant {e[1]:.1e}; {n} "
        f"evaluations at atol {k * ATOL:.0e}, rtol {k * RTOL:.0e}"
        for who, e, n, k in (
            ("zuko", zuko["errors"], zuko["evaluations"], 1),
            ("PyroGen", ours, flow.num_evaluations, times),
        )
    ]
    return model, "\n" + "\n".join(lines)


def adopt(network: Any, parameters: list[Tensor]) -> None:
    """Gives our network the field -g(x, 1 - t) of zuko's g(x, t)."""
    weight, *rest = parameters
    k = torch.arange(1, network.frequencies + 1)
    sign = (-1.0) ** k
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    ours = [network.of_state.bias, *(p for layer in linear for p in (layer.weight, layer.bias))]
    with torch.no_grad():
        network.of_time.weight.copy_(weight[:, : 2 * len(k)] * torch.cat([sign, -sign]))
        network.of_state.weight.copy_(weight[:, 2 * len(k) :])
        for mine, other in zip(ours, rest, strict=True):
            mine.copy_(other)
        linear[-1].weight.neg_()
        linear[-1].bias.neg_()


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zuko-python", help="an interpreter with zuko")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="the cases whose name holds this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.serve:
        answer(of_zuko(options.serve, options.state))
        return
    if not options.zuko_python:
        print("skipped: needs --zuko-python, the path of an interpreter with zuko")
        return
    print(f"{'case':40s}{'zuko':>10s}{'PyroGen':>10s}{'ratio':>8s}{'target':>8s}")
    for name, (*_, target) in CASES.items():
        if options.only in name:
            print(line(name, target, options), flush=True)


def line(name: str, target: float, options: argparse.Namespace) -> str:
    """Times one case."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "zuko.pt"
        how = ["--serve", name, "--state", str(state), "--threads", str(options.threads)]
        remote = Remote(options.zuko_python, __file__, *how)
        remote()  # its file is complete when it answers
        function, report = of_pyrogen(name, state)
    functions = {"zuko": remote, "PyroGen": function}
    times = side_by_side(functions, options.rounds, calls=3, warmup=3)
    remote.close()
    zuko, ours = (times[key] for key in ("zuko", "PyroGen"))
    return (
        f"{name:40s}{median(zuko):7.2f} ms{median(ours):7.2f} ms"
        f"{ratio(ours, zuko):8.2f}{target:8.2f}{report}"
    )


if __name__ == "__main__":
    main()
