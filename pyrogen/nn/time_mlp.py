"""A multilayer perceptron of a state, a time and perhaps a context."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.nn import functional

from pyrogen.nn._conditioning import check_context, linear
from pyrogen.nn.shapes import as_shape, batch_shape, positive_ints

__all__ = ["TimeMLP"]

_ELEMENTWISE = (
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.CELU, nn.SELU,
    nn.Softsign, nn.Tanhshrink, nn.ReLU, nn.LeakyReLU,
)  # fmt: skip


class TimeMLP(nn.Module):
    r"""A field :math:`v(x, t; c)` of the shape of :math:`x`, smooth in all of its arguments.

    The first layer is :math:`W_x x + W_t \phi(t) + W_c c + b` with the Fourier features
    :math:`\phi(t) = (\cos \pi k t, \sin \pi k t)_{k \le K}`; the others are those of
    :class:`~pyrogen.nn.MLP`. Time and context are embedded once for the batch dimensions that they
    have, not once for each ``x``. Weights are drawn from :math:`N(0, 1/n_{in})` and those of the
    last layer are ten times smaller, so that the flow along the field starts near the identity.

    With up to two hidden layers and an activation that acts on each number alone, the divergence
    has a closed form in the slopes :math:`d_l = a'(h_l)`,

    .. math:: \nabla \cdot v = d_2^\top \big(W_2 \circ (W_x W_3)^\top\big)\, d_1 ,

    which costs as much as the field itself, in any dimension (:meth:`value_and_divergence`).

    Args:
        in_shape: shape of one event; an integer ``n`` means ``(n,)``.
        hidden: widths of the hidden layers; ``()`` makes an affine map.
        context_dim: size of the context, 0 for none.
        frequencies: the number K of Fourier features of time; 0 makes a field constant in time.
        activation: makes the module that stands after each hidden layer; a smooth one, if the
            field is to be differentiated twice.

    Attributes:
        in_shape: shape of one event.
        context_dim: size of the context.

    Raises:
        ValueError: if a size is not positive; on call, if the input does not end in ``in_shape``,
            or the context is missing, unexpected or of another size.

    References:
        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
        continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> field = TimeMLP(2, hidden=(32,), context_dim=4)
        >>> field(torch.zeros(5, 3, 2), torch.tensor(0.5), torch.zeros(3, 4)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        frequencies: int = 3,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        if context_dim < 0 or frequencies < 0:
            raise ValueError(
                "context_dim, frequencies: expected non-negative integers, got "
                f"{context_dim}, {frequencies}"
            )
        self.in_shape = as_shape(in_shape, "in_shape")
        self.context_dim = context_dim
        self.frequencies = frequencies
        size = math.prod(self.in_shape)
        widths = [*positive_ints(hidden, "hidden"), size]
        self.of_state = linear(size, widths[0])
        self.of_time = linear(2 * frequencies, widths[0], bias=False) if frequencies else None
        self.of_context = linear(context_dim, widths[0], bias=False) if context_dim else None
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [activation(), linear(fan_in, fan_out)]
        self.layers = nn.Sequential(*layers)
        inputs = [self.of_state, self.of_time, self.of_context]
        last: list[nn.Module | None] = [*(layers[-1:] or inputs)]
        for layer in last:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.1 / math.sqrt(layer.in_features))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps ``[*, *in_shape]`` to the same shape.

        Args:
            x: ``[*, *in_shape]``.
            t: scalar, or a tensor that broadcasts against ``[*]``.
            context: ``[*, context_dim]``, or ``None`` where ``context_dim`` is 0. Its leading
                dimensions broadcast against those of ``x``.
        """
        h = self._first(x, t, context)
        return self._as_event(self.layers(h))

    def value_and_divergence(
        self, x: Tensor, t: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The field and the trace of its Jacobian in ``x``, of shape ``[*]``, in closed form.

        Args:
            x: as for a call.
            t: as for a call.
            context: as for a call.

        Raises:
            ValueError: if there is no closed form (``knows_divergence`` is false).
        """
        if not self.knows_divergence:
            raise ValueError(
                "TimeMLP: expected at most two hidden layers and an activation that acts on each "
                f"number alone for a divergence in closed form, got {self}"
            )
        h = self._first(x, t, context)
        slopes: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                h = layer(h)
            else:
                h, pull_back = vjp(layer, h)  # type: ignore[misc]
                slopes.append(pull_back(torch.ones_like(h))[0])
        return self._as_event(h), self._divergence(slopes).expand(h.shape[:-1])

    @property
    def knows_divergence(self) -> bool:
        """Whether :meth:`value_and_divergence` applies, and is that of the call."""
        activations = list(self.layers)[::2]
        ours = len(activations) <= 2 and all(isinstance(a, _ELEMENTWISE) for a in activations)
        return ours and self._where("forward") is self._where("value_and_divergence")

    def _where(self, name: str) -> type:
        """The class that defines a method: who overrides one of the two means another field."""
        return next(cls for cls in type(self).__mro__ if name in vars(cls))

    def _divergence(self, slopes: list[Tensor]) -> Tensor:
        into = self.of_state.weight  # [hidden, in], and in what follows [out, in] of each layer
        weights: list[Any] = [layer.weight for layer in list(self.layers)[1::2]]
        if not slopes:
            return into.trace()
        loop: Tensor = (
            into @ weights[-1]
        )  # from the last hidden layer out, and in again to the first
        if len(slopes) == 1:
            return (slopes[0] * loop.diagonal()).sum(-1)
        return (functional.linear(slopes[0], weights[0] * loop.T) * slopes[1]).sum(-1)

    def _first(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        batch = batch_shape(x, self.in_shape, "TimeMLP")
        check_context(context, self.context_dim, "TimeMLP")
        h: Tensor = self.of_state(x.flatten(len(batch)))
        if self.of_time is not None:
            k = torch.arange(1, self.frequencies + 1, dtype=x.dtype, device=x.device)
            angles = math.pi * k * t.unsqueeze(-1)
            h = h + self.of_time(torch.cat([angles.cos(), angles.sin()], -1))
        if self.of_context is not None:
            h = h + self.of_context(context)
        return h

    def _as_event(self, out: Tensor) -> Tensor:
        return out.reshape(*out.shape[:-1], *self.in_shape)
