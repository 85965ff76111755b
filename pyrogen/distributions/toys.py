r"""Densities in the plane whose entropy is known, to judge what learns a density.

No model of data :math:`x \sim p` has an expected negative log-likelihood below the entropy
:math:`H`, and what it has above is its divergence:

.. math:: -\mathbb{E}_p \log q(x) = H[p] + \mathrm{KL}(p \,\|\, q), \qquad
   \mathrm{KL}(p \,\|\, q) = \mathbb{E}_p[\log p(x) - \log q(x)] .

The second line measures the first with far fewer draws than the left side does.

The definitions are those of FFJORD's experiments. Other projects use the same names for other
scales: an entropy is that of one definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.polynomial.legendre import leggauss
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Checkerboard", "EightGaussians", "TwoMoons"]


class _Toy(TorchDistribution):
    """A density in the plane, in the dtype and on the device of ``like``."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = False
    _entropy: ClassVar[float]

    def __init__(self, like: Tensor | None = None, validate_args: bool | None = None) -> None:
        like = torch.zeros(2) if like is None else like
        if like.shape != (2,) or not like.is_floating_point():
            raise ValueError(
                f"like: expected shape [2] in floating point, got {list(like.shape)} of "
                f"{like.dtype}"
            )
        self._points = self._skeleton().to(like)
        super().__init__(Size(), Size(like.shape), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """Returns the distribution with ``batch_shape``."""
        new: Any = self._get_checked_instance(_Toy, _instance)
        new._points = self._points
        super(_Toy, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draws ``[*sample_shape, *batch_shape, 2]``."""
        shape = self._extended_shape(Size(sample_shape))
        return self._draw(shape[:-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, ``[*]`` for ``[*, 2]``."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return self._log_density(value).expand(shape)

    def entropy(self) -> Tensor:
        """Entropy in nats, of shape ``batch_shape``."""
        return self._points.new_full(self.batch_shape, self._entropy)

    def _skeleton(self) -> Tensor:
        """The points, ``[n, 2]`` in double precision, around which the mass lies."""
        raise NotImplementedError

    def _draw(self, shape: Size) -> Tensor:
        raise NotImplementedError

    def _log_density(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _any_point(self, shape: Size) -> Tensor:
        index = torch.randint(len(self._points), shape, device=self._points.device)
        return self._points[index]

    def _square_distance(self, value: Tensor) -> Tensor:
        return (value.unsqueeze(-2) - self._points).square().sum(-1)


class EightGaussians(_Toy):
    r"""Eight equal Gaussians on a circle.

    .. math:: p(x) = \frac{1}{8} \sum_{k=0}^{7} N(x;\, R\, (\cos \tfrac{\pi k}{4},
       \sin \tfrac{\pi k}{4}),\, s^2 I), \qquad R = \frac{4}{1.414}, \quad s = \frac{0.5}{1.414} .

    Its entropy is 2.8318804 nats, by quadrature.

    Args:
        like: a tensor of shape ``[2]`` whose dtype and device the samples have; its values do not
            matter. ``None`` stands for the default dtype on the CPU.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if ``like`` is of another shape or not of floating point.

    References:
        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
        continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.

    Example:
        >>> toy = EightGaussians()
        >>> toy.entropy()
        tensor(2.8319)
        >>> toy.sample((5,)).shape
        torch.Size([5, 2])
    """

    _entropy = 2.831880406137657
    _radius, _scale = 4 / 1.414, 0.5 / 1.414

    def _skeleton(self) -> Tensor:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        return self._radius * torch.stack([angle.cos(), angle.sin()], dim=-1)

    def _draw(self, shape: Size) -> Tensor:
        centre = self._any_point(shape)
        return centre + self._scale * torch.randn_like(centre)

    def _log_density(self, value: Tensor) -> Tensor:
        variance = self._scale**2
        exponent = -self._square_distance(value) / (2 * variance)
        return exponent.logsumexp(-1) - math.log(8 * 2 * math.pi * variance)


class Checkerboard(_Toy):
    r"""Uniform on the eight black squares of a board of four by four, of side 2.

    .. math:: p(x) = \frac{1}{32} \quad \text{where} \quad
       \lfloor x_1 / 2 \rfloor + \lfloor x_2 / 2 \rfloor \ \text{is even and} \ |x_1|, |x_2| \le 4,

    and 0 elsewhere; edges are black. Its entropy is log 32.

    Args:
        like: a tensor of shape ``[2]`` whose dtype and device the samples have; its values do not
            matter. ``None`` stands for the default dtype on the CPU.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if ``like`` is of another shape or not of floating point.

    References:
        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
        continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.

    Example:
        >>> Checkerboard().log_prob(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        tensor([-3.4657,    -inf])
    """

    _entropy = math.log(32)

    def _skeleton(self) -> Tensor:
        side = torch.arange(-3.0, 4.0, 2.0, dtype=torch.float64)
        centre = torch.cartesian_prod(side, side)
        return centre[(centre / 2).floor().sum(-1) % 2 == 0]

    def _draw(self, shape: Size) -> Tensor:
        centre = self._any_point(shape)
        return centre + 2 * torch.rand_like(centre) - 1

    def _log_density(self, value: Tensor) -> Tensor:
        distance = (value.unsqueeze(-2) - self._points).abs().amax(-1).amin(-1)
        log_prob = torch.full_like(distance, -math.log(32))
        return log_prob.masked_fill(distance > 1, -math.inf)


class TwoMoons(_Toy):
    r"""Two interleaved half circles, blurred.

    .. math:: x = c_{\pm} \pm 2\, (\cos \theta, \sin \theta) + 0.2\, \epsilon, \qquad
       \theta \sim U(0, \pi), \quad \epsilon \sim N(0, I), \quad
       c_+ = (-1, -0.2), \quad c_- = (1, 0.8),

    with either sign equally likely. These are scikit-learn's moons with noise 0.1, doubled and
    centred. The density is an integral over the angle, exact to rounding by Gauss-Legendre
    quadrature. Its entropy is 2.3938792 nats, by quadrature.

    Args:
        like: a tensor of shape ``[2]`` whose dtype and device the samples have; its values do not
            matter. ``None`` stands for the default dtype on the CPU.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if ``like`` is of another shape or not of floating point.

    References:
        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
        continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.

    Example:
        >>> toy = TwoMoons(torch.zeros(2, dtype=torch.float64))
        >>> x = toy.sample((10_000,))
        >>> bool((toy.log_prob(x).mean() + toy.entropy()).abs() < 0.05)
        True
    """

    _entropy = 2.393879195966395
    _scale, _num_nodes = 0.2, 96

    def _skeleton(self) -> Tensor:
        nodes = torch.from_numpy(leggauss(self._num_nodes)[0])
        return _moons(math.pi * (nodes + 1) / 2).flatten(0, 1)

    def _draw(self, shape: Size) -> Tensor:
        like = self._points
        angle = math.pi * torch.rand(shape, dtype=like.dtype, device=like.device)
        lower = torch.rand_like(angle) < 0.5
        upper_moon, lower_moon = _moons(angle)
        centre = torch.where(lower.unsqueeze(-1), lower_moon, upper_moon)
        return centre + self._scale * torch.randn_like(centre)

    def _log_density(self, value: Tensor) -> Tensor:
        weights = torch.from_numpy(leggauss(self._num_nodes)[1]).to(self._points) / 4
        exponent = weights.log().repeat(2) - self._square_distance(value) / (2 * self._scale**2)
        return exponent.logsumexp(-1) - math.log(2 * math.pi * self._scale**2)


def _moons(angle: Tensor) -> Tensor:
    """The points at an angle of the upper and the lower half circle, ``[2, *, 2]``."""
    upper = 2 * torch.stack([angle.cos(), angle.sin()], dim=-1) - angle.new_tensor([1.0, 0.2])
    return torch.stack([upper, angle.new_tensor([0.0, 0.6]) - upper])
