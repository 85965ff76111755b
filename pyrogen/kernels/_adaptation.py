r"""Warm-up: step size, mass matrix and trajectory length, learned from all chains together.

* **Step size**: dual averaging drives the mean acceptance probability over chains to its target.
  The mean is the harmonic one until the last window: chains that start far out accept nothing until
  the step is short enough for them, and an arithmetic mean would leave them behind. With error
  :math:`h_t = \delta - \bar\alpha_t`,

  .. math:: \bar h_t = (1 - \tfrac1{t + t_0}) \bar h_{t-1} + \tfrac1{t + t_0} h_t, \qquad
      \log\epsilon_t = \mu - \tfrac{\sqrt t}{\gamma} \bar h_t,

  and what remains is the average of :math:`\log\epsilon_t` with weights :math:`t^{-\kappa}`.
  :math:`\mu` is the logarithm of the step size that a search by doubling found at the start.
* **Mass matrix**: the variance (or covariance) of the positions of all chains over a window, shrunk
  to a small multiple of the identity. Windows double in length; each starts anew.
* **Trajectory length**: Adam on :math:`\log T` along the gradient of ChEES, the change in the
  estimator of the expected square, which the kernel reports as ``trajectory_gradient``.

Nothing is learned after warm-up.

References:
    Hoffman, Gelman, *The No-U-Turn Sampler*, 2014 (arXiv:1111.4246). Hoffman, Radul, Sountsov, *An
    Adaptive-MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo*, AISTATS 2021.
    Stan reference manual, *HMC algorithm parameters* (the windows).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["WarmUp", "WarmUpState", "harmonic_mean", "window_ends"]

_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75
_RATE, _DECAY, _TINY = 0.025, 0.95, 1e-8


class StepSizeState(NamedTuple):
    """Dual averaging; ``cautious`` while it heeds the chains that accept least."""

    cautious: Tensor
    steps: Tensor
    centre: Tensor
    error: Tensor
    log_mean: Tensor


class MomentState(NamedTuple):
    """Welford's running moments of the positions."""

    steps: Tensor
    mean: Tensor
    squares: Tensor


class TrajectoryState(NamedTuple):
    """Adam without momentum on the logarithm of the trajectory length."""

    steps: Tensor
    square: Tensor
    log_mean: Tensor


class WarmUpState(NamedTuple):
    """What warm-up remembers between steps."""

    step_size: StepSizeState
    moments: MomentState
    trajectory: TrajectoryState


class WarmUp:
    """How a kernel is tuned; pure functions of tensors.

    Args:
        target_accept_prob: where the step size drives the mean acceptance probability.
        step_size: whether to adapt the step size.
        mass_matrix: whether to adapt ``tuning.scale``.
        trajectory: whether to adapt the trajectory length.
    """

    def __init__(
        self,
        target_accept_prob: float,
        step_size: bool = True,
        mass_matrix: bool = True,
        trajectory: bool = False,
    ) -> None:
        self.target_accept_prob = target_accept_prob
        self.step_size = step_size
        self.mass_matrix = mass_matrix
        self.trajectory = trajectory

    def init(self, tuning: Any, position: Tensor) -> WarmUpState:
        """Before the first step, with ``tuning`` as it is to begin with."""
        zero = torch.zeros_like(tuning.step_size)
        return WarmUpState(
            StepSizeState(zero + 1, zero, tuning.step_size.log(), zero, zero.clone()),
            self._no_moments(tuning, position),
            TrajectoryState(zero, zero, zero),
        )

    def update(
        self, warm: WarmUpState, tuning: Any, position: Tensor, info: Any
    ) -> tuple[WarmUpState, Any]:
        """After a step: what to remember, and the tuning of the next step."""
        step, moments, trajectory = warm
        if self.step_size:
            mean = info.accept_prob.mean()
            mean = torch.lerp(mean, harmonic_mean(info.accept_prob), step.cautious)
            step, tuning = self._step_size(step, tuning, mean)
        if self.mass_matrix:
            moments = self._moments(moments, position)
        if self.trajectory:
            trajectory, tuning = self._trajectory(trajectory, tuning, info.trajectory_gradient)
        return WarmUpState(step, moments, trajectory), tuning

    def close_window(
        self,
        warm: WarmUpState,
        tuning: Any,
        position: Tensor,
        learn: bool = True,
        last: bool = False,
    ) -> tuple[WarmUpState, Any]:
        """At the end of a window: a new scale (if ``learn``), and dual averaging anew."""
        if self.mass_matrix and learn:
            warm, tuning = self._rescaled(warm, tuning)
        if self.mass_matrix or (self.step_size and last):
            warm = self.init(tuning, position)._replace(trajectory=warm.trajectory)
        if self.step_size and last:
            step = warm.step_size._replace(cautious=torch.zeros_like(tuning.step_size))
            warm = warm._replace(step_size=step)
        return warm, tuning

    def finish(self, warm: WarmUpState, tuning: Any) -> Any:
        """The tuning for good: the averages over the last window."""
        if self.step_size:
            tuning = tuning._replace(step_size=warm.step_size.log_mean.exp())
        if self.trajectory:
            tuning = tuning._replace(trajectory_length=warm.trajectory.log_mean.exp())
        return tuning

    def _rescaled(self, warm: WarmUpState, tuning: Any) -> tuple[WarmUpState, Any]:
        """A new scale, and the lengths that are measured in its units."""
        old, new = tuning.scale, self._scale(warm.moments)
        stretch = torch.exp(_log_volume(old) - _log_volume(new))
        tuning = tuning._replace(scale=new, step_size=tuning.step_size * stretch)
        if self.trajectory:
            tuning = tuning._replace(trajectory_length=tuning.trajectory_length * stretch)
            log_mean = warm.trajectory.log_mean + stretch.log()
            warm = warm._replace(trajectory=warm.trajectory._replace(log_mean=log_mean))
        return warm, tuning

    def _step_size(
        self, state: StepSizeState, tuning: Any, accept_prob: Tensor
    ) -> tuple[StepSizeState, Any]:
        count = state.steps + 1
        weight = 1 / (count + _T0)
        error = (1 - weight) * state.error + weight * (self.target_accept_prob - accept_prob)
        log_step = state.centre - count.sqrt() / _GAMMA * error
        log_mean = torch.lerp(state.log_mean, log_step, count**-_KAPPA)
        tuning = tuning._replace(step_size=log_step.exp())
        return StepSizeState(state.cautious, count, state.centre, error, log_mean), tuning

    def _moments(self, state: MomentState, position: Tensor) -> MomentState:
        chains = len(position)
        count = state.steps + chains
        mean = position.mean(0)
        apart, centred = mean - state.mean, position - mean
        weight = state.steps * chains / count
        if state.squares.dim() == 1:
            squares = centred.square().sum(0) + weight * apart.square()
        else:
            squares = centred.T @ centred + weight * torch.outer(apart, apart)
        return MomentState(count, state.mean + apart * (chains / count), state.squares + squares)

    def _scale(self, state: MomentState) -> Tensor:
        count = state.steps
        variance = state.squares / (count - 1).clamp(min=1)
        shrink = count / (count + 5)
        diagonal = 1e-3 * (1 - shrink)
        if variance.dim() == 1:
            return (shrink * variance + diagonal).sqrt()
        eye = torch.eye(len(variance), dtype=variance.dtype, device=variance.device)
        scale: Tensor = torch.linalg.cholesky(shrink * variance + diagonal * eye)
        return scale

    def _trajectory(
        self, state: TrajectoryState, tuning: Any, gradient: Tensor
    ) -> tuple[TrajectoryState, Any]:
        count = state.steps + 1
        square = _DECAY * state.square + (1 - _DECAY) * gradient.square()
        corrected = square / (1 - _DECAY**count)
        move = _RATE * gradient / (corrected.sqrt() + _TINY)
        log_length = torch.maximum(tuning.trajectory_length.log() + move, tuning.step_size.log())
        log_mean = torch.lerp(state.log_mean, log_length, count**-_KAPPA)
        tuning = tuning._replace(trajectory_length=log_length.exp())
        return TrajectoryState(count, square, log_mean), tuning

    def _no_moments(self, tuning: Any, position: Tensor) -> MomentState:
        zero = torch.zeros_like(tuning.step_size)
        scale = getattr(tuning, "scale", zero)
        return MomentState(zero, torch.zeros_like(position[0]), torch.zeros_like(scale))


def harmonic_mean(accept_prob: Tensor) -> Tensor:
    """The harmonic mean over chains, in which a single one that accepts nothing weighs much."""
    floor = min(1e-3, 1 / len(accept_prob))
    return accept_prob.clamp(min=floor).reciprocal().mean().reciprocal()


def window_ends(warmup_steps: int, num_chains: int) -> dict[int, bool]:
    """After which steps a window ends, and whether its positions are to be used.

    Much as Stan's: 15 % (at most 75 steps) to find the bulk, windows of 25, 50, 100, ... steps
    (10, 20, 40, ... with 20 chains or more), and 10 % (15 to 50 steps) for the step size alone.
    Less than 40 steps are for the step size alone.
    """
    if warmup_steps < 40:
        return {}
    start, end = min(75, int(0.15 * warmup_steps)), min(50, max(15, int(0.1 * warmup_steps)))
    ends = {start: False}
    window, at, last = 10 if num_chains >= 20 else 25, start, warmup_steps - end
    while at < last:
        following = at + window
        at = last if following + 2 * window > last else following
        ends[at] = True
        window *= 2
    return ends


def _log_volume(scale: Tensor) -> Tensor:
    """The mean logarithm of the scale's singular values."""
    return (scale if scale.dim() == 1 else scale.diagonal()).log().mean()
