"""Every transform that a flow may be made of, for the conformance suite: a new one is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions.transforms as T
import torch
from pyro.distributions import ComposeTransformModule
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor
from torch.distributions import Transform

from pyrogen.nn import MLP, TimeMLP
from pyrogen.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ContinuousFlow,
    ContinuousSphereFlow,
    DiagonalScaling,
    Gaussianization,
    IntegerCoupling,
    Inverse,
    InvertibleConvolution,
    Logit,
    MaskedAutoregressive,
    MultiScale,
    SphereFlow,
    SplineCoupling,
    Split,
    Squeeze,
    Sylvester,
    TorusFlow,
)
from pyrogen.transforms._elementwise import ElementwiseSpline


@dataclass(frozen=True)
class Entry:
    """A transform and what is true of it.

    Attributes:
        make: the constructor; called after the seed is set.
        shape: of one event that the forward map takes.
        draw: events of the domain, given the shape ``(*batch, *shape)``.
        context_dim: size of the context, 0 for none.
        inverse: it can be inverted.
        tolerance: of inverse after forward, in float32 and float64, relative to the size of the
            event where that is above 1.
        square: the log-determinant is that of the Jacobian of the flattened event (not so on a
            manifold, whose test has its own oracle).
        discrete: a bijection of the integers, whose log-determinant is zero.
        reached: every parameter has a gradient other than zero.
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
    capturable: bool = True


def integers(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(-20, 20, shape).double()


def zeroed(network: MLP) -> MLP:
    """The network with a last layer of zeros, so that scales made of it begin at 1."""
    torch.nn.init.zeros_(network.layers[-1].weight)
    return network


def glow() -> MultiScale:
    """Two levels of Glow's layers on images of 1 channel and 4 by 4 pixels."""

    def level(shape):
        size = shape[0]
        return [
            AdditiveCoupling(shape, hidden=(8,)),
            InvertibleConvolution(size, event_dim=3),
            ActNorm(size, event_dim=3),
            Squeeze().inv,
        ]

    split = Split((4, 2, 2), zeroed(MLP((2, 2, 2), (2, 2, 2, 2), hidden=(8,))))
    return MultiScale((1, 4, 4), [level((4, 2, 2)), level((8, 1, 1))], [split])


def conditional_levels() -> MultiScale:
    """Levels of vectors, with a conditional layer in each."""
    levels = [[AdditiveCoupling(4, context_dim=2, hidden=(8,)), ActNorm(4)], [ActNorm(2)]]
    return MultiScale(4, levels, context_dim=2)


def masked(dim: int = 4, context_dim: int = 0) -> MaskedAutoregressive:
    if context_dim:
        return MaskedAutoregressive(ConditionalAutoRegressiveNN(dim, context_dim, [12]))
    return MaskedAutoregressive(AutoRegressiveNN(dim, [12]))


class Gentle(TimeMLP):
    """A slow field, of which few steps are exact: their error is of high order in its speed."""

    def forward(self, x, t, context=None):
        return 0.02 * super().forward(x, t / 20, context)

    def value_and_divergence(self, x, t, context=None):
        value, divergence = super().value_and_divergence(x, t / 20, context)
        return 0.02 * value, 0.02 * divergence


STEPS = {"method": "rk4", "steps": 3}  # what is captured is every operation of every step


def continuous(dim: int = 3, context_dim: int = 0) -> ContinuousFlow:
    network = Gentle(dim, hidden=(8,), context_dim=context_dim)
    return ContinuousFlow(network, context_dim=context_dim, **STEPS)


def on_sphere(shape: tuple[int, ...]) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape).double(), dim=-1)


def angles(shape: tuple[int, ...]) -> Tensor:
    return math.pi * (2 * torch.rand(shape).double() - 1)


# Pyro's splines pick by boolean masks, which a graph cannot, and are less accurate in float32.
PYRO_SPLINE = {"capturable": False, "tolerance": (2e-4, 1e-10)}

TRANSFORMS = {
    # Pyro's own, as far as flows are built of them.
    "Pyro AffineCoupling": Entry(lambda: T.affine_coupling(4, [8]), (4,)),
    "Pyro AffineCoupling image": Entry(
        lambda: T.affine_coupling((4, 2, 2), [8], dim=-3), (4, 2, 2)
    ),
    "Pyro Planar": Entry(lambda: T.Planar(3), (3,), inverse=False),
    "Pyro Radial": Entry(lambda: T.Radial(3), (3,), inverse=False),
    "Pyro Householder": Entry(lambda: T.Householder(3, 2), (3,)),
    "Pyro Permute": Entry(lambda: T.Permute(torch.tensor([2, 0, 1])), (3,)),
    "Pyro SplineCoupling": Entry(
        lambda: T.spline_coupling(4, hidden_dims=[8]), (4,), **PYRO_SPLINE
    ),
    "Pyro compose": Entry(
        lambda: ComposeTransformModule([T.affine_coupling(4, [8]), T.Permute(torch.arange(4))]),
        (4,),
    ),
    # Ours.
    "Inverse": Entry(lambda: Inverse(T.affine_coupling(4, [8])), (4,)),
    "AdditiveCoupling": Entry(lambda: AdditiveCoupling(4, hidden=(8,)), (4,)),
    "AdditiveCoupling swap": Entry(lambda: AdditiveCoupling(5, split=2, swap=True), (5,)),
    "AdditiveCoupling context": Entry(
        lambda: AdditiveCoupling(4, context_dim=2, hidden=(8,)), (4,), context_dim=2
    ),
    "AdditiveCoupling image context": Entry(
        lambda: AdditiveCoupling((2, 2, 3), context_dim=2, hidden=(8,)), (2, 2, 3), context_dim=2
    ),
    "AffineCoupling": Entry(lambda: AffineCoupling(4, hidden=(8,)), (4,)),
    "AffineCoupling context": Entry(
        lambda: AffineCoupling((2, 2, 2), context_dim=2, hidden=(8,)), (2, 2, 2), context_dim=2
    ),
    "Logit": Entry(lambda: Logit(0.05).inv, ()),
    "DiagonalScaling": Entry(lambda: DiagonalScaling(3), (3,)),
    "ActNorm": Entry(lambda: ActNorm(3), (3,)),
    "ActNorm image": Entry(lambda: ActNorm(2, event_dim=3), (2, 3, 2)),
    "InvertibleConvolution": Entry(lambda: InvertibleConvolution(4), (4,)),
    "InvertibleConvolution image": Entry(lambda: InvertibleConvolution(3, event_dim=3), (3, 2, 2)),
    "Squeeze": Entry(Squeeze, (2, 4, 2)),
    "Split": Entry(lambda: Split(4, zeroed(MLP(2, (2, 2), hidden=(8,)))), (4,)),
    "MultiScale": Entry(glow, (16,)),
    "MultiScale context": Entry(conditional_levels, (4,), context_dim=2),
    "MaskedAutoregressive": Entry(masked, (4,)),
    "MaskedAutoregressive context": Entry(lambda: masked(4, 2), (4,), context_dim=2),
    "InverseAutoregressive": Entry(lambda: Inverse(masked()), (4,)),
    "SplineCoupling": Entry(lambda: SplineCoupling(4, num_bins=5, bound=2.0, hidden=(8,)), (4,)),
    "SplineCoupling context": Entry(
        lambda: SplineCoupling(4, bound=2.0, context_dim=2, hidden=(8,)), (4,), context_dim=2
    ),
    "ElementwiseSpline": Entry(lambda: ElementwiseSpline(3, num_bins=4, bound=2.0), (3,)),
    "ElementwiseSpline context": Entry(
        lambda: ElementwiseSpline(3, num_bins=4, bound=2.0, context_dim=2), (3,), context_dim=2
    ),
    "Sylvester": Entry(lambda: Sylvester(4), (4,)),
    "Sylvester context": Entry(lambda: Sylvester(4, rank=2, context_dim=3), (4,), context_dim=3),
    "Gaussianization": Entry(lambda: Gaussianization(3, num_layers=2, num_bins=4), (3,)),
    "ContinuousFlow": Entry(continuous, (3,)),
    "ContinuousFlow context": Entry(lambda: continuous(context_dim=2), (3,), context_dim=2),
    "ContinuousFlow event": Entry(
        lambda: ContinuousFlow(Gentle((2, 2), (5, 5, 5)), 2, **STEPS), (2, 2)
    ),
    "SphereFlow": Entry(
        lambda: SphereFlow(AffineCoupling(2, hidden=(8,))), (3,), draw=on_sphere, square=False
    ),
    "SphereFlow context": Entry(
        lambda: SphereFlow([continuous(2, context_dim=2), T.Householder(2)]),
        (3,),
        draw=on_sphere,
        context_dim=2,
        square=False,
    ),
    "ContinuousSphereFlow": Entry(
        lambda: ContinuousSphereFlow(Gentle(3, (8,)), **STEPS),
        (3,),
        draw=on_sphere,
        square=False,
    ),
    "TorusFlow": Entry(lambda: TorusFlow(3, 4, hidden=(8,)), (3,), draw=angles),
    "TorusFlow circle": Entry(lambda: TorusFlow(1, 4), (1,), draw=angles),
    "TorusFlow context": Entry(
        lambda: TorusFlow(3, 4, hidden=(8,), context_dim=2), (3,), draw=angles, context_dim=2
    ),
    "IntegerCoupling": Entry(
        lambda: IntegerCoupling(4, hidden=(8,), scale=20.0), (4,), draw=integers, discrete=True
    ),
}


def names(**facts: bool) -> list[str]:
    """The transforms of which these facts are true."""
    return [
        name
        for name, entry in TRANSFORMS.items()
        if all(getattr(entry, fact) == value for fact, value in facts.items())
    ]
