"""Ground states of traps, atoms and molecules, learned by their local energy.

A model is a potential, as a factor on Brownian paths; its guide steers the paths by the gradient of
the logarithm of a wave function, which is trained so that its local energy is low. What is reported
is another run: walkers follow the trained wave function, and their mean local energy with its error
is an upper bound of the ground state's. Beside it stand the exact energy (or, for three and four
bosons, the upper bound of a diagonalisation) and what the paper of Barr, Gispen and Lamacraft
(2020) reached by back-propagation along paths.

``--method pathwise`` trains by the paper's gradient instead, along paths, for the same table.

Written to ``--output-dir``: ``report.md`` and ``rows.json``, to which each run adds its rows.

    python examples/ground_states.py [--only helium ...]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from pyrogen.diagnostics import GroundStateEnergy, ground_state_energy
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, LocalEnergy, PathELBO
from pyrogen.models import (
    Anharmonic,
    DoubleWell,
    FeynmanKac,
    Harmonic,
    HookesAtom,
    Molecule,
    PoschlTeller,
    TrappedBosons,
)
from pyrogen.nn import Envelope, SymmetricNetwork, WaveFunction


@dataclass
class System:
    """What is asked, what is known, and how long to train.

    Attributes:
        potential: the model's.
        psi: makes the wave function.
        exact: the energy, or an upper bound.
        tolerance: in per cent.
        paper: the paper's energy.
        bound: whether ``exact`` is an upper bound.
        steps: of training.
        learning_rate: at first; it falls to zero like a cosine.
        compile: whether training and evaluation run as graphs.
    """

    potential: Any
    psi: Callable[[], WaveFunction]
    exact: float
    tolerance: float
    paper: str = ""
    bound: bool = False
    steps: int = 800
    learning_rate: float = 0.01
    compile: bool = True


def line(potential: Any, exact: float, decay: str = "gaussian") -> System:
    """One particle on a line. What decays at first is twice as wide as the oscillator's state."""

    def psi() -> WaveFunction:
        return WaveFunction(Envelope(1, 1, decay, rate=0.25), SymmetricNetwork(1, 1))

    return System(potential, psi, exact, 0.05, steps=2000, compile=False)


def electrons(molecule: Molecule, exact: float, tolerance: float, **options: Any) -> System:
    """Of an atom or a molecule. Orbitals are twice as wide at first as those of a nucleus alone,
    so that hydrogen, whose state is an orbital, has to be found too."""

    def psi() -> WaveFunction:
        made = WaveFunction.molecule(molecule.nuclei, molecule.charges, molecule.num_electrons)
        orbitals: Any = made.terms[0]
        torch.nn.init.constant_(orbitals.log_exponent, math.log(0.5 * float(molecule.charges[0])))
        return made

    return System(molecule, psi, exact, tolerance, **options)


def bosons(count: int, coupling: float, exact: float, paper: str = "") -> System:
    """In a trap of two dimensions; of more than two of them an upper bound is known."""
    return System(
        TrappedBosons(count, coupling),
        lambda: WaveFunction.trap(count, 2),
        exact,
        0.05,
        paper,
        bound=count > 2,
    )


SYSTEMS: dict[str, System] = {
    "oscillator": line(Harmonic(), 0.5),
    "double well 1": line(DoubleWell(1.0), 0.869580918934),
    "double well 2": line(DoubleWell(2.0), 1.400957265167),
    "double well 4": line(DoubleWell(4.0), 2.289649549866),
    "anharmonic": line(Anharmonic(), 0.803770651234),
    "Poschl-Teller": line(PoschlTeller(2.0), -2.0, "exponential"),
    "hydrogen": electrons(Molecule.atom(1.0, 1), -0.5, 0.02, paper="-0.497", steps=300),
    "H2+ at 2": electrons(Molecule.diatomic(2.0, 1.0, 1), -0.602634214, 0.05, steps=500),
    "helium": electrons(Molecule.atom(2.0, 2), -2.903724, 0.05, paper="-2.898"),
    "H2 at 1.401": electrons(Molecule.diatomic(1.401), -1.174476, 0.05, paper="-1.169"),
    "H2 at 2.8": electrons(Molecule.diatomic(2.8), -1.070683233, 0.1, paper="-1.068"),
    "Hooke's atom": System(HookesAtom(), lambda: WaveFunction.trap(2, 3, cusp=0.5), 2.0, 0.05),
    "2 bosons, g=1": bosons(2, 1.0, 2.12696701, "within 1 %"),
    "2 bosons, g=3": bosons(2, 3.0, 2.31198252, "within 1 %"),
    "2 bosons, g=10": bosons(2, 10.0, 2.61686674, "within 1 %"),
    "2 bosons, g=15": bosons(2, 15.0, 2.71532122, "within 1 %"),
    "3 bosons, g=3": bosons(3, 3.0, 3.886440, "3.886"),
    "3 bosons, g=6": bosons(3, 6.0, 4.347589, "4.353"),
    "3 bosons, g=12": bosons(3, 12.0, 4.812885, "4.857"),
    "3 bosons, g=16": bosons(3, 16.0, 4.986609),
    "4 bosons, g=3": bosons(4, 3.0, 5.694597, "5.692"),
    "4 bosons, g=6": bosons(4, 6.0, 6.548147, "6.535"),
    "4 bosons, g=10": bosons(4, 10.0, 7.191680),
    "4 bosons, g=16": bosons(4, 16.0, 7.725793),
}


def places(potential: Any, count: int) -> Tensor:
    """Where walkers begin: electrons by turns near the nuclei, bosons in the middle of the trap."""
    x = torch.randn(count, potential.dim)
    if not isinstance(potential, Molecule):
        return x
    electrons = x.unflatten(-1, (-1, 3)) * 0.5 / potential.charges.max()
    turn = torch.arange(potential.num_electrons) + torch.randint(2, (count, 1))
    return (electrons + potential.nuclei[turn % len(potential.nuclei)]).flatten(-2)


def cpu_minutes() -> float:
    """Of this process and the compilers that it started."""
    spent = os.times()
    return (spent.user + spent.system + spent.children_user + spent.children_system) / 60


def trained(
    system: System, psi: WaveFunction, steps: int, walkers: int, compile: bool, start: Tensor
) -> Tensor:
    """Trains ``psi``, and returns where the walkers are."""
    model = FeynmanKac(system.potential, system.potential.dim, num_walkers=walkers, initial=start)
    guide, objective = PathDrift(model, drift=psi), LocalEnergy()
    cosine = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": system.learning_rate, "betas": (0.9, 0.99)},
        "T_max": steps,
    }
    optimizer = pyro.optim.CosineAnnealingLR(cosine)
    svi = SVI(model, guide, optimizer, loss=Compiled(objective) if compile else objective)
    for _ in range(steps):
        svi.step()
        optimizer.step()
    return objective.carried["x"]


def along_paths(
    system: System, psi: WaveFunction, minutes: float, walkers: int, start: Tensor
) -> Tensor:
    """The same by the paper's gradient, along paths with persistent walkers.

    It is that of the cost alone while the drift is poor, and in the second half with its control
    variate, which then has less noise. What is minimised has the bias of the step, which near a
    nucleus is large; so it is 0.005 of a unit of time, which is that of the charge.
    """
    charge = float(getattr(system.potential, "charges", torch.ones(1)).max())
    duration = 0.2 / charge**2
    model = FeynmanKac(
        system.potential, system.potential.dim, duration, 40, num_walkers=walkers, initial=start
    )
    guide, objective = PathDrift(model, drift=psi), PathELBO(persistent=True)
    near = PathELBO(sticking_the_landing=True, persistent=True)
    rate = system.learning_rate
    options = {"lr": rate, "betas": (0.9, 0.99), "clip_norm": 0.2 * walkers}
    optimizer = pyro.optim.ClippedAdam(options)
    begin, gone = time.perf_counter(), 0.0
    while gone < 1:
        if gone > 0.5 and objective is not near:
            near.carry(objective.carried)
            objective = near
        for each in optimizer.optim_objs.values():
            each.param_groups[0]["lr"] = 0.5 * rate * (1 + math.cos(math.pi * gone))
        SVI(model, guide, optimizer, loss=objective).step()
        gone = (time.perf_counter() - begin) / (60 * minutes)
    return objective.carried["x"]


def evaluated(
    system: System, psi: WaveFunction, x: Tensor, walkers: int, duration: float, compile: bool
) -> GroundStateEnergy:
    """The energy by walkers of their own."""
    model = FeynmanKac(
        system.potential, system.potential.dim, duration=1.0, num_steps=50, num_walkers=len(x)
    )
    return ground_state_energy(
        model,
        PathDrift(model, drift=psi),
        num_walkers=walkers,
        duration=duration,
        equilibration=2.0,
        window=0.2 * duration,
        initial=x.repeat(-(-walkers // len(x)), 1)[:walkers],
        compile=compile,
    )


def row(name: str, system: System, options: Any) -> dict[str, Any]:
    """Trains and evaluates."""
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    psi, graphs = system.psi(), system.compile and not options.smoke
    walkers, steps = options.walkers, system.steps
    if options.smoke:
        walkers, steps = 20, 2
    start = places(system.potential, walkers)
    begin, cpu = time.perf_counter(), cpu_minutes()
    if options.method == "pathwise":
        x = along_paths(system, psi, 0.001 if options.smoke else options.minutes, walkers, start)
    else:
        x = trained(system, psi, steps, walkers, graphs, start)
    minutes, spent = (time.perf_counter() - begin) / 60, cpu_minutes() - cpu
    found = evaluated(
        system,
        psi,
        x,
        2 * walkers,
        2.0 if options.smoke else options.duration,
        graphs,
    )
    print(f"\n{name}: trained in {minutes:.1f} minutes\n{found}", flush=True)
    torch.save(psi.state_dict(), options.output_dir / f"{_file(name)}-{options.method}.pt")
    projected = found.projected
    return {
        "energy": found.energy,
        "error": found.error,
        "projected": projected.value if projected else None,
        "projected_error": projected.error if projected else None,
        "variance": found.variance,
        "minutes": minutes,
        "cpu_minutes": spent,
        "evaluation": (time.perf_counter() - begin) / 60 - minutes,
    }


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The report."""
    head = (
        "system", "exact", "paper", "pathwise", "ours", "off", "allowed", "importance-sampled",
        "minutes", "CPU minutes",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, system in SYSTEMS.items():
        if name not in rows:
            continue
        found = rows[name]
        ours, along = found.get("local"), found.get("pathwise")
        cells = [name, ("≤ " if system.bound else "") + f"{system.exact:.6f}", system.paper]
        cells.append(_number(along["energy"], along["error"]) if along else "")
        if ours is None:
            cells += [""] * 6
        else:
            off = 100 * (ours["energy"] - system.exact) / abs(system.exact)
            bar = 100 * ours["error"] / abs(system.exact)
            cells += [_number(ours["energy"], ours["error"]), f"{off:+.4f} ± {bar:.4f} %"]
            cells.append("at most 0" if system.bound else f"{system.tolerance} %")
            has = ours["projected"] is not None
            cells.append(_number(ours["projected"], ours["projected_error"]) if has else "")
            cells += [f"{ours['minutes']:.1f}", f"{ours['cpu_minutes']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float, error: float) -> str:
    return f"{value:.6f} ± {error:.6f}"


def chosen(names: Sequence[str]) -> dict[str, System]:
    """The systems of these names, or whose names begin so; all if none is given."""
    known = {name.lower() for name in SYSTEMS}
    found = {
        name: system
        for name, system in SYSTEMS.items()
        if not names or any(_means(each.lower(), name.lower(), known) for each in names)
    }
    if not found:
        raise SystemExit(f"--only: expected some of {list(SYSTEMS)}, got {list(names)}")
    return found


def _means(given: str, name: str, known: set[str]) -> bool:
    return name == given if given in known else name.startswith(given)


def main() -> None:
    """Trains each system, and adds to the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/ground_states"))
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names of systems")
    parser.add_argument("--method", choices=("local", "pathwise"), default="local")
    parser.add_argument("--minutes", type=float, default=10.0, help="of pathwise training")
    parser.add_argument("--walkers", type=int, default=1000)
    parser.add_argument("--duration", type=float, default=20.0, help="of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.smoke and not options.only:
        options.only = ["oscillator", "helium"]
    store = options.output_dir / "rows.json"
    rows = json.loads(store.read_text()) if store.exists() else {}
    for name, system in chosen(options.only).items():
        found = row(name, system, options)
        rows.setdefault(name, {})[options.method] = found
        store.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        page = f"# Ground states\n\nEnergies in atomic units.\n\n{table(rows)}\n"
        (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
