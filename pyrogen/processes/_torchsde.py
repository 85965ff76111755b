"""Paths by torchsde: its higher-order methods, diffusions that depend on the state, adjoints.

Time is counted in shortest steps of the grid, so that steps are 1, without rounding: torchsde
interpolates where its steps miss the grid, and its reversible method has an exact adjoint only
where the steps back are those that were taken.
"""

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
_ROUNDING = 1e-3  # of ticks


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
    start, ticks = x0.reshape(-1, size), sde.ticks
    area = "space-time" if method in _SPACE_TIME else "none"
    brownian = torchsde.BrownianInterval(
        ticks[0],
        ticks[-1],
        size=start.shape,
        dtype=start.dtype,
        device=start.device,
        entropy=int(torch.randint(2**31 - 1, ())),  # NumPy's generator is not asked
        levy_area_approximation="foster" if method in _LEVY_AREA else area,
    )
    options: dict[str, Any] = {"bm": brownian, "method": method, "dt": 1.0}
    if adjoint:
        options["adjoint_params"] = _trained(sde, flat)
        if method == "reversible_heun":
            options["adjoint_method"] = "adjoint_reversible_heun"
    solve = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    path: Tensor = solve(sde, start, ticks, **options).movedim(0, -2)
    return path.reshape((*batch, len(times), size))


def _off_whole(ticks: Tensor) -> Tensor:
    return (ticks - ticks.round()).abs()


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
        self._process, self._context = process, context
        self._start, shortest = times[0], times.diff().min()
        # A difference of times has few digits, so that many of it are off; the whole span has more.
        since = times - self._start
        even = since[-1] / (since[-1] / shortest).round()
        fits = bool(_off_whole(since / even).max() < _ROUNDING)
        self._unit = even if fits else shortest
        ticks = since / self._unit
        self.ticks = torch.where(_off_whole(ticks) < _ROUNDING, ticks.round(), ticks)

    def f(self, tick: Tensor, y: Tensor) -> Tensor:
        """The drift, per tick."""
        context: list[Tensor] = []
        if self._context:
            after = torch.searchsorted(self.ticks, (tick.detach() + _ROUNDING).reshape(1))
            k = min(max(int(after) - 1, 0), len(self.ticks) - 2)
            context = of_step(self._context, k)
        return self._unit * self._process.drift(y, self._time(tick), *context)

    def g(self, tick: Tensor, y: Tensor) -> Tensor:
        """The diffusion, per square root of a tick."""
        return self._unit.sqrt() * self._process.diffusion_at(y, self._time(tick)).expand_as(y)

    def _time(self, tick: Tensor) -> Tensor:
        return self._start + self._unit * tick
