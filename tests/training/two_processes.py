"""Run as ``python -m tests.training.two_processes DIRECTORY``: Fabric starts it twice.

Each process leaves what it ended with in ``DIRECTORY/rank<r>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyro
import torch
import torch.distributed
from pyro.infer import Trace_ELBO

from pyrogen.guides import Empty
from pyrogen.kernels import MALA
from pyrogen.losses import ContrastiveDivergence
from pyrogen.models import EnergyModel
from pyrogen.training import fit
from tests.training.programs import (
    GlobalModel,
    NormalGuide,
    PointGuide,
    data,
    everything,
    local_pair,
    sgd,
)

BATCH_SIZE, EPOCHS = 5, 3  # 21 data: shards of 3 and 2, and a last batch of a single datum


def noiseless(**options):
    """Trains two programs without noise, one with global and one with local latents."""
    double = torch.float64
    pairs = {
        "global": (GlobalModel(), PointGuide(dtype=double)),
        "local": local_pair(dtype=double, scale=0.0),
    }
    ends = {}
    for name, (model, guide) in pairs.items():
        pyro.set_rng_seed(4)
        result = fit(
            model,
            guide,
            data(dtype=double),
            loss=Trace_ELBO(),
            optimizer=sgd,
            batch_size=BATCH_SIZE,
            max_epochs=EPOCHS,
            validation_data=data(num_data=7, dtype=double) if name == "local" else None,
            progress=False,
            **options,
        )
        parameters = [*model.parameters(), *guide.parameters()]
        ends[name] = {
            "parameters": torch.cat([p.detach().flatten() for p in parameters]),
            "step_loss": torch.as_tensor(result.history.step_loss),
            "validation_loss": torch.as_tensor(result.history.validation_loss),
        }
    return ends


def chains(max_epochs, **options):
    """Persistent chains, as many in each process as its first batch has data."""
    pyro.set_rng_seed(6)
    loss = ContrastiveDivergence(MALA(step_size=0.5), persistent=True)
    model = EnergyModel(torch.nn.Linear(3, 1), 3)
    fit(
        model, Empty(), torch.randn(21, 3), loss=loss, max_epochs=max_epochs, batch_size=5,
        devices=2, accelerator="cpu", progress=False, **options,
    )  # fmt: skip
    return loss.carried["x"]


def main(directory):
    ends = noiseless(devices=2, accelerator="cpu")
    guide = NormalGuide()
    pyro.set_rng_seed(5)
    fit(
        GlobalModel(), guide, data(), loss=Trace_ELBO(), max_epochs=1, batch_size=5,
        devices=2, accelerator="cpu", progress=False,
    )  # fmt: skip
    ends["noise"] = torch.stack(guide.draws[-4:])
    whole = everything(devices=2, accelerator="cpu")
    everything(directory / "run", max_epochs=3, devices=2, accelerator="cpu")
    continued = everything(directory / "run", devices=2, accelerator="cpu")
    for name, result in (("whole", whole), ("continued", continued)):
        ends[name] = [p.detach() for p in [*result.model.parameters(), *result.guide.parameters()]]
    ends["chains"] = chains(4)
    chains(2, checkpoint_dir=directory / "chains")
    ends["chains continued"] = chains(4, checkpoint_dir=directory / "chains")
    torch.save(ends, directory / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
