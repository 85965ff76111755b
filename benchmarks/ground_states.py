"""Three losses of a ground state, and the published algorithm, side by side.

One wave function, for H2 at 1.401 Bohr and for helium, is trained by

* ``PathELBO(persistent=True)``: the gradient of the paper, along paths; the same with the
  martingale as a control variate, and without the gradient of that in the parameters (sticking the
  landing);
* ``LogVariance()``: the variance of the log-ratio, over the same paths held fixed;
* ``LocalEnergy()``: variational Monte Carlo; no path at all.

Table 1: the gradient of the energy that each estimates at one and the same half-trained wave
function, normalised to the energy: its noise (the root of the summed variances) over its length,
seconds of CPU for each estimate, and the product of noise squared and seconds, which is what a
given accuracy of the gradient costs.

Table 2: seconds of CPU until an evaluation (walkers of their own, not counted) is within 0.5 per
cent of the exact energy, from the same start.

Table 3: one training step of H2 with the drift of the paper's kind, ``nn.PairDrift``: the published
algorithm (Euler's steps of 0.01, gradient along the path, persistent walkers, Adam) written plainly
in torch; ``PathELBO(persistent=True)`` under ``SVI``; and, for what an alternative costs,
``LocalEnergy`` for a wave function, as one graph.

Table 4: the Laplacian of a wave function by one pass forwards (``WaveFunction.derivatives``), and
by derivatives of the gradient along each axis (``torch.func``), both uncompiled.

    python benchmarks/ground_states.py [--minutes 5] [--tables 1 2 3 4]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from side_by_side import ratio, side_by_side
from torch import Tensor

from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, LocalEnergy, LogVariance, PathELBO
from pyrogen.models import FeynmanKac, Molecule
from pyrogen.nn import PairDrift, WaveFunction

SYSTEMS = {
    "H2": (Molecule.diatomic(1.401), -1.174476),
    "helium": (Molecule.atom(2.0, 2), -2.903724),
}
LOSSES: dict[str, Callable[[], Any]] = {
    "pathwise": lambda: PathELBO(persistent=True),
    "... martingale": lambda: PathELBO(martingale=True, persistent=True),
    "... sticking": lambda: PathELBO(sticking_the_landing=True, persistent=True),
    "log-variance": LogVariance,
    "local energy": LocalEnergy,
}
DURATION, STEPS = 0.5, 50  # of a path


def places(molecule: Molecule, count: int) -> Tensor:
    """Electrons near the nuclei, by turns."""
    x = torch.randn(count, molecule.num_electrons, 3) * 0.5 / molecule.charges.max()
    turn = torch.arange(molecule.num_electrons) + torch.randint(2, (count, 1))
    return (x + molecule.nuclei[turn % len(molecule.nuclei)]).flatten(-2)


def wave(molecule: Molecule) -> WaveFunction:
    """The same start for all."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return WaveFunction.molecule(molecule.nuclei, molecule.charges, molecule.num_electrons)


def programs(molecule: Molecule, psi: WaveFunction, walkers: int) -> tuple[FeynmanKac, PathDrift]:
    """Model and guide."""
    start = places(molecule, walkers)
    model = FeynmanKac(molecule, molecule.dim, DURATION, STEPS, num_walkers=walkers, initial=start)
    return model, PathDrift(model, drift=psi)


def optimizer(walkers: int) -> Any:
    """Adam; norms of gradients are bounded, as outliers of those along paths ask for."""
    bound = walkers * DURATION
    return pyro.optim.ClippedAdam({"lr": 5e-3, "betas": (0.9, 0.99), "clip_norm": bound})


def energy(molecule: Molecule, psi: WaveFunction, x: Tensor) -> tuple[float, float]:
    """The mean local energy of walkers that are moved on from ``x`` by Metropolis; its error."""
    model = FeynmanKac(molecule, molecule.dim, num_walkers=len(x), initial=x)
    loss = LocalEnergy(warmup_steps=100)
    loss.start(model, PathDrift(model, drift=psi), (), {})
    with torch.no_grad():
        x = loss.carried["x"]
        local = molecule(x) + psi.local_kinetic(x)
    return float(local.mean()), float(local.std()) / math.sqrt(len(x))


def gradients(walkers: int, count: int) -> None:
    """Table 1."""
    print(f"\n1. Gradients at one wave function, {walkers} walkers, {count} estimates of each")
    print("| system | loss | noise / length | CPU s | noise^2 x s | off |\n" + "|---" * 6 + "|")
    for name, (molecule, _) in SYSTEMS.items():
        psi = wave(molecule)
        model, guide = programs(molecule, psi, walkers)
        svi = SVI(model, guide, optimizer(walkers), loss=(trained := LocalEnergy()))
        for _ in range(20):
            svi.step()
        start = trained.carried["x"]

        def estimates(
            loss: Any, count: int, parts: Any = (model, guide, psi, start)
        ) -> tuple[Tensor, float]:
            model, guide, psi, start = parts
            loss.start(model, guide, (), {})
            loss.carry({**loss.carried, "x": start})
            drawn, begin = [], time.process_time()
            for _ in range(count):
                psi.zero_grad()
                loss.loss_and_grads(model, guide)
                flat = [p.grad.flatten() for p in psi.parameters() if p.grad is not None]
                drawn.append(torch.cat(flat) / (walkers * DURATION))
            return torch.stack(drawn), (time.process_time() - begin) / count

        exact = estimates(LocalEnergy(), 20 * count)[0].mean(0)
        for title, make in LOSSES.items():
            each, seconds = estimates(make(), count)
            noise = float(each.var(0).sum().sqrt() / exact.norm())
            off = float((each.mean(0) - exact).norm() / exact.norm())
            row = f"{noise:.2f} | {seconds:.3f} | {noise**2 * seconds:.3f}"
            print(
                f"| {name} | {title} | {row} | {off:.2f} ± {noise / count**0.5:.2f} |", flush=True
            )


def race(minutes: float, walkers: dict[str, int], every: float = 5.0) -> None:
    """Table 2."""
    print("\n2. CPU seconds to 0.5 % of the exact energy")
    print("| system | loss | walkers | CPU s | steps | then off, % | at the end | after |")
    print("|---" * 8 + "|")
    for name, (molecule, exact) in SYSTEMS.items():
        for title, make in LOSSES.items():
            psi = wave(molecule)
            model, guide = programs(molecule, psi, walkers[title])
            loss = make()
            svi = SVI(model, guide, optimizer(walkers[title]), loss=loss)
            spent, since, steps, reached = 0.0, 0.0, 0, None
            while spent < 60 * minutes:
                begin = time.process_time()
                svi.step()
                spent += time.process_time() - begin
                steps += 1
                if spent - since < every:
                    continue
                since = spent
                x = loss.carried["x"].repeat(-(-2000 // walkers[title]), 1)
                value, error = energy(molecule, psi, x)
                off = 100 * (value - exact) / abs(exact)
                if reached is None and off < 0.5:
                    reached = f"{spent:.0f} | {steps} | {off:+.2f}"
                if reached is not None and title in ("log-variance", "local energy"):
                    break
            final = f"{value:.5f} ± {error:.5f} | {spent:.0f} s"
            reached = reached or f"not in {spent:.0f} | {steps} | {off:+.2f}"
            row = f"{title} | {walkers[title]} | {reached} | {final}"
            print(f"| {name} | {row} |", flush=True)


class Published:
    """The published algorithm: a plain loop of Euler's steps, differentiated as it stands."""

    def __init__(self, molecule: Molecule, drift: PairDrift, walkers: int) -> None:
        self.molecule, self.drift = molecule, drift
        self.x = places(molecule, walkers)
        self.adam = torch.optim.Adam(drift.parameters(), lr=5e-4)

    def step(self) -> float:
        """One gradient step, of the mean cost per unit of time."""
        x, step = self.x, DURATION / STEPS
        cost = x.new_zeros(len(x))
        for _ in range(STEPS):
            v = self.drift(x)
            cost = cost + (0.5 * v.square().sum(-1) + self.molecule(x)) * step
            x = x + v * step + math.sqrt(step) * torch.randn_like(x)
        loss = cost.mean() / DURATION
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.x = x.detach()
        return loss.item()


def step_beside_the_published(walkers: int, rounds: int) -> None:
    """Table 3."""
    molecule, _ = SYSTEMS["H2"]

    def drift() -> PairDrift:
        pyro.set_rng_seed(0)
        return PairDrift(2, 3, 64, molecule.nuclei, molecule.charges, pair_cusp=0.5)

    published = Published(molecule, drift(), walkers)
    pyro.clear_param_store()
    start = places(molecule, walkers)
    model = FeynmanKac(molecule, molecule.dim, DURATION, STEPS, num_walkers=walkers, initial=start)
    guide = PathDrift(model, drift=drift())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 5e-4}), loss=PathELBO(persistent=True))
    print(f"\n3. A training step of H2, {walkers} walkers, {STEPS} steps of Euler, PairDrift")
    contestants: dict[str, Callable[[], object]] = {
        "plain torch": published.step,
        "PathELBO, SVI": svi.step,
    }
    psi = WaveFunction.molecule(molecule.nuclei, molecule.charges)
    local = SVI(
        model,
        PathDrift(model, drift=psi),
        pyro.optim.Adam({"lr": 5e-4}),
        loss=LocalEnergy() if rounds < 3 else Compiled(LocalEnergy()),
    )
    contestants["LocalEnergy, SVI"] = local.step
    times = side_by_side(contestants, rounds, calls=1, warmup=2)
    for name, each in times.items():
        against = ratio(each, times["plain torch"])
        print(f"   {name:<18}{median(each):8.1f} ms   {against:.2f} of plain torch", flush=True)


def laplacians(rounds: int) -> None:
    """Table 4."""
    print("\n4. The Laplacian at 1000 points")
    molecule, _ = SYSTEMS["H2"]
    for name, psi in (("H2", wave(molecule)), ("4 bosons", WaveFunction.trap(4, 2))):
        x, axes = torch.randn(1000, *psi.in_shape), torch.eye(*psi.in_shape)
        gradient = torch.func.grad(lambda x, psi=psi: psi.log_amplitude(x).sum())

        def bend(axis: Tensor, x: Tensor = x, gradient: Any = gradient) -> Tensor:
            _, change = torch.func.jvp(gradient, (x,), (axis.expand_as(x),))
            return (change * axis).sum(-1)

        with torch.no_grad():
            times = side_by_side(
                {
                    "one pass": lambda psi=psi, x=x: psi.derivatives(x),
                    "axis by axis": lambda bend=bend, axes=axes: torch.func.vmap(bend)(axes),
                },
                rounds,
                calls=1,
                warmup=2,
            )
        mine, other = median(times["one pass"]), median(times["axis by axis"])
        share = ratio(times["axis by axis"], times["one pass"])
        print(f"   {name:<9} {mine:6.1f} ms, {other:6.1f} ms; ratio {share:.1f}", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of CPU, for each of table 2")
    parser.add_argument("--tables", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    walkers = dict.fromkeys(LOSSES, 256) | {"log-variance": 128, "local energy": 1000}
    if options.smoke:
        options.minutes, options.rounds = 0.001, 2
        walkers = dict.fromkeys(walkers, 16)
    if 1 in options.tables:
        gradients(16 if options.smoke else 200, 2 if options.smoke else 30)
    if 3 in options.tables:
        step_beside_the_published(16 if options.smoke else 512, options.rounds)
    if 4 in options.tables:
        laplacians(options.rounds)
    if 2 in options.tables:
        race(options.minutes, walkers, 0.0 if options.smoke else 5.0)


if __name__ == "__main__":
    main()
