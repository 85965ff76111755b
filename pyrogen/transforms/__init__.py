"""The bijections that Pyro lacks, with value and log-determinant from one pass."""

from __future__ import annotations

from pyrogen.transforms._bijection import Bijection, Inverse
from pyrogen.transforms.actnorm import ActNorm, initialize
from pyrogen.transforms.affine import AffineCoupling
from pyrogen.transforms.autoregressive import MaskedAutoregressive
from pyrogen.transforms.continuous import ContinuousFlow, Solution
from pyrogen.transforms.convolution import InvertibleConvolution
from pyrogen.transforms.coupling import AdditiveCoupling, DiagonalScaling
from pyrogen.transforms.gaussianization import Gaussianization
from pyrogen.transforms.integer import IntegerCoupling
from pyrogen.transforms.logit import Logit
from pyrogen.transforms.multiscale import MultiScale, Split, Squeeze
from pyrogen.transforms.sphere import ContinuousSphereFlow, SphereFlow
from pyrogen.transforms.spline import SplineCoupling
from pyrogen.transforms.sylvester import Sylvester
from pyrogen.transforms.torus import TorusFlow

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Bijection",
    "ContinuousFlow",
    "ContinuousSphereFlow",
    "DiagonalScaling",
    "Gaussianization",
    "IntegerCoupling",
    "Inverse",
    "InvertibleConvolution",
    "Logit",
    "MaskedAutoregressive",
    "MultiScale",
    "Solution",
    "SphereFlow",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Sylvester",
    "TorusFlow",
    "initialize",
]
