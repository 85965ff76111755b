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

__all__ = ["PARAMETRIZATIONS", "convert"]

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
        if kind not in PARAMETRIZATIONS:
            raise ValueError(f"{name}: expected one of {', '.join(PARAMETRIZATIONS)}, got {kind!r}")
    if source == target:
        return prediction
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    at = _Moment(process, x, t)
    data, noise = _FROM[source](at, prediction)
    return _TO[target](at, data, noise)


class _Moment:
    """A state, and the coefficients of the process at its time beside it."""

    def __init__(self, process: LinearProcess, x: Tensor, t: Tensor) -> None:
        self.x = x
        self.alpha = beside(process.mean_scale(t), x)
        self.sigma = beside(process.std(t), x)
        self.alpha_rate = beside(process.mean_scale_rate(t), x)
        self.half_rate = 0.5 * beside(process.variance_rate(t), x)  # sigma sigma'

    def from_data(self, data: Tensor) -> tuple[Tensor, Tensor]:
        return data, (self.x - self.alpha * data) / self.sigma

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return (self.x - self.sigma * noise) / self.alpha, noise

    def from_score(self, score: Tensor) -> tuple[Tensor, Tensor]:
        return self.from_noise(-self.sigma * score)

    def from_velocity(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        determinant = self.alpha * self.half_rate - self.sigma.square() * self.alpha_rate
        data = (self.half_rate * self.x - self.sigma.square() * velocity) / determinant
        noise = self.sigma * (self.alpha * velocity - self.alpha_rate * self.x) / determinant
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
    "velocity": lambda at, data, noise: at.alpha_rate * data + at.half_rate / at.sigma * noise,
    "v": lambda at, data, noise: at.alpha * noise - at.sigma * data,
}
