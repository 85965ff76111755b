"""What ``SVI`` minimises: each loss is a ``pyro.infer.ELBO``, in nats and summed over the data."""

from pyrogen.losses.compiled import Compiled
from pyrogen.losses.contrastive_divergence import ContrastiveDivergence

__all__ = ["Compiled", "ContrastiveDivergence"]
