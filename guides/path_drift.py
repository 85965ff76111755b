r"""The guide of a latent path: the model's law, with a learned control in its drift.

.. math:: p: \; dx = f(x, t)\, dt + g\, dW, \qquad
   q: \; dx = [f(x, t) + u_\phi(x, t)]\, dt + g\, dW .

The noise of both is the same, so that their divergence is finite, and it is zero while
:math:`u_\phi` is. The best control is the gradient of what is to come, :math:`u = g^2 \nabla_x \log
\mathbb{E}[\text{likelihood} \mid x_t = x]`; in a ground state :math:`u = \nabla \log \phi_0`.

References:
    X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic
    differential equations*, 2020, arXiv:2001.01328.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.distributions import Path
from pyrogen.distributions._base import LearnedNormal
from pyrogen.guides._steering import still

__all__ = ["PathDrift"]


class PathDrift(PyroModule):
    """Guide of a model with one latent path.

    The model says what its path is: ``prior(*args, **kwargs)``, of the arguments of the model,
    returns the :class:`~pyrogen.distributions.Path`; ``path_site`` is the name of its site, and
    ``path_plate`` that of the plate at ``dim=-1`` in which it stands, or ``None``.

    Args:
        model: the model that is trained. It stays the same object, and its parameters are none of
            the guide's.
        drift: the control ``u(x, t)``, ``[*, D] -> [*, D]``, a module or a function; by default
            :class:`~pyrogen.nn.TimeMLP` with a last layer of zeros, so that the divergence is zero
            at first.
        initial: the law of the beginning, where the model's is not kept (``None``): a module that
            returns a distribution of event ``[D]`` when called, or ``"normal"`` for one that starts
            at the mean and deviations of the model's.

    Raises:
        TypeError: if the model has no path, or the drift is no function.
        ValueError: for an unknown ``initial``, or one where the beginning is a point.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.nn import PyroModule
        >>> from pyrogen.distributions import Path
        >>> from pyrogen.processes import Brownian
        >>> class Measured(PyroModule):  # of a Brownian path only the end is measured
        ...     path_site, path_plate = "x", None
        ...     def prior(self, y=None):
        ...         return Path(Brownian(), torch.zeros(2), torch.linspace(0.0, 1.0, 11))
        ...     def forward(self, y=None):
        ...         x = pyro.sample("x", self.prior())
        ...         return pyro.sample("y", dist.Normal(x[..., -1, :], 0.1).to_event(1), obs=y)
        >>> model = Measured()
        >>> Trace_ELBO().loss(model, PathDrift(model), torch.ones(2)) > 0
        True
    """

    def __init__(
        self,
        model: Any,
        drift: Callable[..., Tensor] | None = None,
        initial: nn.Module | str | None = None,
    ) -> None:
        super().__init__()
        if not all(hasattr(model, name) for name in ("prior", "path_site", "path_plate")):
            raise TypeError(
                "model: expected one with a latent path (prior, path_site and path_plate), such as "
                f"pyrogen.models.SDEBNN, got {type(model).__name__}"
            )
        self._model = (model,)  # in a tuple, since the parameters of a module would be the guide's
        self.drift = still(model.prior().event_shape[-1]) if drift is None else drift
        if not callable(self.drift):
            raise TypeError(f"drift: expected a function of (x, t), got {type(drift).__name__}")
        self.initial = _beginning(model, initial) if isinstance(initial, str) else initial

    def law(self, *args: Any, **kwargs: Any) -> Path:
        """The law of the path, for the arguments of the model."""
        (model,) = self._model
        steered: Path = model.prior(*args, **kwargs).steered(self.drift)
        if self.initial is None:
            return steered
        fn = self.initial()
        return steered.started_at(fn.expand(steered.batch_shape))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Samples the path.

        Args:
            args: those of the model.
            kwargs: likewise.

        Returns:
            ``[*batch, T + 1, D]``.
        """
        (model,) = self._model
        law = self.law(*args, **kwargs)
        plate: Any = contextlib.nullcontext()
        if model.path_plate is not None:
            plate = pyro.plate(model.path_plate, law.batch_shape[-1], dim=-1)
        with plate:
            path: Tensor = pyro.sample(model.path_site, law)
        return path


def _beginning(model: Any, kind: str) -> nn.Module:
    if kind != "normal":
        raise ValueError(f"initial: expected 'normal', a module or None, got {kind!r}")
    fn = model.prior().initial
    if isinstance(fn, Tensor):
        raise ValueError("initial: expected None, as the paths of the model start at a point")
    with torch.no_grad():
        mean, std = fn.mean, fn.stddev
        first = (0,) * (mean.dim() - 1)  # every element of the plate begins in the same law
        return LearnedNormal(mean[first].clone(), std[first].clone())
