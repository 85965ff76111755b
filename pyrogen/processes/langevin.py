r"""A step of Langevin's equation at one level of noise, which leaves that level's law in place.

.. math:: x \leftarrow x + \tfrac h2\, s(x, t) + \sqrt h\, z, \qquad
   h = \delta\, \sigma^2(t), \quad s = -E / \sigma .

Measured by the variance of the noise, one :math:`\delta` suits all levels. Predictor-corrector
samplers set it by a signal-to-noise ratio :math:`r` of the step: :math:`h = 4 r^2 \|z\|^2 /
\|s\|^2`. Where noise dominates, :math:`\|s\|` is :math:`\|z\| / \sigma`, which it never exceeds on
average, so that :math:`\delta = 4 r^2`. Taken so, rather than from the mean norm of a batch, the
draws of a batch stay independent.

References:
    Y. Song, S. Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019,
    arXiv:1907.05600. Y. Song et al., *Score-based generative modeling through stochastic
    differential equations*, 2021, arXiv:2011.13456.
"""

from __future__ import annotations

from torch import Tensor

from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.process import beside
from pyrogen.processes.solver import Predict

__all__ = ["langevin_step"]


def langevin_step(
    process: LinearProcess,
    predict: Predict,
    x: Tensor,
    t: Tensor,
    step_size: float,
    noise: Tensor,
) -> Tensor:
    r"""One step of Langevin's equation at time ``t``.

    Args:
        process: by which the data were noised.
        predict: what is known of a state, ``(x, t) -> Prediction``.
        x: the state, ``[*batch, *event]``.
        t: a scalar tensor.
        step_size: :math:`\delta`, in units of the variance of the noise; :math:`4 r^2` for a
            signal-to-noise ratio :math:`r`.
        noise: of the shape of ``x``, standard normal.

    Returns:
        ``[*batch, *event]``.

    Example:
        >>> from pyrogen.processes import Prediction, VarianceExploding
        >>> process, t, x = VarianceExploding(), torch.tensor(0.5), torch.zeros(4000)
        >>> variance = 1 + process.variance(t)  # of standard normal data under noise
        >>> def predict(x, t):
        ...     return Prediction.of(process, -x / variance, x, t, "score")
        >>> for _ in range(60):
        ...     x = langevin_step(process, predict, x, t, 0.3, torch.randn_like(x))
        >>> abs(float(x.var() / variance) - 1) < 0.1
        True
    """
    _, eps = predict(x, t)
    size = step_size**0.5 * beside(process.std(t), x)
    moved: Tensor = x + size * (noise - 0.5 * step_size**0.5 * eps)
    return moved
