r"""A process whose drift has something added to it.

.. math:: dx = [f(x, t) + u(x, t)]\, dt + g(x, t)\, dW .

As long as the noise is the same, the laws of the paths of both are absolutely continuous with
respect to each other, and their divergence is a cost of steering (Girsanov),

.. math:: \mathrm{KL} = \mathbb{E} \int \tfrac12 \lVert u / g \rVert^2\, dt .

References:
    I. V. Girsanov, *On transforming a certain class of stochastic processes by absolutely
    continuous substitution of measures*, 1960, doi:10.1137/1105027.
"""

from __future__ import annotations

from torch import Tensor, nn

from pyrogen.processes.process import Diffusion, Field, Process, as_time

__all__ = ["Steered"]


class Steered(Process):
    """A process with a control in its drift, and the noise of the process that it steers.

    Args:
        base: what is steered.
        control: ``u(x, t)`` or ``u(x, t, *context)``, of the shape of ``x``.
        num_contexts: how many of the contexts that a path gives are those of ``base``; the control
            takes the others.

    Raises:
        TypeError: if the control is no function.

    Example:
        >>> import torch
        >>> from pyrogen.processes import OrnsteinUhlenbeck
        >>> pulled = Steered(OrnsteinUhlenbeck(), lambda x, t: 3.0 - x)
        >>> pulled.drift(torch.ones(1), torch.tensor(0.0))
        tensor([1.])
    """

    def __init__(self, base: Process, control: Field, num_contexts: int = 0) -> None:
        if not callable(control):
            raise TypeError(f"control: expected a function of (x, t), got {type(control).__name__}")
        super().__init__(base.drift, base._given_diffusion())
        self.state_dependent = base.state_dependent
        self.base = base
        self._control = control
        self._num_contexts = num_contexts

    def drift(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """The drift of the process that is steered, and the control."""
        return self.drift_and_control(x, t, *context)[0]

    def drift_and_control(self, x: Tensor, t: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """The drift, and the control in it."""
        t = as_time(t, x)
        drift = self.base.drift(x, t, *context[: self._num_contexts])
        control = self.control(x, t, *context)
        return drift + control, control

    def control(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """What is added to the drift, of the shape of ``x``; arguments as for :meth:`drift`."""
        return self._control(x, as_time(t, x), *context[self._num_contexts :])

    def networks(self) -> list[nn.Module]:
        """The modules of the process that is steered, and the control if it is one."""
        steering = [self._control] if isinstance(self._control, nn.Module) else []
        return [*self.base.networks(), *steering]

    def _given_diffusion(self) -> Diffusion:
        return self.base._given_diffusion()
