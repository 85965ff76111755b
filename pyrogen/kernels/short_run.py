r"""Draws of an energy by chains that are short.

A kernel :math:`K` that leaves :math:`p(x) \propto p_0(x) e^{-E(x)}` unchanged is applied a fixed
number of times to draws of the base,

.. math:: x_0 \sim p_0, \qquad x_{t+1} \sim K(\cdot \mid x_t), \qquad t < T .

What comes out is a sample of :math:`K^T p_0`, near :math:`p` only when the chains mix in
:math:`T` steps. An energy that was trained by the same chains makes good samples that way all the
same: the chains are then the model.

References:
    E. Nijkamp, M. Hill, S.-C. Zhu, Y. N. Wu, *Learning non-convergent non-persistent short-run MCMC
    toward energy-based model*, 2019, arXiv:1904.09770.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from pyrogen.distributions import EnergyBased
from pyrogen.kernels._kernel import Kernel
from pyrogen.kernels._options import whole
from pyrogen.kernels._phase import initial_position, moved, points

__all__ = ["ShortRun"]


class ShortRun:
    """The sampler of an :class:`~pyrogen.distributions.EnergyBased` site: short chains from its
    base.

    Args:
        kernel: how chains move, made without a model: ``Langevin(step_size=0.01)``.
        num_steps: how many steps.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrogen.distributions import EnergyBased
        >>> from pyrogen.kernels import MALA
        >>> base = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
        >>> tilted = EnergyBased(  # a normal distribution of variance 1/4
        ...     lambda x: 1.5 * x.square().sum(-1), base, sampler=ShortRun(MALA(step_size=0.3), 20)
        ... )
        >>> abs(float(tilted.sample((2000,)).var()) - 0.25) < 0.03
        True
    """

    def __init__(self, kernel: Kernel, num_steps: int = 100) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel: expected one of pyrogen.kernels, got {type(kernel).__name__}")
        self.kernel = kernel
        self.num_steps = whole("num_steps", num_steps, 1)

    def __call__(self, fn: EnergyBased, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``[*sample_shape, *batch, *event]``.

        Args:
            fn: what is sampled.
            sample_shape: how many draws.
        """
        shape = Size((*sample_shape, *fn.batch_shape))
        with torch.no_grad():
            target = self.kernel.target_of("x", fn)
            start = initial_position(target, fn, shape.numel())
            position, _ = moved(self.kernel, target, start, self.num_steps)
        return points(target, fn, position).reshape((*shape, *fn.event_shape))
