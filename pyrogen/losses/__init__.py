"""What ``SVI`` minimises: each loss is a ``pyro.infer.ELBO``, in nats and summed over the data."""

from pyrogen.losses.compiled import Compiled

__all__ = ["Compiled"]
