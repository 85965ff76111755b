"""Guide programs.

A guide takes the same arguments as the model it is meant for, samples the model's latent sites
under the same names and plates, and pairs with any model that has those sites.
"""

from __future__ import annotations

from pyrogen.guides.amortized_flow import AmortizedFlow
from pyrogen.guides.amortized_normal import AmortizedNormal
from pyrogen.guides.chain_posterior import ChainPosterior
from pyrogen.guides.dequantization import UniformDequantization, VariationalDequantization
from pyrogen.guides.empty import Empty
from pyrogen.guides.flow_guide import FlowGuide
from pyrogen.guides.forward_noising import ForwardNoising
from pyrogen.guides.mean_field import MeanField
from pyrogen.guides.normal_weights import NormalWeights
from pyrogen.guides.path_drift import PathDrift
from pyrogen.guides.path_encoder import PathEncoder
from pyrogen.guides.recognition import Recognition

__all__ = [
    "AmortizedFlow",
    "AmortizedNormal",
    "ChainPosterior",
    "Empty",
    "FlowGuide",
    "ForwardNoising",
    "MeanField",
    "NormalWeights",
    "PathDrift",
    "PathEncoder",
    "Recognition",
    "UniformDequantization",
    "VariationalDequantization",
]
