"""Plain networks, which know no Pyro and take any number of leading dimensions.

Each maps ``[*, *in_shape]`` to ``[*, *out_shape]``, where ``*`` may stand for no dimension, a
batch, plates or vectorised particles, and refuses another trailing shape with a ``ValueError``.
"""

from __future__ import annotations

from pyrogen.nn.affine import affine, localized
from pyrogen.nn.backward_gru import BackwardGRU
from pyrogen.nn.conv import ConvDecoder, ConvEncoder
from pyrogen.nn.deep_sets import DeepSets
from pyrogen.nn.distance_score import DistanceScore
from pyrogen.nn.egnn import EGNN
from pyrogen.nn.embedding import FourierEmbedding, SinusoidalEmbedding
from pyrogen.nn.gaussian_step import GaussianStep
from pyrogen.nn.mlp import MLP
from pyrogen.nn.modulated_mlp import ModulatedMLP
from pyrogen.nn.one_hot import OneHot
from pyrogen.nn.pair_drift import PairDrift
from pyrogen.nn.preconditioned import Preconditioned
from pyrogen.nn.time_mlp import TimeMLP
from pyrogen.nn.unet import UNet
from pyrogen.nn.wave_function import WaveFunction
from pyrogen.nn.wave_terms import Envelope, Orbitals, PairCusp, SymmetricNetwork, WaveTerm

__all__ = [
    "EGNN",
    "MLP",
    "BackwardGRU",
    "ConvDecoder",
    "ConvEncoder",
    "DeepSets",
    "DistanceScore",
    "Envelope",
    "FourierEmbedding",
    "GaussianStep",
    "ModulatedMLP",
    "OneHot",
    "Orbitals",
    "PairCusp",
    "PairDrift",
    "Preconditioned",
    "SinusoidalEmbedding",
    "SymmetricNetwork",
    "TimeMLP",
    "UNet",
    "WaveFunction",
    "WaveTerm",
    "affine",
    "localized",
]
