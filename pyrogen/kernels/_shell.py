"""One chain of a kernel under Pyro's own driver: what changes while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyrogen.kernels._chains import Chains
from pyrogen.kernels._runner import Runner

__all__ = ["Shell"]


class Shell:
    """The chain of a kernel that runs under ``pyro.infer.MCMC``, and what is known of it.

    Attributes:
        chains: the one chain, between ``setup`` and ``cleanup``.
        infos: of the steps of this stage, warm-up or not.
        initial_params: where the user wants the chain to start.
        save_params: the sites to keep.
        transforms: the bijections from supports to the reals.
        runner: the graphs of the last run, to be used again.
    """

    def __init__(self) -> None:
        self.save_params: list[str] | None = None
        self.transforms: dict[str, Transform] | None = None
        self.runner: Runner | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the chain."""
        self.chains: Chains | None = None
        self.infos: list[Any] = []
        self.initial_params: dict[str, Tensor] | None = None
        self._draw: dict[str, Tensor] | None = None

    def info(self, unrecorded: tuple[str, ...]) -> dict[str, Any]:
        """What was reported of every draw: name to a numpy array ``[draws, *]``."""
        if not self.infos:
            return {}
        names = [name for name in self.infos[0]._fields if name not in unrecorded]
        rows = {name: [getattr(info, name) for info in self.infos] for name in names}
        return {
            name: torch.stack([x[0] if x.dim() > 0 else x for x in row]).cpu().numpy()
            for name, row in rows.items()
        }

    def portable(self) -> Shell:
        """What can be copied and pickled of it: not the chain, nor the graphs."""
        twin = Shell()
        twin.save_params = self.save_params
        twin.initial_params = self.initial_params
        return twin

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moves the chain one step on from ``params``."""
        chains = self.chains
        if chains is None:
            raise ValueError("expected setup(warmup_steps, ...) before sample(params)")
        if not self._is_current(chains, params):
            chains.restart(chains.target.flatten(params).unsqueeze(0))
        warming = chains.iteration < chains.warmup_steps
        self.infos.append(chains.advance())
        if warming and chains.iteration == chains.warmup_steps:
            self.infos.clear()
        self._draw = chains.target.unflatten(chains.position[0].clone())
        return dict(self._draw)

    def mean_accept_prob(self) -> float:
        """Over the steps of this stage."""
        rates = [info.accept_prob for info in self.infos]
        return float(torch.stack(rates).mean()) if rates else float("nan")

    def _is_current(self, chains: Chains, params: Mapping[str, Tensor]) -> bool:
        """Whether ``params`` is where the chain stands."""
        known = self._draw or chains.target.unflatten(chains.position[0])
        return params.keys() == known.keys() and all(
            x is known[name] or torch.equal(x, known[name]) for name, x in params.items()
        )
