"""Model and guide as ``fit`` sees them: checked once, and asked how many data a loss stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from pyrogen.checks import check_pair, nonfinite_site
from pyrogen.errors import NonFiniteError
from pyrogen.modes import evaluation_mode
from pyrogen.training._random import forked_rng

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from pyro.poutine import Trace


DATA_PLATE = "data"


class Programs:
    """A model and a guide, run under Pyro's handlers without leaving a trace.

    Runs are in ``eval()`` mode (so that batch statistics stay), without gradients, and leave the
    random number generators as they were.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], fabric: Fabric
    ) -> None:
        self.model = model
        self.guide = guide
        self._fabric = fabric
        self._num_data: dict[int, int] = {}

    def num_data(self, args: Sequence[Tensor]) -> int:
        """The data that the loss of a batch stands for: the full size of the plate ``"data"``.

        That is the length of the batch for ``pyro.plate("data", len(x))``, and ``N`` for
        ``pyro.plate("data", N, subsample_size=len(x))``. Without such a plate it is the length of
        the batch. One run of the programs per length of batch.

        Raises:
            ValueError: if model and guide do not fit together.
        """
        length = len(args[0])
        if length not in self._num_data:
            sizes = {
                frame.full_size
                for trace in self.traces(args)
                for site in trace.nodes.values()
                for frame in site.get("cond_indep_stack", ())
                if frame.name == DATA_PLATE and frame.full_size is not None
            }
            self._num_data[length] = max(sizes, default=length)
        return self._num_data[length]

    def traces(self, args: Sequence[Tensor]) -> tuple[Trace, Trace]:
        """Traces of model and guide; also makes the parameters that are made on first use."""
        with (
            evaluation_mode(self.model, self.guide),
            torch.no_grad(),
            forked_rng(self._fabric.device),
            self._fabric.autocast(),
        ):
            args = self._fabric.strategy.precision.convert_input(tuple(args))
            return check_pair(self.model, self.guide, args)

    def check_parameters(self, module: nn.Module, args: Sequence[Tensor]) -> None:
        """Makes sure that what the programs call parameters is what will be trained.

        Raises:
            ValueError: if a parameter belongs to no module, or there is none.
        """
        self.num_data(args)  # makes parameters that are made on first use
        known = {id(parameter) for parameter in module.parameters()}
        for trace in self.traces(args):
            for name, site in trace.nodes.items():
                if site["type"] == "param" and id(_unconstrained(site["value"])) not in known:
                    raise ValueError(
                        f"parameter {name!r}: expected a parameter of the module, got one of "
                        "Pyro's global store (a bare pyro.param, or pyro.module in a function); "
                        "make the program a PyroModule that holds it as a PyroParam or submodule"
                    )
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError("expected parameters to train, got none in model and guide")

    def nonfinite(self, what: str, args: Sequence[Tensor], step: int) -> NonFiniteError:
        """The error for a loss or gradient that is not finite; names the site that is at fault."""
        args = self._fabric.strategy.precision.convert_input(tuple(args))
        with (
            pyro.validation_enabled(False),
            torch.no_grad(),
            forked_rng(self._fabric.device),
            self._fabric.autocast(),
        ):
            site = nonfinite_site(self.model, self.guide, args)
        parameter = _nonfinite_parameter(self.model) or _nonfinite_parameter(self.guide)
        where = f"site {site!r} is not" if site else "each site is, when run again"
        if parameter is not None:
            where = f"{where}, nor is parameter {parameter!r}"
        return NonFiniteError(
            f"step {step}: {what} is not finite: {where}. Look at the data of the site and at the "
            "range of its distribution's parameters; a lower learning rate or clip_norm= may help",
            site=site,
            step=step,
        )


def _unconstrained(value: Any) -> Any:
    return value.unconstrained() if hasattr(value, "unconstrained") else value


def _nonfinite_parameter(program: Any) -> str | None:
    if isinstance(program, nn.Module):
        for name, parameter in program.named_parameters():
            if not parameter.isfinite().all():
                return str(name)
    return None
