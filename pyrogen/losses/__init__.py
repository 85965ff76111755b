"""What ``SVI`` minimises: each loss is a ``pyro.infer.ELBO``, summed over the data.

:class:`Compiled` runs any of them as one graph. The others score a site that has no log-density,
and leave the rest of the program to the ELBO that they are given.
"""

from pyrogen.losses.compiled import Compiled
from pyrogen.losses.contrastive_divergence import ContrastiveDivergence
from pyrogen.losses.denoising_score_matching import DenoisingScoreMatching, SimpleDiffusion
from pyrogen.losses.diffusion_elbo import DiffusionELBO
from pyrogen.losses.flow_matching import FlowMatching
from pyrogen.losses.local_energy import LocalEnergy
from pyrogen.losses.log_variance import LogVariance
from pyrogen.losses.noise_contrastive import NoiseContrastive
from pyrogen.losses.path_elbo import PathELBO
from pyrogen.losses.pseudo_likelihood import PseudoLikelihood
from pyrogen.losses.ratio_matching import RatioMatching
from pyrogen.losses.score_matching import ScoreMatching

__all__ = [
    "Compiled",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "DiffusionELBO",
    "FlowMatching",
    "LocalEnergy",
    "LogVariance",
    "NoiseContrastive",
    "PathELBO",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreMatching",
    "SimpleDiffusion",
]
