"""Where chains start: over-dispersed and finite, or where the user says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._target import Target

__all__ = ["given_position", "random_position"]

_RADIUS = 2.0
_TRIES = 100


def random_position(target: Target, run: Runner, num_chains: int) -> Tensor:
    """Uniform on ``(-2, 2)`` in unconstrained space, drawn again where the energy is not finite.

    Returns:
        ``[chains, size]``.

    Raises:
        ValueError: if a chain finds no finite energy and gradient in 100 draws.
    """
    position = torch.empty(num_chains, target.size, dtype=target.dtype, device=target.device)
    position.uniform_(-_RADIUS, _RADIUS)
    for _ in range(_TRIES):
        finite: Tensor = run.once(_is_finite, position)
        if finite.all():
            return position
        again = torch.empty_like(position).uniform_(-_RADIUS, _RADIUS)
        position = torch.where(finite.unsqueeze(-1), position, again)
    sites = target.nonfinite_sites(position[~finite][0])
    raise ValueError(
        f"expected initial points of finite energy and gradient, found none in {_TRIES} draws from "
        f"uniform(-2, 2) in unconstrained space for {int((~finite).sum())} of {num_chains} chains"
        + (f"; log-probability not finite at sites {sites}" if sites else "")
        + "; pass initial_params, or check data and model for NaN: under a mask too, where it "
        "spoils the gradient"
    )


def given_position(
    target: Target, run: Runner, num_chains: int, params: Mapping[str, Tensor]
) -> Tensor:
    """The unconstrained ``params``, each ``[chains, *shape]``, as one ``[chains, size]``.

    Raises:
        ValueError: if their names or shapes are wrong, or the energy there is not finite.
    """
    position = target.flatten(params, (num_chains,))
    finite = run.once(_is_finite, position)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        sites = target.nonfinite_sites(position[bad[0]])
        raise ValueError(
            "initial_params: expected finite energy and gradient, got NaN or infinity for "
            f"{len(bad)} of {num_chains} chains (the first is chain {int(bad[0])})"
            + (f", from sites {sites}" if sites else "")
            + "; initial_params are unconstrained values"
        )
    return position


def _is_finite(potential: Potential, position: Tensor) -> Tensor:
    value, gradient = potential.value_and_grad(position)
    return torch.isfinite(value) & torch.isfinite(gradient).all(-1)
