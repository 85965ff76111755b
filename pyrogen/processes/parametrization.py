r"""What a denoising network may predict, and how one prediction is another.

A state :math:`x = \alpha x_0 + \sigma \epsilon` of a linear process determines any of these by any
other:

======================  =====================================================
``"data"``              :math:`x_0`
``"noise"``             :math:`\epsilon`
``"score"``             :math:`-\epsilon / \sigma`
``"velocity"``          :math:`\alpha' x_0 + \sigma' \epsilon`, of the flow
``"v"``                 :math:`\alpha \epsilon - \sigma x_0`
======================  =====================================================

What is linear in a single draw is linear in its mean, so that the same holds of what a network
learns: the mean of each given :math:`x`.

References:
    T. Salimans, J. Ho, *Progressive distillation for fast sampling of diffusion models*, 2022,
    arXiv:2202.00512. D. P. Kingma, R. Gao, *Understanding diffusion objectives as the ELBO with
    simple data augmentation*, 2023, arXiv:2303.00848.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.process import beside

__all__ = ["PARAMETRIZATIONS", "check_parametrization", "convert", "error_scale", "known"]

PARAMETRIZATIONS = ("data", "noise", "score", "velocity", "v")


def convert(
    process: LinearProcess, prediction: Tensor, x: Tensor, t: Tensor, source: str, target: str
) -> Tensor:
    """One prediction as another.

    Args:
        process: by which the data were noised.
        prediction: what the network says, ``[*batch, *event]``.
        x: the state it was shown, ``[*batch, *event]``.
        t: at which time, a scalar or broadcasting against ``[*batch]``.
        source: what the network predicts: ``"data"``, ``"noise"``, ``"score"``, ``"velocity"`` or
            ``"v"``.
        target: what is wanted, likewise.

    Returns:
        ``[*batch, *event]``.

    Raises:
        ValueError: for another name.

    Example:
        >>> from pyrogen.processes import VariancePreserving
        >>> process, t = VariancePreserving(), torch.tensor(0.5)
        >>> x0, noise = torch.tensor([1.0, -2.0]), torch.tensor([0.3, 0.1])
        >>> x = process.mean_scale(t) * x0 + process.std(t) * noise
        >>> score = convert(process, x0, x, t, "data", "score")
        >>> torch.allclose(score, -noise / process.std(t))
        True
    """
    for name, kind in (("source", source), ("target", target)):
        check_parametrization(name, kind)
    if source == target:
        return prediction
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    at = _Moment(process, x, t)
    data, noise = _FROM[source](at, prediction)
    return _TO[target](at, data, noise)


def known(process: LinearProcess, data: Tensor, noise: Tensor, t: Tensor, target: str) -> Tensor:
    """What a network should predict where data and noise are known.

    Args:
        process: by which the data are noised.
        data: ``[*batch, *event]``.
        noise: standard normal, ``[*batch, *event]``.
        t: a scalar, or broadcasting against ``[*batch]``.
        target: what is wanted; see :func:`convert`.

    Example:
        >>> from pyrogen.processes import Rectified
        >>> data, noise, t = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor(0.5)
        >>> known(Rectified(), data, noise, t, "velocity")
        tensor([2.])
    """
    return _TO[target](_Moment(process, data, t), data, noise)


def error_scale(process: LinearProcess, t: Tensor, source: str, target: str) -> Tensor:
    """How large the error of one prediction is in units of the error of another, at one state.

    Args:
        process: by which the data are noised.
        t: times of any shape.
        source: what is predicted; see :func:`convert`.
        target: that whose error is wanted.

    Returns:
        the shape of ``t``.

    Example:
        >>> from pyrogen.processes import Rectified
        >>> error_scale(Rectified(), torch.tensor(0.75), "data", "noise")
        tensor(-0.3333)
    """
    if source == target:
        return torch.ones_like(t)
    return _error(process, t, target) / _error(process, t, source)


def _error(process: LinearProcess, t: Tensor, kind: str) -> Tensor:
    """The error of a prediction where that of the noise is alpha: finite where alpha is 0."""
    alpha, sigma = process.mean_scale(t), process.std(t)
    if kind == "noise":
        return alpha
    if kind == "data":
        return -sigma
    if kind == "score":
        return -alpha / sigma
    if kind == "v":
        return alpha.square() + sigma.square()
    return alpha * process.std_rate(t) - sigma * process.mean_scale_rate(t)


def check_parametrization(name: str, kind: str) -> None:
    """Raises ``ValueError`` if ``kind`` is none of ``PARAMETRIZATIONS``."""
    if kind not in PARAMETRIZATIONS:
        raise ValueError(f"{name}: expected one of {', '.join(PARAMETRIZATIONS)}, got {kind!r}")


class _Moment:
    """A state, and the coefficients of the process at its time beside it."""

    def __init__(self, process: LinearProcess, x: Tensor, t: Tensor) -> None:
        self.x = x
        self.alpha = beside(process.mean_scale(t), x)
        self.sigma = beside(process.std(t), x)
        self.alpha_rate = beside(process.mean_scale_rate(t), x)
        self.sigma_rate = beside(process.std_rate(t), x)  # may be infinite where sigma is 0

    def from_data(self, data: Tensor) -> tuple[Tensor, Tensor]:
        return data, (self.x - self.alpha * data) / self.sigma

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return (self.x - self.sigma * noise) / self.alpha, noise

    def from_score(self, score: Tensor) -> tuple[Tensor, Tensor]:
        return self.from_noise(-self.sigma * score)

    def from_velocity(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.sigma / self.sigma_rate
        determinant = self.alpha - ratio * self.alpha_rate
        data = (self.x - ratio * velocity) / determinant
        noise = (self.alpha * velocity - self.alpha_rate * self.x) / self.sigma_rate / determinant
        return data, noise

    def from_v(self, v: Tensor) -> tuple[Tensor, Tensor]:
        total = self.alpha.square() + self.sigma.square()
        data = (self.alpha * self.x - self.sigma * v) / total
        return data, (self.sigma * self.x + self.alpha * v) / total


_FROM: dict[str, Callable[[_Moment, Tensor], tuple[Tensor, Tensor]]] = {
    "data": _Moment.from_data,
    "noise": _Moment.from_noise,
    "score": _Moment.from_score,
    "velocity": _Moment.from_velocity,
    "v": _Moment.from_v,
}
_TO: dict[str, Callable[[_Moment, Tensor, Tensor], Tensor]] = {
    "data": lambda at, data, noise: data,
    "noise": lambda at, data, noise: noise,
    "score": lambda at, data, noise: -noise / at.sigma,
    "velocity": lambda at, data, noise: at.alpha_rate * data + at.sigma_rate * noise,
    "v": lambda at, data, noise: at.alpha * noise - at.sigma * data,
}
