r"""Paths of an Itô process on a grid of times, as functions of the noise.

Between two times :math:`h` apart, with :math:`\Delta W = \sqrt h\, z` and :math:`z` standard
normal, a step is one of

.. math::
   \text{euler:} \quad & x' = x + f(x, t)\, h + g(x, t)\, \Delta W \\
   \text{heun:} \quad & x' = x + \tfrac h2\left[f(x, t) + f(\tilde x, t + h)\right]
   + \bar g\, \Delta W, \qquad \tilde x = x + f(x, t)\, h + \bar g\, \Delta W \\
   \text{exact:} \quad & x' = \text{mean} + \text{std}\; z \quad
   \text{of the law of } x_{t+h} \mid x_t,

where :math:`\bar g^2` is the mean of :math:`g^2` at both ends. Euler's (and Maruyama's) step is of
weak order 1, and of strong order 1 for noise that does not depend on the state, else 1/2. Heun's is
of weak order 2, for such noise alone.

All noise of a path is scaled at once, before the first step, where it does not depend on the state.

References:
    P. E. Kloeden, E. Platen, *Numerical solution of stochastic differential equations*, 1992,
    doi:10.1007/978-3-662-12616-5. R. L. Honeycutt, *Stochastic Runge-Kutta algorithms. I. White
    noise*, 1992, doi:10.1103/PhysRevA.45.600.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.checkpoint import checkpoint

from pyrogen.processes.process import Field, Process
from pyrogen.processes.steered import Steered

__all__ = ["METHODS", "increments", "of_step", "on_grid", "simulate"]

METHODS = ("euler", "heun", "exact")
Step = Callable[[Tensor, int], Tensor]


def simulate(
    process: Process,
    x0: Tensor,
    times: Tensor,
    noise: Tensor,
    context: Sequence[Tensor] = (),
    method: str = "euler",
    checkpointed: bool = False,
    controls: list[Tensor] | None = None,
) -> Tensor:
    """The path that a process takes from ``x0`` when it is driven by the given noise.

    Args:
        process: what is simulated.
        x0: the beginning, ``[*batch, D]``.
        times: ``[T + 1]``, increasing.
        noise: standard normal, ``[*batch, T, D]``.
        context: tensors ``[*batch, T, C]`` or ``[*batch, 1, C]``, of which step ``k`` hands element
            ``k`` to the drift.
        method: ``"euler"``, ``"heun"``, or ``"exact"`` for a process with a ``transition``, such as
            a linear one.
        checkpointed: remember the states at about ``sqrt(T)`` times only, and run the steps between
            them again for the gradient: slower by one run, and the memory of ``sqrt(T)`` steps.
        controls: a list, to which each step of Euler adds the control of a
            :class:`~pyrogen.processes.Steered` process. Not with ``checkpointed``.

    Returns:
        The path, ``[*batch, T + 1, D]``.

    Raises:
        ValueError: for an unknown method, or one that the process does not have.

    Example:
        >>> from pyrogen.processes import OrnsteinUhlenbeck
        >>> times = torch.linspace(0.0, 1.0, 101)
        >>> path = simulate(OrnsteinUhlenbeck(), torch.zeros(1), times, torch.zeros(100, 1))
        >>> bool((path == 0).all())
        True
    """
    check_method(process, method)
    steps = times.diff()
    drift = process.drift
    if controls is not None and isinstance(process, Steered):
        drift = _recorded(process, controls)
    one = _stepping(process, drift, times, steps, noise, context, method)
    del noise  # so that the states take its place in memory
    if checkpointed and torch.is_grad_enabled():
        path = _remembered(one, x0, len(steps))
    else:
        path = _run(one, x0, range(len(steps)))
    return torch.stack(path).movedim(0, -2)  # states of one time stay together in memory


def check_method(process: Process, method: str) -> None:
    """Raises ValueError if a method is unknown, or not for this process."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    if method == "exact" and not hasattr(process, "transition"):
        raise ValueError(
            "method 'exact': expected a process whose transitions are known, such as a linear one, "
            f"got {type(process).__name__}; use 'euler'"
        )
    if method == "heun" and process.state_dependent:
        raise ValueError(
            "method 'heun': expected a diffusion that does not depend on the state, got g(x, t); "
            "use 'euler', or 'milstein' of torchsde"
        )


def on_grid(times: Tensor, x: Tensor) -> Tensor:
    """Times ``[T]`` beside states ``x [*batch, T, D]``: ``[1, ..., T]``, a dimension for each of
    the batch of ``x``."""
    return times.reshape((1,) * (x.dim() - 2) + times.shape)


def of_step(context: Sequence[Tensor], k: int) -> list[Tensor]:
    """What step ``k`` is told, each ``[*batch, C]``."""
    return [each[..., k if each.shape[-2] > 1 else 0, :] for each in context]


def increments(
    process: Process, times: Tensor, steps: Tensor, noise: Tensor, method: str
) -> Tensor:
    """``g dW`` of all steps, ``[*batch, T, D]``, where ``g`` does not depend on the state."""
    at = process.diffusion_at(noise, on_grid(times[:-1], noise))
    if method == "heun":
        end = process.diffusion_at(noise, on_grid(times[1:], noise))
        at = (0.5 * (at.square() + end.square())).sqrt()
    return at * steps.sqrt().unsqueeze(-1) * noise


def _recorded(process: Steered, controls: list[Tensor]) -> Field:
    """The drift, of which the control is kept."""

    def drift(x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        found, control = process.drift_and_control(x, t, *context)
        controls.append(control)
        return found

    return drift


def _stepping(
    process: Process,
    drift: Field,
    times: Tensor,
    steps: Tensor,
    noise: Tensor,
    context: Sequence[Tensor],
    method: str,
) -> Step:
    """A step as a function of the state and its number."""
    t = times.unbind()
    told = [of_step(context, k) for k in range(len(steps))] if context else [[]] * len(steps)
    # As numbers, lengths spare an operation a step; a graph that is captured keeps them tensors.
    h: Any = steps.tolist() if get_proxy_mode() is None else steps.unbind()
    if method == "exact":
        law: Any = process
        of_step_noise = noise.unbind(-2)

        def exact(x: Tensor, k: int) -> Tensor:
            given = law.transition(x, t[k], t[k + 1])
            moved: Tensor = torch.addcmul(given.mean, given.stddev, of_step_noise[k])
            return moved

        return exact
    if process.state_dependent:
        scaled = (steps.sqrt().unsqueeze(-1) * noise).unbind(-2)

        def dependent(x: Tensor, k: int) -> Tensor:
            noisy = torch.addcmul(x, process.diffusion_at(x, t[k]), scaled[k])
            return _along(noisy, drift(x, t[k], *told[k]), h[k])

        return dependent
    noises = increments(process, times, steps, noise, method)
    add, dw = _add_constant if _is_constant(noises) else torch.add, noises.unbind(-2)

    def euler(x: Tensor, k: int) -> Tensor:
        return add(_along(x, drift(x, t[k], *told[k]), h[k]), dw[k])

    def heun(x: Tensor, k: int) -> Tensor:
        here = drift(x, t[k], *told[k])
        ahead = drift(add(_along(x, here, h[k]), dw[k]), t[k + 1], *told[k])
        return add(_along(x, here + ahead, 0.5 * h[k]), dw[k])

    return heun if method == "heun" else euler


def _along(x: Tensor, drift: Tensor, h: Any) -> Tensor:
    """``x + h drift``, in one operation and memory of its own."""
    if isinstance(h, float):
        return torch.add(x, drift, alpha=h)
    return torch.addcmul(x, drift, h)


def _is_constant(x: Tensor) -> bool:
    """Whether no derivative, of either mode, and no other transform or graph asks for ``x``."""
    transformed = torch._C._functorch.maybe_current_level() is not None
    dual = forward_ad.unpack_dual(x).tangent is not None
    return not (x.requires_grad or transformed or dual or get_proxy_mode() is not None)


def _add_constant(x: Tensor, constant: Tensor) -> Tensor:
    """``x + constant`` in the memory of ``x``, of which the graph of ``x`` need not know."""
    x.detach().add_(constant)
    return x


def _run(step: Step, x: Tensor, steps: range) -> list[Tensor]:
    path = [x]
    for k in steps:
        x = step(x, k)
        path.append(x)
    return path


def _remembered(step: Step, x0: Tensor, count: int) -> list[Tensor]:
    """The path in segments, of which the gradient knows the first state only."""
    length, path = math.isqrt(count - 1) + 1, [x0]
    for first in range(0, count, length):
        steps = range(first, min(first + length, count))
        run: Any = lambda x, steps=steps: tuple(_run(step, x, steps)[1:])  # noqa: E731
        path += checkpoint(run, path[-1], use_reentrant=False, preserve_rng_state=False)
    return path
