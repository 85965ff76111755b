r"""Functions of a point together with their gradient and Laplacian, forwards through a network.

A field of numbers :math:`f(x)` is carried as :math:`(f, \nabla f, \nabla^2 f)`. A linear map acts
on each of the three, a function of one number by

.. math:: \nabla a(f) = a' \nabla f, \qquad
   \nabla^2 a(f) = a' \nabla^2 f + a'' \|\nabla f\|^2 .

So a Laplacian costs about as much as :math:`D + 2` evaluations in :math:`D` dimensions, needs no
second differentiation, and compiles.

References:
    R. Li et al., *A computational framework for neural network-based variational Monte Carlo with
    forward Laplacian*, 2024, arXiv:2307.08214.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Jet"]

_TINY = 1e-30  # of a squared distance of 0


@dataclass(frozen=True)
class Jet:
    """A field with, or without, its derivatives in ``D`` coordinates.

    Attributes:
        value: ``[*shape]``.
        gradient: ``[D, *shape]``, or ``None``.
        laplacian: ``[*shape]``, or ``None``.
    """

    value: Tensor
    gradient: Tensor | None = None
    laplacian: Tensor | None = None

    @classmethod
    def at(cls, x: Tensor) -> Jet:
        """The coordinates themselves, ``x [*, D]``, with derivatives."""
        size = x.shape[-1]
        unit = torch.eye(size, dtype=x.dtype, device=x.device)
        unit = unit.reshape(size, *[1] * (x.dim() - 1), size).expand(size, *x.shape)
        return cls(x, unit, torch.zeros_like(x))

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Gradient and Laplacian."""
        if self.gradient is None or self.laplacian is None:
            raise ValueError("expected a field made by Jet.at, got one without derivatives")
        return self.gradient, self.laplacian

    def each(self, linear: Callable[[Tensor], Tensor]) -> Jet:
        """A linear map of ``value``, which must take leading dimensions."""
        value = linear(self.value)
        if self.gradient is None or self.laplacian is None:
            return Jet(value)
        return Jet(value, linear(self.gradient), linear(self.laplacian))

    def affine(self, weight: Tensor, bias: Tensor | None = None) -> Jet:
        """A linear layer."""
        mapped = self.each(lambda f: functional.linear(f, weight))
        return mapped if bias is None else mapped + bias

    def by(self, value: Tensor, first: Tensor, second: Tensor) -> Jet:
        """A function of each number, of which value and derivatives are given."""
        if self.gradient is None or self.laplacian is None:
            return Jet(value)
        square = self.gradient.square().sum(0)
        return Jet(value, first * self.gradient, first * self.laplacian + second * square)

    def __add__(self, other: Jet | Tensor) -> Jet:
        """The sum with another field, or with a constant."""
        if isinstance(other, Tensor):
            return Jet(self.value + other, self.gradient, self.laplacian)
        value = self.value + other.value
        if self.gradient is None or other.gradient is None:
            return Jet(value)
        (slope, bend), (its_slope, its_bend) = self.derivatives(), other.derivatives()
        return Jet(value, slope + its_slope, bend + its_bend)

    def __mul__(self, factor: Tensor | float) -> Jet:
        """The product with a constant that broadcasts against the last dimensions."""
        return self.each(lambda f: f * factor)

    def sum(self, *dims: int) -> Jet:
        """The sum over dimensions counted from the last."""
        return self.each(lambda f: f.sum(dims))

    def tanh(self) -> Jet:
        """The hyperbolic tangent."""
        a = self.value.tanh()
        slope = 1 - a.square()
        return self.by(a, slope, -2 * a * slope)

    def logsumexp(self) -> Jet:
        """Over the last dimension."""
        value = self.value.logsumexp(-1)
        if self.gradient is None or self.laplacian is None:
            return Jet(value)
        share = self.value.softmax(-1)
        gradient = (share * self.gradient).sum(-1)
        second = self.laplacian + self.gradient.square().sum(0)
        return Jet(value, gradient, (share * second).sum(-1) - gradient.square().sum(0))

    def square_norm(self) -> Jet:
        """Of the last dimension, whose entries are linear in the coordinates."""
        value = self.value.square().sum(-1)
        if self.gradient is None:
            return Jet(value)
        gradient = 2 * (self.value * self.gradient).sum(-1)
        return Jet(value, gradient, 2 * self.gradient.square().sum((0, -1)))

    def norm(self) -> Jet:
        """The length of the last dimension, whose entries are linear in the coordinates."""
        value = (self.value.square().sum(-1) + _TINY).sqrt()
        if self.gradient is None:
            return Jet(value)
        gradient = (self.value / value.unsqueeze(-1) * self.gradient).sum(-1)
        second = self.gradient.square().sum((0, -1)) - gradient.square().sum(0)
        return Jet(value, gradient, second / value)

    def cusp(self, decay: Tensor) -> tuple[Jet, Jet]:
        r"""Of distances :math:`r`: :math:`c = (1 - e^{-br}) / b`, which has the slope of :math:`r`
        at 0 and is bounded, and the rest :math:`r - c`, which is smooth there."""
        fallen = (-decay * self.value).exp()
        near = (1 - fallen) / decay
        return (
            self.by(near, fallen, -decay * fallen),
            self.by(self.value - near, 1 - fallen, decay * fallen),
        )

    def rounded(self) -> Jet:
        r"""Of squares :math:`r^2`: :math:`\sqrt{1 + r^2} - 1`, smooth at 0 and linear far out."""
        root = (1 + self.value).sqrt()
        return self.by(root - 1, 0.5 / root, -0.25 / root**3)
