"""The exponential moving average of parameters.

``a_1 = p_1`` and ``a_t = decay * a_{t-1} + (1 - decay) * p_t``, where ``p_t`` are the parameters
after step ``t``. Buffers are not averaged.

References:
    Acceleration of stochastic approximation by averaging. Polyak, Juditsky, 1992.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Averages of ``parameters``, which it reads at each update."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters = list(parameters)
        self._update = get_ema_multi_avg_fn(decay)
        self.averages = [parameter.detach().clone() for parameter in self._parameters]
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters of this step in."""
        if self.num_updates == 0:
            copy_parameters(self.averages, self._parameters)
        else:
            self._update(self.averages, self._parameters, self.num_updates)
        self.num_updates += 1

    def state(self) -> dict[str, Any]:
        return {"averages": self.averages, "num_updates": self.num_updates}

    def load(self, state: dict[str, Any]) -> None:
        copy_parameters(self.averages, state["averages"])
        self.num_updates = state["num_updates"]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters have the values of their averages."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        copy_parameters(self._parameters, self.averages)
        try:
            yield
        finally:
            copy_parameters(self._parameters, kept)


@torch.no_grad()
def copy_parameters(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Writes the values of ``sources`` into ``targets``, in place."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
