r"""Itô processes, forwards and backwards in time.

.. math:: dx = f(x, t)\, dt + g(t)\, dW .

If :math:`p_t` is the law of :math:`x_t` and :math:`s(x, t) = \nabla_x \log p_t(x)` its score, two
other processes have the same laws: the one that runs from the end to the beginning,

.. math:: dx = \left[f - g^2 s\right] dt + g\, d\bar W, \qquad dt < 0,

and the ordinary differential equation of the probability flow,

.. math:: \frac{dx}{dt} = f - \tfrac12 g^2 s .

References:
    B. D. O. Anderson, *Reverse-time diffusion equation models*, 1982,
    doi:10.1016/0304-4149(82)90051-5. Y. Song et al., *Score-based generative modeling through
    stochastic differential equations*, 2021, arXiv:2011.13456.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Process", "as_time", "beside"]

Field = Callable[..., Tensor]
Diffusion = float | Tensor | Callable[..., Tensor]


def as_time(t: Any, x: Tensor | None = None) -> Tensor:
    """Times as a tensor of floating-point numbers.

    Args:
        t: a tensor or a number.
        x: states, whose dtype and device plain numbers take; by default torch's own.
    """
    if isinstance(t, Tensor) and t.is_floating_point():
        return t
    dtype = torch.get_default_dtype() if x is None else x.dtype
    if isinstance(t, Tensor) or x is None:
        return torch.as_tensor(t, dtype=dtype)
    return torch.as_tensor(t, dtype=dtype, device=x.device)


def beside(t: Tensor | float, x: Tensor) -> Tensor:
    """Times ``[*batch]`` as ``[*batch, 1, ...]`` beside states ``x [*batch, *event]``.

    Args:
        t: a scalar, or times whose shape broadcasts against the leading dimensions of ``x``.
        x: states.

    Raises:
        ValueError: if ``t`` has more dimensions than ``x``.
    """
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.dim() > x.dim():
        raise ValueError(
            f"t: expected a shape that broadcasts against the batch of x, got {list(t.shape)} "
            f"for x of shape {list(x.shape)}"
        )
    return t.reshape((*t.shape, *[1] * (x.dim() - t.dim()))) if t.dim() > 0 else t


class Process:
    """An Itô process.

    Args:
        drift: ``f(x, t)``, of the shape of ``x``; or ``f(x, t, *context)``, where a path gives the
            context.
        diffusion: ``g``: a number, a tensor that broadcasts against an event, a function ``g(t)``,
            or ``g(x, t)`` that broadcasts against ``x``.

    Attributes:
        state_dependent: whether the diffusion depends on the state.

    Shapes: states are ``[*batch, *event]``; ``t`` is a scalar or broadcasts against ``[*batch]``.

    Raises:
        TypeError: if the drift is no function, or the diffusion is none of these.
        ValueError: where a formula needs a diffusion that does not depend on the state.

    References:
        B. Øksendal, *Stochastic Differential Equations*, 2003, doi:10.1007/978-3-642-14394-6.

    Example:
        >>> double_well = Process(lambda x, t: x - x**3, diffusion=0.5)
        >>> double_well.drift(torch.tensor([[2.0]]), torch.tensor(0.0))
        tensor([[-6.]])
        >>> double_well.diffusion(torch.tensor(0.0))
        tensor(0.5000)
        >>> exact = double_well.reverse(lambda x, t: -x)
        >>> exact.drift(torch.tensor([[2.0]]), torch.tensor(0.0))  # -6 + 0.25 * 2
        tensor([[-5.5000]])
    """

    state_dependent: bool = False

    def __init__(self, drift: Field, diffusion: Diffusion) -> None:
        if not callable(drift):
            raise TypeError(
                f"drift: expected a function of (x, t), got {type(drift).__name__}; a constant "
                "drift c is lambda x, t: c.expand_as(x)"
            )
        if not (callable(diffusion) or isinstance(diffusion, (int, float, Tensor))):
            raise TypeError(
                "diffusion: expected a number, a tensor, a function of t or one of (x, t), got "
                f"{type(diffusion).__name__}"
            )
        self._drift = drift
        self._diffusion = diffusion
        self.state_dependent = _takes_state(diffusion)

    def drift(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """The drift ``f(x, t)``, of the shape of ``x``."""
        return self._drift(x, as_time(t, x), *context)

    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion ``g(t)``: ``[*batch]``, or a tensor that broadcasts against an event."""
        self._refuse_state("diffusion(t)")
        t = as_time(t)
        if callable(self._diffusion):
            return self._diffusion(t)
        return torch.as_tensor(self._diffusion, dtype=t.dtype, device=t.device)

    def diffusion_at(self, x: Tensor, t: Tensor) -> Tensor:
        """The diffusion in a shape that broadcasts against states ``x [*batch, *event]``."""
        given = self._given_diffusion()
        if self.state_dependent and callable(given):
            return given(x, as_time(t, x))
        if callable(given):
            return beside(given(as_time(t, x)), x)
        return torch.as_tensor(given, dtype=x.dtype, device=x.device)

    def networks(self) -> list[nn.Module]:
        """The modules that drift and diffusion consist of, as far as they are modules."""
        return [part for part in (self._drift, self._diffusion) if isinstance(part, nn.Module)]

    def _given_diffusion(self) -> Diffusion:
        return self._diffusion

    def _refuse_state(self, what: str) -> None:
        if self.state_dependent:
            raise ValueError(
                f"{what}: expected a diffusion that does not depend on the state, got g(x, t)"
            )

    def reverse(self, score: Field) -> Process:
        """The process that runs backwards through the same laws, to be integrated with ``dt < 0``.

        Args:
            score: ``(x, t)`` to the gradient of the log-density, of the shape of ``x``.
        """
        self._refuse_state("reverse")

        def drift(x: Tensor, t: Tensor) -> Tensor:
            return self.drift(x, t) - self.diffusion_at(x, t).square() * score(x, t)

        return Process(drift, self._given_diffusion())

    def probability_flow(self, score: Field) -> Field:
        """The velocity ``(x, t) -> dx/dt`` of the ordinary differential equation with the same
        laws.

        Args:
            score: as for :meth:`reverse`.
        """
        self._refuse_state("probability_flow")

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            t = as_time(t, x)
            return self.drift(x, t) - 0.5 * self.diffusion_at(x, t).square() * score(x, t)

        return velocity


def _takes_state(diffusion: Any) -> bool:
    """Whether a diffusion is a function of two arguments."""
    if not callable(diffusion):
        return False
    function = diffusion.forward if isinstance(diffusion, nn.Module) else diffusion
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # as some built-in functions
        return False
    needed = [
        each
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        and each.default is each.empty
    ]
    return len(needed) > 1
