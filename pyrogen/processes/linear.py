r"""Linear processes, whose laws given the beginning are Gaussian in closed form.

.. math:: dx = f(t)\, x\, dt + g(t)\, dW, \qquad
   x_t \mid x_0 \sim N\!\left(\alpha(t)\, x_0,\; \sigma^2(t)\right),

where :math:`f = \alpha'/\alpha` and :math:`g^2 = (\sigma^2)' - 2 f \sigma^2`. Between two times

.. math:: x_t \mid x_s \sim N\!\left(\tfrac{\alpha_t}{\alpha_s} x_s,\;
   \sigma_t^2 - \tfrac{\alpha_t^2}{\alpha_s^2} \sigma_s^2\right),

and Bayes' rule gives the law of :math:`x_s` when :math:`x_0` and :math:`x_t` are known, the bridge.
How much is left of :math:`x_0` is told by the signal-to-noise ratio,
:math:`\lambda(t) = \log(\alpha^2 / \sigma^2)`, which falls all the time.

References:
    D. P. Kingma, T. Salimans, B. Poole, J. Ho, *Variational diffusion models*, 2021,
    arXiv:2107.00630. Y. Song et al., *Score-based generative modeling through stochastic
    differential equations*, 2021, arXiv:2011.13456.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrogen.processes.process import Process, as_time, beside

__all__ = ["LinearProcess"]

_OF_TIME = (
    "mean_scale", "mean_scale_rate", "variance", "variance_rate", "time_of", "std",
    "std_rate", "log_snr", "drift_scale", "diffusion",
)  # fmt: skip


def _of_time(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The method for numbers too."""

    @functools.wraps(function)
    def method(self: Any, t: Any) -> Tensor:
        return function(self, as_time(t))

    return method


class LinearProcess(Process, ABC):
    """A process of linear drift and additive noise.

    A subclass gives ``alpha`` and ``sigma^2`` with their derivatives in time, and the time at which
    the log-SNR has a given value; all else follows.

    Shapes: a function of time returns the shape of ``t``; states are ``[*batch, *event]``, and
    ``t`` is a scalar or broadcasts against ``[*batch]``.
    """

    def __init__(self) -> None:
        """Nothing is passed on: drift and diffusion are methods here."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Functions of time that a subclass defines take numbers as well as tensors."""
        super().__init_subclass__(**kwargs)
        for name in _OF_TIME:
            if name in cls.__dict__:
                setattr(cls, name, _of_time(cls.__dict__[name]))

    @abstractmethod
    def mean_scale(self, t: Tensor) -> Tensor:
        """``alpha(t)``: what is left of a unit of the beginning."""

    @abstractmethod
    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """The derivative of :meth:`mean_scale`."""

    @abstractmethod
    def variance(self, t: Tensor) -> Tensor:
        """``sigma^2(t)``: the variance given the beginning."""

    @abstractmethod
    def variance_rate(self, t: Tensor) -> Tensor:
        """The derivative of :meth:`variance`."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which :meth:`log_snr` has the given value."""

    @_of_time
    def std(self, t: Tensor) -> Tensor:
        """``sigma(t)``: the standard deviation given the beginning."""
        return self.variance(t).sqrt()

    @_of_time
    def std_rate(self, t: Tensor) -> Tensor:
        """The derivative of :meth:`std`."""
        return 0.5 * self.variance_rate(t) / self.std(t)

    @_of_time
    def log_snr(self, t: Tensor) -> Tensor:
        """``log(alpha^2 / sigma^2)``, in nats."""
        return 2 * self.mean_scale(t).log() - self.variance(t).log()

    @_of_time
    def drift_scale(self, t: Tensor) -> Tensor:
        """``f(t)``, the drift of a unit state."""
        return self.mean_scale_rate(t) / self.mean_scale(t)

    def drift(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """The drift ``f(t) x``, whatever the context."""
        return beside(self.drift_scale(as_time(t, x)), x) * x

    @_of_time
    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion ``g(t)``."""
        squared = self.variance_rate(t) - 2 * self.drift_scale(t) * self.variance(t)
        return squared.clamp(min=0).sqrt()

    def networks(self) -> list[nn.Module]:
        """The process itself, if it is a module."""
        return [self] if isinstance(self, nn.Module) else []

    def _given_diffusion(self) -> Callable[[Tensor], Tensor]:
        return self.diffusion

    def marginal(self, x0: Tensor, t: Tensor) -> torch.distributions.Normal:
        """The law of ``x_t`` given the beginning, elementwise.

        Args:
            x0: ``[*batch, *event]``.
            t: when.
        """
        t = as_time(t, x0)
        mean_scale, std = self.mean_scale(t), self.std(t)
        return _normal(beside(mean_scale, x0) * x0, std)

    def transition(self, x: Tensor, start: Tensor, end: Tensor) -> torch.distributions.Normal:
        """The law of the state at ``end`` given ``x`` at ``start``, elementwise.

        Args:
            x: ``[*batch, *event]``.
            start: the earlier time.
            end: the later time.
        """
        start, end = as_time(start, x), as_time(end, x)
        ratio = self.mean_scale(end) / self.mean_scale(start)
        return _normal(beside(ratio, x) * x, self._variance_between(start, end).sqrt())

    def bridge(
        self, x0: Tensor, x: Tensor, between: Tensor, t: Tensor
    ) -> torch.distributions.Normal:
        """The law of the state at ``between`` given the beginning and ``x`` at the later ``t``.

        Args:
            x0: the beginning, ``[*batch, *event]``.
            x: the state at ``t``.
            between: a time before ``t``.
            t: the later time.
        """
        between, t = as_time(between, x), as_time(t, x)
        ratio = self.mean_scale(t) / self.mean_scale(between)
        # By precisions: sigma_s^2 sigma_{t|s}^2 / sigma_t^2.
        share = self._variance_between(between, t) / self.variance(t)
        from_end = ratio * self.variance(between) / self.variance(t)
        mean = beside(self.mean_scale(between) * share, x) * x0 + beside(from_end, x) * x
        return _normal(mean, (self.variance(between) * share).sqrt())

    def bridge_kl(self, error: Tensor, between: Tensor, t: Tensor) -> Tensor:
        r"""Divergence of two bridges whose beginnings differ by ``error``, elementwise, in nats.

        .. math:: \mathrm{KL} = \tfrac12\, (e^{\lambda_s} - e^{\lambda_t})\, \mathrm{error}^2 .

        Args:
            error: ``x0 - x0'``, ``[*batch, *event]``.
            between: a time before ``t``.
            t: the later time.
        """
        between, t = as_time(between, error), as_time(t, error)
        change = self.log_snr(between).exp() - self.log_snr(t).exp()
        return 0.5 * beside(change, error) * error.square()

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        """The variance at ``end`` given the state at ``start``: through the log-SNR, since the
        difference of two near variances would lose its digits."""
        return -self.variance(end) * torch.expm1(self.log_snr(end) - self.log_snr(start))


def _normal(mean: Tensor, std: Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(mean, beside(std, mean).expand_as(mean), validate_args=False)
