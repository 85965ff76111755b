r"""Diffusion models in discrete time, as chains that a guide runs the other way.

A datum :math:`x_0` is turned into noise in T steps by laws that have nothing to learn, and a chain
of learned laws turns noise into data,

.. math:: q(x_{1:T} \mid x_0) = \prod_k q(x_k \mid x_{k-1}), \qquad
   p(x_{0:T}) = p(x_T) \prod_k p(x_{k-1} \mid x_k) .

The states :math:`x_1, \ldots, x_T` are latent, and the variational bound of the one by the other is

.. math:: \log p(x_0) \ge -\mathrm{KL}[q(x_T \mid x_0) \,\|\, p(x_T)]
   - \sum_{k=2}^{T} \mathbb{E}_{q(x_k \mid x_0)}
     \mathrm{KL}[q(x_{k-1} \mid x_k, x_0) \,\|\, p(x_{k-1} \mid x_k)]
   + \mathbb{E}_{q(x_1 \mid x_0)} \log p(x_0 \mid x_1) .

It is a sum over steps, each of which needs one state :math:`x_k`, drawn directly from
:math:`q(x_k \mid x_0)`. So the program has two forms:

* the chain, ``subsample_size=None``: sites ``x_T``, ..., ``x_1`` and ``x``, each given the one
  before;
* the terms, ``subsample_size=m``: of the plate ``"time"`` over all T steps, m are looked at for
  each datum. Step k has the state ``"x_t"``, which is drawn from the same law in model and guide
  and not scored; the state ``"x_s"`` of the step before, latent, if ``k > 1``; and the datum
  ``"x"`` if ``k = 1``. ``x_T`` stands after them.

A plain ELBO of either is an estimate of the same bound, without bias. The plate makes it
affordable: m evaluations of the network instead of T. Different data look at different steps, which
are spread evenly over the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Size, Tensor

from pyrogen.checks import check_data
from pyrogen.models.flow import num_events, refuse_num_samples

__all__ = ["DiscreteTimeDiffusion"]


class DiscreteTimeDiffusion(PyroModule):
    """A chain from noise to data; a subclass gives its laws, on both ways.

    Shapes: states are ``[*batch, *event_shape]``, steps ``k`` are integers ``1..T`` in a tensor
    that broadcasts to ``[*batch]``.

    Args:
        denoiser: the network, a function or a module.
        event_shape: shape of one datum; ``None`` takes ``in_shape`` of the network.
        num_timesteps: T.
        subsample_size: how many steps are looked at for each datum; ``None`` runs the chain.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        event_shape: int | Sequence[int] | None,
        num_timesteps: int,
        subsample_size: int | None,
    ) -> None:
        super().__init__()
        if not callable(denoiser):
            raise TypeError(
                f"denoiser: expected a module or a function, got {type(denoiser).__name__}"
            )
        if not isinstance(num_timesteps, int) or num_timesteps < 2:
            raise ValueError(f"num_timesteps: expected an integer above 1, got {num_timesteps!r}")
        self.denoiser = denoiser
        self.event_shape = _event_shape(denoiser, event_shape)
        self.num_timesteps = num_timesteps
        self.subsample_size = subsample_size

    @abstractmethod
    def terminal(self) -> TorchDistribution:
        """``p(x_T)``, over one event."""

    @abstractmethod
    def reverse(
        self, x: Tensor, k: Tensor, context: Tensor | None = None
    ) -> tuple[TorchDistribution, TorchDistribution]:
        """``p(x_{k-1} | x_k)`` for ``k > 1``, and ``p(x_0 | x_1)`` for ``k = 1``.

        Both are returned for each k, by one call of the network; the one that does not apply is
        any law of the right shape. They are drawn without gradients, which would keep every step
        of a chain in memory.
        """

    @abstractmethod
    def noised(self, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_k | x_0)`` for data as the user has them."""

    @abstractmethod
    def posterior(self, x: Tensor, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_{k-1} | x_k, x_0)`` for ``k > 1``; for ``k = 1``, any law of the right shape."""

    def check(self, data: Tensor) -> None:
        """Raises ValueError if data cannot be scored."""
        check_data(data, self.event_shape)

    def forward(
        self,
        data: Tensor | None = None,
        context: Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensor:
        """Scores data, or draws by the whole chain.

        Args:
            data: ``[n, *event_shape]``, or ``None`` to draw.
            context: ``[n, features]`` for each datum, or ``[features]``, passed on to the network;
                ``None`` for none.
            num_samples: how many to draw; ``None`` means one for each row of the context, or one.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, *event_shape]``.
        """
        if data is not None:
            refuse_num_samples(num_samples)
            self.check(data)
            size = data.shape[-1 - len(self.event_shape)]
        elif context is not None and context.dim() > 1 and num_samples is None:
            size = context.shape[-2]
        else:
            size = num_events(num_samples)
        if data is None or self.steps_at_once is None:
            return self._chain(data, context, size)
        return self._terms(data, context, size)

    @property
    def steps_at_once(self) -> int | None:
        """``subsample_size``, checked.

        Raises:
            ValueError: if it is neither ``None`` nor an integer from 1 to T.
        """
        size = self.subsample_size
        if size is not None and not (isinstance(size, int) and 1 <= size <= self.num_timesteps):
            raise ValueError(
                f"subsample_size: expected None or an integer from 1 to {self.num_timesteps}, got "
                f"{size!r}"
            )
        return size

    def spread(self, index: Tensor, size: int) -> Tensor:
        """The steps at which each datum looks, ``[m, size]``.

        Each datum adds an offset of its own to the steps ``index [m]`` of the plate, so that the
        steps of the data are even over all, and each of them for itself is uniform.
        """
        offset = torch.arange(size, device=index.device) * self.num_timesteps // size
        return (index.unsqueeze(-1) + offset) % self.num_timesteps + 1

    def steps(self, k: int, x: Tensor) -> Tensor:
        """The same step for each of the states ``x``."""
        return torch.full(x.shape[: x.dim() - len(self.event_shape)], k, device=x.device)

    def together(self, k: Tensor, *values: Tensor) -> list[Tensor]:
        """Steps and events ``[*batch, *event]`` (of ``event_shape``) with all batch dimensions."""
        dims = len(self.event_shape)
        batch = torch.broadcast_shapes(k.shape, *(x.shape[: x.dim() - dims] for x in values))
        return [k.expand(batch), *(x.expand((*batch, *self.event_shape)) for x in values)]

    def called(self, x: Tensor, k: Tensor, context: Tensor | None) -> Tensor:
        """What the network says of states ``[*batch, ...]`` at steps ``[*batch]``."""
        flat = x.flatten(0, k.dim() - 1) if k.dim() else x.unsqueeze(0)
        inputs = [flat, (k.to(x.dtype) / self.num_timesteps).reshape(-1)]
        if context is not None:
            inputs.append(context.expand(*k.shape, context.shape[-1]).flatten(0, k.dim() - 1))
        result = self.denoiser(*inputs)
        return result.reshape((*k.shape, *result.shape[1:]))

    def _chain(self, data: Tensor | None, context: Tensor | None, size: int) -> Tensor:
        """All steps, from noise to data."""
        plate = pyro.plate("data", size, dim=-1)
        last = self.num_timesteps
        with plate:
            x: Tensor = pyro.sample(f"x_{last}", self.terminal())
        for k in range(last, 1, -1):
            step, _ = self.reverse(x, self.steps(k, x), context)
            with plate:
                x = pyro.sample(f"x_{k - 1}", step)
        _, law = self.reverse(x, self.steps(1, x), context)
        with plate:
            x = pyro.sample("x", law, obs=data)
        return x

    def _terms(self, data: Tensor, context: Tensor | None, size: int) -> Tensor:
        """Some steps of each datum."""
        last, m = self.num_timesteps, self.steps_at_once
        plate = pyro.plate("data", size, dim=-1)
        with pyro.plate("time", last, m, dim=-2, device=str(data.device)) as index, plate:
            k: Any = self.spread(torch.as_tensor(index), size)
            with poutine.mask(mask=False):
                x = pyro.sample("x_t", self.noised(data, k))
            step, law = self.reverse(x, k, context)
            with poutine.mask(mask=k > 1):
                pyro.sample("x_s", step)
            with poutine.mask(mask=k == 1):
                pyro.sample("x", law, obs=data)
        with plate:
            pyro.sample(f"x_{last}", self.terminal())
        return data


def _event_shape(denoiser: Any, event_shape: Any) -> tuple[int, ...]:
    if event_shape is None:
        event_shape = getattr(denoiser, "in_shape", None)
        if event_shape is None:
            raise ValueError(
                "event_shape: expected the shape of one datum, as the denoiser has no in_shape, "
                "got None"
            )
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"event_shape: expected positive integers, got {event_shape!r}")
    return Size(shape)
