r"""A Pyro program as a pure tensor function.

Pyro interprets a program anew at every call: each ``sample`` statement walks a stack of handlers,
which costs more than the arithmetic of a small model and stops any compiler. But a program whose
*structure* is static does the same tensor operations each time. This module runs it once, with its
handlers, while ``make_fx`` writes down the operations that reach ATen, below handlers and below
autograd. What is left is a graph

.. math:: (\theta, x, \varepsilon) \mapsto \text{outputs},

of the tensors :math:`\theta` that the program reads from outside (parameters, buffers, closed-over
data), its arguments :math:`x` and torch's random numbers :math:`\varepsilon`. The graph is compiled
by TorchInductor and called in place of the program.

What holds:

* **Captured tensors are read at every call** from where they live (a module, the parameter store,
  a closure, the owner of a method), so optimiser steps, ``load_state_dict`` and a cleared store are
  seen.
* **Noise is fresh at every call** and comes from torch's global generator in the program's order: a
  graph under one seed draws what the program under that seed draws. Capturing consumes none.
* **One graph per signature**: shapes, dtypes and devices of tensors, the values of all other
  arguments, and what else is found in those places (``training`` flags, numbers, lists,
  submodules). Any change captures anew.
* **Gradients are part of the graph** (:meth:`Captured.value_and_grad`): autograd runs while the
  graph is recorded, so ``no_grad`` regions and custom ``autograd.Function`` (straight-through
  estimators, implicit reparametrisation) mean what they mean in the program.
* **Structure that depends on values cannot be captured**: it raises
  :class:`~pyrogen.errors.GraphError`, naming the sites that the value depends on.
* Validation of values is off inside a graph; ``prepare`` is the place for checks.

Reference: Reed, DeVito, He, Ussery, Ansel, *torch.fx: Practical Program Capture and Transformation
for Deep Learning in Python*, 2022 (arXiv:2112.08429).
"""

from __future__ import annotations

from pyrogen.graph._captured import Captured, Graph
from pyrogen.graph._sources import Attribute, Source

__all__ = ["Attribute", "Captured", "Graph", "Source"]
