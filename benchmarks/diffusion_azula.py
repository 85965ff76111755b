"""Ancestral sampling side by side with azula's DDPM sampler.

Equal work: the same network, with the same weights, asked for the mean of the data in the same
states of the same schedule; 256 draws in 500 steps from noise. Both take turns, round after round;
what is printed is the median time of one run and the median ratio over rounds. Target: at most 0.8
of azula's time.

Ours is ``kernels.MCMC(kernels.ReverseDiffusion(...))``, every step one graph, which also looks
after states that are not finite. Compiling takes some seconds, once, and is not counted. azula's
sampler runs operation by operation; with ``--compiled-model`` it is given a network that
torch.compile was called on. What is left to gain depends on the network: of the larger multilayer
perceptron's time, nearly all goes into products of matrices, which are the same for both.

azula is run by another interpreter, which needs ``azula`` and the same version of torch:

    python benchmarks/diffusion_azula.py --azula-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from side_by_side import Remote, answer, ratio, side_by_side
from torch import Tensor, nn

TARGET, DRAWS, STEPS, MIN_TIME = 0.8, 256, 500, 1e-3
BETA_MIN, BETA_MAX = 0.1, 20.0
Function = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """What the data are like and how large the network is."""

    shape: tuple[int, ...]
    hidden: int
    convolutional: bool = False

    def layer(self, size: int, out: int) -> nn.Module:
        """One linear map."""
        if self.convolutional:
            return nn.Conv2d(size, out, 3, padding=1)
        return nn.Linear(size, out)


CASES = {
    "MLP, 2 dimensions, 64 units": Case((2,), 64),
    "MLP, 64 dimensions, 256 units": Case((64,), 256),
    "convolutions, 1 x 8 x 8, 16 channels": Case((1, 8, 8), 16, convolutional=True),
}


class Network(nn.Module):
    """The mean of the data, from the state at unit variance and its noise-to-signal ratio."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = case.shape[0] + 1
        for _ in range(3):
            layers += [case.layer(size, case.hidden), nn.SiLU()]
            size = case.hidden
        self.layers = nn.Sequential(*layers, case.layer(size, case.shape[0]))

    def forward(self, x: Tensor, log_ratio: Tensor) -> Tensor:
        """``[n, *shape]`` of states and the logarithms ``[n]`` or ``[]``."""
        time = log_ratio.reshape(-1, *[1] * (x.dim() - 1)).expand(len(x), 1, *x.shape[2:])
        result: Tensor = self.layers(torch.cat([x, time], 1))
        return result


def network(case: Case) -> Network:
    """The network, of equal weights in both interpreters."""
    torch.manual_seed(0)
    return Network(case)


def of_azula(case: Case, compiled: bool) -> Function:
    """The contestant of another interpreter."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule
    from azula.sample import DDPMSampler

    class Linear(Schedule):  # type: ignore[misc]
        """The variance-preserving process of a rate linear in time."""

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            total = t * (BETA_MIN + 0.5 * t * (BETA_MAX - BETA_MIN))
            return (-0.5 * total).exp(), (-torch.expm1(-total)).sqrt()

    class Plain(Denoiser):  # type: ignore[misc]
        """The network alone."""

        def __init__(self) -> None:
            super().__init__()
            net = network(case)
            self.schedule = Linear()
            self.net = torch.compile(net) if compiled else net

        def forward(self, x: Tensor, t: Tensor) -> DiracPosterior:
            """The mean of the data."""
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=self.net(x, (sigma / alpha).log()))

    sampler = DDPMSampler(Plain(), stop=MIN_TIME, steps=STEPS, silent=True)

    def run() -> float:
        return float(sampler(sampler.init((DRAWS, *case.shape), var=0.0)).square().mean())

    return run


def of_pyrogen(case: Case) -> Function:
    """The contestant of this library."""
    from pyrogen.distributions import ScoreBased
    from pyrogen.kernels import MCMC, ReverseDiffusion
    from pyrogen.processes import VariancePreserving

    class Plain(nn.Module):
        """The network alone."""

        def __init__(self) -> None:
            super().__init__()
            self.net = network(case)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            """The mean of the data."""
            mean: Tensor = self.net(x, -0.5 * process.log_snr(t))
            return mean

    process = VariancePreserving(BETA_MIN, BETA_MAX)
    fn = ScoreBased(process, Plain(), case.shape, "data", min_time=MIN_TIME)
    mcmc = MCMC(
        ReverseDiffusion(fn, STEPS, denoise=False),
        num_samples=1,
        num_chains=DRAWS,
        disable_progbar=True,
    )

    def run() -> float:
        mcmc.run()
        return float(mcmc.get_samples()["x"].square().mean())

    return run


def line(name: str, options: argparse.Namespace) -> str:
    """Times one case."""
    how = ["--serve", name, "--threads", str(options.threads)]
    how += ["--compiled-model"] if options.compiled_model else []
    remote = Remote(options.azula_python, __file__, *how)
    contestants = {"azula": remote, "PyroGen": of_pyrogen(CASES[name])}
    # Both draw from one law, so that their mean squares agree but for noise.
    squares = {who: median(run() for _ in range(5)) for who, run in contestants.items()}
    times = side_by_side(contestants, rounds=options.rounds, calls=1, warmup=1)
    remote.close()
    relative = ratio(times["PyroGen"], times["azula"])
    shown = "".join(f"{median(times[who]):12.1f}" for who in contestants)
    means = ", ".join(f"{value:.4f}" for value in squares.values())
    return f"{name:40s}{shown}{relative:8.2f}{TARGET:8.2f}    mean squares {means}"


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--azula-python", help="an interpreter with azula")
    parser.add_argument("--compiled-model", action="store_true", help="torch.compile its network")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="the cases whose name holds this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        answer(of_azula(CASES[options.serve], options.compiled_model))
        return
    if not options.azula_python:
        print("skipped: needs --azula-python, the path of an interpreter with azula")
        return
    print(f"{'case':40s}{'azula':>12s}{'PyroGen':>12s}{'ratio':>8s}{'target':>8s}    (ms)")
    for name in CASES:
        if options.only in name:
            print(line(name, options), flush=True)


if __name__ == "__main__":
    main()
