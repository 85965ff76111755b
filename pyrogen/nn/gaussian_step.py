r"""One step of a Markov chain with normal transitions.

.. math:: z' \mid z \sim N\!\left(z + \tfrac1T\, v(z, k/T; c),\; \tfrac{s_k^2}{T}\right) .

It is the Euler–Maruyama step of :math:`dz = v\, dt + s\, dW` in a unit of time cut into T: with
more steps of the same network the chain tends to that process.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import positive_ints

__all__ = ["GaussianStep"]


class GaussianStep(nn.Module):
    """From a state and the number of a step to mean and standard deviation of the next state.

    Args:
        field: ``v``: ``(z, t) -> [*, D]`` or ``(z, t, context) -> [*, D]``, such as
            :class:`~pyrogen.nn.TimeMLP`.
        num_steps: the number T of steps of the chain.
        std: ``s``, the standard deviation that T steps of pure noise add up to: a number, or a
            tensor ``[D]``.
        learned: whether each step has an ``s`` of its own that is learned and starts at ``std``.

    Attributes:
        num_steps: as given.

    Raises:
        ValueError: if ``num_steps`` or ``std`` is not positive.

    Example:
        >>> import torch
        >>> step = GaussianStep(lambda z, t: -z, num_steps=4, std=1.0)
        >>> step(torch.tensor([[2.0]]), 3)
        (tensor([[1.5000]]), tensor([[0.5000]]))
    """

    log_std: Tensor

    def __init__(
        self,
        field: Callable[..., Tensor],
        num_steps: int,
        std: float | Tensor = 1.0,
        learned: bool = False,
    ) -> None:
        super().__init__()
        if not callable(field):
            raise TypeError(f"field: expected a module or a function, got {type(field).__name__}")
        (self.num_steps,) = positive_ints((num_steps,), "num_steps")
        start = torch.as_tensor(std, dtype=torch.get_default_dtype())
        if not bool((start.isfinite() & (start > 0)).all()):
            raise ValueError(f"std: expected positive finite numbers, got {std}")
        self.field = field
        log_std = start.log().expand(num_steps, *start.shape).clone()
        if learned:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def forward(self, z: Tensor, k: int, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the state after step ``k``, both ``[*, D]``.

        Args:
            z: ``[*, D]``.
            k: the number of the step, ``1..T``.
            context: ``[*, C]``, if the field takes one.
        """
        t = torch.as_tensor(k / self.num_steps, dtype=z.dtype, device=z.device)
        mean = z + self.field(z, t, *context) / self.num_steps
        std = self.log_std[k - 1].exp() / math.sqrt(self.num_steps)
        return mean, std.expand_as(mean)
