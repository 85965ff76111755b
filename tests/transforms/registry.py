"""Every transform that a flow may be made of, for the conformance suite: a new one is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions.transforms as T
import torch
from pyro.distributions import ComposeTransformModule
from torch import Tensor
from torch.distributions import Transform

from pyrogen.transforms import Inverse


@dataclass(frozen=True)
class Entry:
    """A transform and what is true of it.

    Attributes:
        make: the constructor; called after the seed is set.
        shape: of one event that the forward map takes.
        draw: ``n`` events of the domain, from the shape.
        context_dim: size of the context, 0 for none.
        inverse: it can be inverted.
        tolerance: of inverse after forward, in float32 and float64, relative to the size of the
            event where that is above 1.
        square: the log-determinant is that of the Jacobian of the flattened event (not so on a
            manifold, whose test has its own oracle).
        discrete: a bijection of the integers, whose log-determinant is zero.
        reached: every parameter has a gradient other than zero.
        double: works in float64 whatever torch's default dtype is.
        capturable: forward and inverse map can be captured by ``pyrogen.graph``.
    """

    make: Callable[[], Transform]
    shape: tuple[int, ...]
    draw: Callable[..., Tensor] = torch.randn
    context_dim: int = 0
    inverse: bool = True
    tolerance: tuple[float, float] = (1e-5, 1e-10)
    square: bool = True
    discrete: bool = False
    reached: bool = True
    double: bool = True
    capturable: bool = True


TRANSFORMS = {
    # Pyro's own, as far as the builders use them.
    "Pyro AffineCoupling": Entry(lambda: T.affine_coupling(4, [8]), (4,)),
    "Pyro AffineCoupling image": Entry(
        lambda: T.affine_coupling((4, 2, 2), [8], dim=-3), (4, 2, 2)
    ),
    "Pyro Planar": Entry(lambda: T.Planar(3), (3,), inverse=False),
    "Pyro Radial": Entry(lambda: T.Radial(3), (3,), inverse=False),
    "Pyro Sylvester": Entry(lambda: T.Sylvester(3, count_transforms=1), (3,), inverse=False),
    "Pyro Householder": Entry(lambda: T.Householder(3, 2), (3,)),
    "Pyro Permute": Entry(lambda: T.Permute(torch.tensor([2, 0, 1])), (3,)),
    "Pyro Spline": Entry(lambda: T.Spline(3, count_bins=4), (3,)),
    "Pyro SplineCoupling": Entry(lambda: T.spline_coupling(4, hidden_dims=[8]), (4,)),
    "Pyro compose": Entry(
        lambda: ComposeTransformModule([T.affine_coupling(4, [8]), T.Spline(4)]), (4,)
    ),
    # Ours.
    "Inverse": Entry(lambda: Inverse(T.affine_coupling(4, [8])), (4,)),
}


def names(**facts: bool) -> list[str]:
    """The transforms of which these facts are true."""
    return [
        name
        for name, entry in TRANSFORMS.items()
        if all(getattr(entry, fact) == value for fact, value in facts.items())
    ]
