"""One step of stochastic variational inference: Pyro, PyroGen, and torch written by hand.

The model is a VAE with one hidden layer on 784 binary pixels, batch 128; each step is loss,
gradient and Adam. Targets: compiled / hand-written <= 1, Pyro / compiled >= 2.

    python benchmarks/svi_step.py [--rounds 30]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from side_by_side import ratio, side_by_side
from torch import Tensor, nn
from torch.nn import functional

from pyrogen.guides import AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE

Step = Callable[[], float]


class HandWritten(nn.Module):
    """The same negative ELBO, as one would write it in torch without a framework."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Returns the loss of a batch in nats, summed."""
        loc, raw = self.encoder(x).chunk(2, dim=-1)
        scale = functional.softplus(raw)
        z = loc + scale * torch.randn_like(scale)
        rate = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum()
        logits = self.decoder(z)
        return rate + functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def networks(hidden: int, latent: int) -> tuple[nn.Module, nn.Module]:
    """Plain torch networks: the same ones in every contestant."""
    encoder = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 784))
    return encoder, decoder


def torch_step(module: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> Step:
    """A step of any loss module with torch's fused Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = module(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def contestants(hidden: int, latent: int, x: Tensor) -> dict[str, Step]:
    """One step function a contestant, each with parameters of its own."""
    hand = HandWritten(*networks(hidden, latent))
    hand_compiled = HandWritten(*networks(hidden, latent))
    encoder, decoder = networks(hidden, latent)
    module = Compiled(TraceMeanField_ELBO())(VAE(decoder, latent), AmortizedNormal(encoder, latent))
    steps = {
        "torch by hand": torch_step(hand, list(hand.parameters()), x),
        "torch by hand, torch.compile": torch_step(
            torch.compile(hand_compiled), list(hand_compiled.parameters()), x
        ),
        "Compiled(elbo)(model, guide)": torch_step(module, list(module.parameters()), x),
    }
    plain, fused = {"lr": 1e-3}, {"lr": 1e-3, "fused": True}
    for name, loss, options in (
        ("SVI.step, Compiled, fused Adam", Compiled(TraceMeanField_ELBO()), fused),
        ("SVI.step, Compiled", Compiled(TraceMeanField_ELBO()), plain),
        ("SVI.step, Pyro", TraceMeanField_ELBO(), plain),
    ):
        encoder, decoder = networks(hidden, latent)
        model, guide = VAE(decoder, latent), AmortizedNormal(encoder, latent)
        steps[name] = svi_step(SVI(model, guide, pyro.optim.Adam(options), loss), x)
    return steps


def svi_step(svi: SVI, x: Tensor) -> Step:
    """A step in a scope of its own: modules would share parameters by name in the global store."""
    with pyro.get_param_store().scope() as state:
        svi.step(x)

    def step() -> float:
        with pyro.get_param_store().scope(state):
            loss: float = svi.step(x)
        return loss

    return step


def main() -> None:
    """Prints the times and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="two rounds, to see that it runs")
    arguments = parser.parse_args()
    pyro.set_rng_seed(0)
    x = torch.bernoulli(torch.rand(128, 784))
    for hidden in (64, 400):
        steps = contestants(hidden, 20, x)
        times = side_by_side(steps, rounds=2 if arguments.smoke else arguments.rounds)
        print(f"\nVAE 784-{hidden}-20, batch 128, {torch.get_num_threads()} threads")
        for name, values in times.items():
            print(f"  {name:32s} {median(values):7.3f} ms (min {min(values):.3f})")
        ours = times["Compiled(elbo)(model, guide)"]
        print(f"  compiled / by hand               {ratio(ours, times['torch by hand']):7.2f}")
        compiled = times["torch by hand, torch.compile"]
        print(f"  compiled / by hand, compiled     {ratio(ours, compiled):7.2f}")
        print(f"  Pyro's SVI.step / compiled       {ratio(times['SVI.step, Pyro'], ours):7.2f}")
        for name in ("SVI.step, Compiled, fused Adam", "SVI.step, Compiled"):
            print(f"  Pyro's / {name:32s}{ratio(times['SVI.step, Pyro'], times[name]):5.2f}")


if __name__ == "__main__":
    main()
