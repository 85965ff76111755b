"""What a sample site can be, beyond Pyro's own distributions."""

from __future__ import annotations

from pyrogen.distributions.continuous_bernoulli import ContinuousBernoulli

__all__ = ["ContinuousBernoulli"]
