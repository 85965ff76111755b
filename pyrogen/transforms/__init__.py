"""The bijections that Pyro lacks, with value and log-determinant from one pass."""

from __future__ import annotations

from pyrogen.transforms._bijection import Bijection, Inverse

__all__ = ["Bijection", "Inverse"]
