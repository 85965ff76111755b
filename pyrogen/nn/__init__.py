"""Plain networks, which know no Pyro and take any number of leading dimensions.

Each maps ``[*, *in_shape]`` to ``[*, *out_shape]``, where ``*`` may stand for no dimension, a
batch, plates or vectorised particles, and refuses another trailing shape with a ``ValueError``.
"""

from __future__ import annotations

from pyrogen.nn.affine import affine, localized
from pyrogen.nn.backward_gru import BackwardGRU
from pyrogen.nn.conv import ConvDecoder, ConvEncoder
from pyrogen.nn.distance_score import DistanceScore
from pyrogen.nn.egnn import EGNN
from pyrogen.nn.embedding import FourierEmbedding, SinusoidalEmbedding
from pyrogen.nn.gaussian_step import GaussianStep
from pyrogen.nn.mlp import MLP
from pyrogen.nn.modulated_mlp import ModulatedMLP
from pyrogen.nn.one_hot import OneHot
from pyrogen.nn.preconditioned import Preconditioned
from pyrogen.nn.time_mlp import TimeMLP
from pyrogen.nn.unet import UNet
from pyrogen.nn.wave_function import WaveDerivatives, WaveFunction
from pyrogen.nn.wave_terms import Envelope, Orbitals, PairCusp, SymmetricNetwork, WaveTerm

__all__ = [
    "EGNN",
    "MLP",
    "BackwardGRU",
    "ConvDecoder",
    "ConvEncoder",
    "DistanceScore",
    "Envelope",
    "FourierEmbedding",
    "GaussianStep",
    "ModulatedMLP",
    "OneHot",
    "Orbitals",
    "PairCusp",
    "Preconditioned",
    "SinusoidalEmbedding",
    "SymmetricNetwork",
    "TimeMLP",
    "UNet",
    "WaveDerivatives",
    "WaveFunction",
    "WaveTerm",
    "affine",
    "localized",
]
