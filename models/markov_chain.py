r"""Markov-chain autoencoders: a latent chain of T steps, and a datum that its last state makes.

.. math:: p(x, z_{0:T}) = p(z_T) \prod_{k=T}^{1} p(z_{k-1} \mid z_k)\; p(x \mid z_0), \qquad
   z_{k-1} \mid z_k \sim N\big(\mu_k(z_k), \operatorname{diag} \sigma_k^2(z_k)\big) .

The guide, :class:`pyrogen.guides.ChainPosterior`, is a chain too, in either direction. Which of the
two chains is learned, and which one is fixed, makes different systems of one pair of programs:

=================  ==================  ==================================================
the model's chain  the guide's chain   what it is
=================  ==================  ==================================================
learned            fixed, against it   a diffusion: the guide only adds noise. If
                                       :math:`z_0` is the datum itself and the noise
                                       linear, :class:`~pyrogen.models.DenoisingDiffusion`
                                       does the same with a step drawn at random
fixed              learned, along it   inference in a known process, such as the Euler
                                       steps of a known stochastic equation
learned            learned             a deep latent-variable model
=================  ==================  ==================================================

In continuous time the chain is a path: of normal steps :math:`z + f\, dt,\ g \sqrt{dt}` in the
model and :math:`z + (f + g u)\, dt,\ g \sqrt{dt}` in the guide, the divergences of all steps add
up to :math:`\sum_k \tfrac12 |u_k|^2 dt`, which is Girsanov's formula for
:class:`pyrogen.distributions.Path` on the same grid.
"""

from __future__ import annotations

from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions._base import as_base
from pyrogen.distributions._steps import Transition, normal_step
from pyrogen.models.flow import num_events, refuse_num_samples
from pyrogen.models.likelihoods import Likelihood, as_likelihood
from pyrogen.nn.shapes import positive_ints

__all__ = ["MarkovChain"]


class MarkovChain(PyroModule):
    """Model with sites ``"z_T"``, ..., ``"z_0"`` and ``"x"`` in plate ``"data"``.

    Args:
        transition: ``(z, k) -> (mean, std)`` of :math:`z_{k-1}` given :math:`z_k`, each ``[n, D]``;
            such as :class:`pyrogen.nn.GaussianStep`, which is learned, or a function.
        decoder: network ``[*, D] -> [*, *event_shape]``, the parameters of the likelihood.
        latent_dim: the number D of dimensions of a state.
        num_steps: T.
        likelihood: as for :class:`~pyrogen.models.VAE`.
        initial: the law of ``z_T``, a distribution or a module that returns one, of event shape
            ``[D]``; standard normal if ``None``.
        event_dim: number of dimensions of a datum.

    Attributes:
        latent_dim: as given.
        num_steps: as given.

    Raises:
        TypeError: if the transition cannot be called, or the decoder is no module.
        ValueError: if a size is not positive, or ``initial`` is over other events; on call, if
            data do not fit or the transition returns another shape.

    References:
        J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli, *Deep unsupervised learning
        using nonequilibrium thermodynamics*, 2015, arXiv:1503.03585. C. K. Sønderby, T. Raiko,
        L. Maaløe, S. K. Sønderby, O. Winther, *Ladder variational autoencoders*, 2016,
        arXiv:1602.02282.

    Example:
        >>> import torch
        >>> from pyrogen.nn import GaussianStep, TimeMLP
        >>> step = GaussianStep(TimeMLP(2), num_steps=5, learned=True)
        >>> model = MarkovChain(step, torch.nn.Linear(2, 3), 2, num_steps=5, likelihood="normal")
        >>> model(None, num_samples=4).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        transition: Transition,
        decoder: nn.Module,
        latent_dim: int,
        num_steps: int,
        likelihood: str | Likelihood = "normal",
        initial: Any = None,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        if not callable(transition):
            raise TypeError(
                f"transition: expected a module or a function, got {type(transition).__name__}"
            )
        if not isinstance(decoder, nn.Module):
            raise TypeError(f"decoder: expected a torch.nn.Module, got {type(decoder).__name__}")
        self.latent_dim, self.num_steps = positive_ints(
            (latent_dim, num_steps), "latent_dim, num_steps"
        )
        self.transition = transition
        self.decoder = decoder
        self.likelihood = as_likelihood(likelihood)
        self.event_dim = event_dim
        self._initial = as_base(latent_dim if initial is None else initial)
        if self.initial().event_shape != (latent_dim,):
            raise ValueError(
                f"initial: expected event shape [{latent_dim}], got "
                f"{list(self.initial().event_shape)}"
            )

    def initial(self) -> TorchDistribution:
        """The law of ``z_T``."""
        initial: TorchDistribution = self._initial()
        return initial

    def decode(self, z: Tensor) -> TorchDistribution:
        """The likelihood at a state ``z_0 [*, D]``."""
        likelihood: TorchDistribution = self.likelihood(self.decoder(z), self.event_dim)
        return likelihood

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws.

        Args:
            data: ``[n, *event_shape]``, or ``None`` to draw.
            num_samples: how many to draw, one if ``None``; only without data.

        Returns:
            The value of site ``"x"``.
        """
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            check_data(data, tuple(data.shape[data.dim() - self.event_dim :]))
            size = data.shape[-1 - self.event_dim]
        plate = pyro.plate("data", size, dim=-1)
        with plate:
            z = pyro.sample(f"z_{self.num_steps}", self.initial())
        for k in range(self.num_steps, 0, -1):
            law = normal_step(self.transition, z, k)
            with plate:
                z = pyro.sample(f"z_{k - 1}", law)
        likelihood = self.decode(z)
        with plate:
            x: Tensor = pyro.sample("x", likelihood, obs=data)
        return x
