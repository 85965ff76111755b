r"""A linear process whose end is known.

If :math:`x_T` is known, the process is steered by the gradient of the density of what is to come,
Doob's transform,

.. math:: dx = \left[f x + g^2\, \nabla_x \log p(x_T \mid x_t)\right] dt + g\, dW, \qquad
   p(x_T \mid x_t) = N(r x_t, v), \quad r = \frac{\alpha_T}{\alpha_t},

and its laws between two times are Gaussian again, by Bayes' rule.

References:
    J. L. Doob, *Conditional Brownian motion and the boundary limits of harmonic functions*, 1957,
    doi:10.24033/bsmf.1494.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.process import Diffusion, Process, as_time, beside

__all__ = ["Bridge"]


class Bridge(Process):
    """A linear process on its way to a known end.

    Args:
        process: what is conditioned on its end.
        end: the state at ``end_time``, a tensor that broadcasts against states.
        end_time: when, above 0. The drift exists before that time.

    Raises:
        TypeError: if the process is not linear.
        ValueError: if the time is not above 0.

    Example:
        >>> from pyrogen.processes import Brownian
        >>> bridge = Bridge(Brownian(), end=torch.tensor([2.0]), end_time=1.0)
        >>> bridge.drift(torch.zeros(1), torch.tensor(0.5))  # (2 - 0) / (1 - 0.5)
        tensor([4.])
        >>> law = bridge.transition(torch.zeros(1), torch.tensor(0.0), torch.tensor(0.5))
        >>> law.mean.round(decimals=4), law.variance  # half way, and t (1 - t)
        (tensor([1.]), tensor([0.2500]))
    """

    def __init__(self, process: LinearProcess, end: Tensor, end_time: float) -> None:
        if not isinstance(process, LinearProcess):
            raise TypeError(
                f"process: expected a linear process, got {type(process).__name__}; steer any "
                "other towards its end with a drift that is learned (pyrogen.guides.PathDrift)"
            )
        if not end_time > 0:
            raise ValueError(f"end_time: expected a time above 0, got {end_time!r}")
        super().__init__(process.drift, process._given_diffusion())
        self.process = process
        self.end = end
        self.end_time = float(end_time)

    def drift(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """The drift of the process, and the pull towards the end."""
        t = as_time(t, x)
        ratio, variance = self._to_end(t)
        pull = beside(ratio / variance, x) * (self.end - beside(ratio, x) * x)
        return self.process.drift(x, t) + self.diffusion_at(x, t).square() * pull

    def transition(self, x: Tensor, start: Tensor, end: Tensor) -> torch.distributions.Normal:
        """The law of the state at ``end`` given ``x`` at ``start``, elementwise.

        Args:
            x: ``[*batch, *event]``.
            start: the earlier time.
            end: the later time, at most ``end_time``, when nothing is left to chance.
        """
        start, end = as_time(start, x), as_time(end, x)
        law = self.process.transition(x, start, end)
        ratio, left = (beside(each, x) for each in self._to_end(end))
        passed = law.variance
        both = left + ratio.square() * passed
        mean = (law.mean * left + ratio * self.end * passed) / both
        std = (passed * left / both).sqrt()
        return torch.distributions.Normal(mean, std, validate_args=False)

    def networks(self) -> list[nn.Module]:
        """Those of the process."""
        return self.process.networks()

    def _given_diffusion(self) -> Diffusion:
        return self.process._given_diffusion()

    def _to_end(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``r`` and ``v`` of the law of the end given a state at ``t``."""
        last = torch.full_like(t, self.end_time)
        ratio = self.process.mean_scale(last) / self.process.mean_scale(t)
        return ratio, self.process._variance_between(t, last)
