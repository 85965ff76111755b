r"""One step of a linear process backwards in time, from :math:`t` down to :math:`s`.

A state is :math:`x_t = \alpha_t D + \sigma_t E`, where a network predicts the data :math:`D` and
the noise :math:`E` in it, the means given :math:`x_t`. The reverse processes of a family have the
same laws,

.. math:: dx = \left[\alpha' D + \sigma' E + \tfrac12 \eta^2 g^2 \frac{E}{\sigma}\right] dt
   + \eta\, g\, d\bar W, \qquad dt < 0,

the ordinary differential equation of the probability flow at :math:`\eta = 0` and Anderson's
stochastic one at :math:`\eta = 1`.

A :class:`Solver` steps along one of them. It draws nothing itself: it is handed the noise :math:`z`
of the step, and a *carry*, a named tuple of what one step leaves for the next.

References:
    B. D. O. Anderson, *Reverse-time diffusion equation models*, 1982,
    doi:10.1016/0304-4149(82)90051-5. Y. Song et al., *Score-based generative modeling through
    stochastic differential equations*, 2021, arXiv:2011.13456.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.parametrization import convert, known

__all__ = ["Predict", "Prediction", "Solver", "check_eta", "integrate"]


class Prediction(NamedTuple):
    r"""What is known of a state :math:`x = \alpha D + \sigma E`.

    Both are kept, since each is lost in the other at one end of time.

    Attributes:
        data: :math:`D`, the mean of the data given the state, ``[*batch, *event]``.
        noise: :math:`E`, the mean of the standardised noise given the state.

    Example:
        >>> from pyrogen.processes import VariancePreserving
        >>> process, x, t = VariancePreserving(), torch.ones(1), torch.tensor(0.5)
        >>> known = Prediction.of(process, -x, x, t, "score")  # of standard normal data
        >>> torch.allclose(known.data, process.mean_scale(t) * x)
        True
    """

    data: Tensor
    noise: Tensor

    @classmethod
    def of(
        cls, process: LinearProcess, prediction: Tensor, x: Tensor, t: Tensor, source: str
    ) -> Prediction:
        """What a network's answer says of data and noise.

        Args:
            process: by which the data were noised.
            prediction: what the network says, ``[*batch, *event]``.
            x: the state it was shown.
            t: at which time.
            source: what it predicts; see :func:`convert`.
        """
        return cls(
            convert(process, prediction, x, t, source, "data"),
            convert(process, prediction, x, t, source, "noise"),
        )

    def velocity(self, process: LinearProcess, t: Tensor) -> Tensor:
        """``dx/dt`` of the probability flow at time ``t``."""
        return known(process, self.data, self.noise, t, "velocity")


Predict = Callable[[Tensor, Tensor], Prediction]


class Solver(ABC):
    """How to step back from one time to an earlier one.

    Attributes:
        stochastic: whether a step uses its noise.
        evaluations: how often a step asks for a prediction.
    """

    evaluations: int = 1

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether a step uses its noise."""

    def init(self, x: Tensor) -> Any:
        """The carry before the first step, a named tuple of tensors or ``()``."""
        return ()

    def obstacle(self, process: LinearProcess, start: float) -> str | None:
        """Why no step can be made from the time ``start``; ``None`` if it can."""
        return None

    @abstractmethod
    def step(
        self,
        process: LinearProcess,
        predict: Predict,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Tensor,
        carry: Any,
    ) -> tuple[Tensor, Any]:
        """The state at ``s`` and the next carry.

        Args:
            process: by which the data were noised.
            predict: what is known of a state, ``(x, t) -> Prediction``.
            x: the state at ``t``, ``[*batch, *event]``.
            t: a scalar tensor.
            s: an earlier time.
            noise: of the shape of ``x``, standard normal.
            carry: what the step before left.
        """


def integrate(
    process: LinearProcess, solver: Solver, predict: Predict, x: Tensor, times: Tensor
) -> Tensor:
    """Runs a process back through given times.

    Args:
        process: by which the data were noised.
        solver: how to step.
        predict: what is known of a state, ``(x, t) -> Prediction``.
        x: the state at the first time, ``[*batch, *event]``.
        times: falling, ``[n]``; see :func:`time_grid`.

    Returns:
        The state at the last time, ``[*batch, *event]``.

    Raises:
        ValueError: if ``times`` is not one-dimensional.

    Example:
        >>> from pyrogen.processes import Exponential, Rectified, time_grid
        >>> process, x0 = Rectified(), torch.tensor([2.0, -1.0])
        >>> def predict(x, t):  # the data are one point
        ...     return Prediction.of(process, x0, x, t, "data")
        >>> times = time_grid(process, 4, min_time=1e-4)
        >>> integrate(process, Exponential(eta=0.0), predict, torch.zeros(2), times)
        tensor([ 1.9998, -0.9999])
    """
    if times.dim() != 1:
        raise ValueError(f"times: expected one dimension, got shape {list(times.shape)}")
    carry = solver.init(x)
    for t, s in itertools.pairwise(times):
        noise = torch.randn_like(x) if solver.stochastic else x
        x, carry = solver.step(process, predict, x, t, s, noise, carry)
    return x


def check_eta(eta: float, most: float) -> None:
    """Raises ``ValueError`` outside of 0 to ``most``."""
    if not 0 <= eta <= most:
        limit = "at least 0" if most == float("inf") else f"from 0 to {most:g}"
        raise ValueError(f"eta: expected a number {limit}, got {eta!r}")
