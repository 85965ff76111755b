"""The states of torch's global generators: set aside, seeded, saved and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

# Added to a drawn seed, which is below 2**62, so that no two streams coincide.
TRAINING_NOISE = 2**62
VALIDATION_NOISE = 2**63


def draw_seed() -> int:
    """A seed drawn from torch's global generator, so that ``pyro.set_rng_seed`` fixes it too."""
    return int(torch.randint(2**62, ()))


def seed_generators(device: torch.device, seed: int) -> None:
    """Seeds the global generators that a program on ``device`` draws from, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def forked_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Draws inside leave the global generators as they were; with a seed, they start from it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        if seed is not None:
            seed_generators(device, seed)
        yield


def get_rng_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that a program on ``device`` draws from; tensors of bytes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back what :func:`get_rng_states` returned."""
    # Cloned: torch 2.13 crashes on a state that is a view into a larger tensor.
    torch.set_rng_state(states["cpu"].cpu().clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu().clone(), device)
