r"""The logit of values between 0 and 1, kept away from the ends.

.. math:: y = \operatorname{logit}(p), \qquad p = \lambda + (1 - 2\lambda)\, x, \qquad
   \log \frac{dy}{dx} = \log(1 - 2\lambda) - \log p - \log(1 - p) .

With :math:`\lambda > 0` the ends 0 and 1 of grey values have finite images. The reals are then the
image of an interval slightly larger than [0, 1].

On the way back, values that would round to the ends of that interval, where the logit is infinite,
stay a few roundings away from them; the log-determinant is exact there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrogen.transforms._bijection import Bijection

__all__ = ["Logit"]


class Logit(Bijection):
    r"""Maps values between 0 and 1 to the reals, each element by itself.

    A flow ends with its inverse, ``Logit().inv``, which maps the reals to the data.

    Args:
        boundary: :math:`\lambda`, from 0 to below 1/2. Usual are 1e-6 for black and white and 0.05
            for colour images. With 0 the values 0 and 1 are outside of the domain.

    Raises:
        ValueError: if ``boundary`` is out of range.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, *Density estimation using Real NVP*, 2016,
        arXiv:1605.08803.

    Example:
        >>> transform = Logit(boundary=0.05)
        >>> transform(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-2.9444,  0.0000,  2.9444])
    """

    def __init__(self, boundary: float = 1e-6) -> None:
        super().__init__(event_dim=0)
        if not 0 <= boundary < 0.5:
            raise ValueError(f"boundary: expected a number from 0 to below 0.5, got {boundary}")
        self.boundary = boundary
        margin = boundary / (1 - 2 * boundary)
        self.domain = constraints.interval(-margin, 1 + margin)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps ``[*]`` in the interval to the reals."""
        width = 1 - 2 * self.boundary
        log_p = torch.log(self.boundary + width * x)
        log_q = torch.log(self.boundary + width * (1 - x))
        return log_p - log_q, math.log(width) - log_p - log_q

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps ``[*]`` back to the interval."""
        width, eps = 1 - 2 * self.boundary, torch.finfo(y.dtype).eps
        smallest = max(4 * eps * self.boundary, torch.finfo(y.dtype).tiny)
        p = torch.sigmoid(y).clamp(smallest, 1 - 4 * eps)
        x = (p - self.boundary) / width
        return x, math.log(width) - logsigmoid(y) - logsigmoid(-y)
