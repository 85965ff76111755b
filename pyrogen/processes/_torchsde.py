"""Paths by torchsde: its higher-order methods, diffusions that depend on the state, adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrogen.processes.process import Process
from pyrogen.processes.simulate import of_step

__all__ = ["ITO", "STRATONOVICH", "by_torchsde"]

ITO = ("euler", "milstein", "srk")
STRATONOVICH = ("euler_heun", "heun", "midpoint", "log_ode", "reversible_heun")
_SPACE_TIME = ("srk",)  # methods that use more of the Brownian motion than its increments
_LEVY_AREA = ("log_ode",)


def by_torchsde(
    process: Process,
    x0: Tensor,
    times: Tensor,
    context: Sequence[Tensor],
    method: str,
    adjoint: bool,
) -> Tensor:
    """The path ``[*batch, T + 1, D]`` of a process from ``x0 [*batch, D]``; see ``Path``."""
    import torchsde

    batch, size = x0.shape[:-1], x0.shape[-1]
    flat = [each.expand((*batch, *each.shape[-2:])).flatten(0, len(batch) - 1) for each in context]
    sde = _SDE(process, times, flat if batch else [each.unsqueeze(0) for each in context], method)
    start = x0.reshape(-1, size)
    area = "space-time" if method in _SPACE_TIME else "none"
    brownian = torchsde.BrownianInterval(
        times[0],
        times[-1],
        size=start.shape,
        dtype=start.dtype,
        device=start.device,
        entropy=int(torch.randint(2**31 - 1, ())),  # NumPy's generator is not asked
        levy_area_approximation="foster" if method in _LEVY_AREA else area,
    )
    options: dict[str, Any] = {"bm": brownian, "method": method, "dt": float(times.diff().min())}
    if adjoint:
        options["adjoint_params"] = _trained(sde, flat)
        if method == "reversible_heun":
            options["adjoint_method"] = "adjoint_reversible_heun"
    solve = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    path: Tensor = solve(sde, start, times, **options).movedim(0, -2)
    return path.reshape((*batch, len(times), size))


def _trained(sde: _SDE, context: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = [*sde.parameters(), *context]
    return tuple(each for each in found if each.requires_grad)


class _SDE(nn.Module):
    """A process in torchsde's words, with states ``[batch, D]``."""

    noise_type = "diagonal"

    def __init__(
        self, process: Process, times: Tensor, context: Sequence[Tensor], method: str
    ) -> None:
        super().__init__()
        self.sde_type = "ito" if method in ITO else "stratonovich"
        self.networks = nn.ModuleList(process.networks())
        self._process, self._times, self._context = process, times, context

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift."""
        if not self._context:
            return self._process.drift(y, t)
        after = torch.searchsorted(self._times, t.detach().reshape(1), right=True)
        k = min(max(int(after) - 1, 0), len(self._times) - 2)
        return self._process.drift(y, t, *of_step(self._context, k))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion."""
        return self._process.diffusion_at(y, t).expand_as(y)
