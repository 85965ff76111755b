r"""The variational autoencoder: a latent vector, a decoder network and a likelihood.

.. math:: z \sim N(0, I_d), \qquad x \mid z \sim p(x \mid \theta = \mathrm{decoder}(z)) .

The prior may be any other law of vectors: a flow, an energy, or a diffusion, with which it is a
latent diffusion model.

``beta`` multiplies the log-density of ``z`` in the model and, given to the guide as well, in the
guide, so that a loss of Pyro becomes distortion + beta × rate:

.. math:: -\mathbb{E}_{q(z \mid x)} \log p(x \mid z)
   + \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)) .

With ``beta = 1`` that is the negative ELBO; with any other value it bounds no likelihood of ``x``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Size, Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions._base import as_base
from pyrogen.models.likelihoods import Likelihood, as_likelihood

__all__ = ["VAE"]


class VAE(PyroModule):
    """Variational autoencoder, as a Pyro model with sites ``"z"`` and ``"x"`` in plate ``"data"``.

    The decoder is run once, on a copy, to learn the shape of an event.

    Args:
        decoder: network ``[*, latent_dim] -> [*, *event_shape]`` (``[*, *event_shape, K]`` for
            categorical data) that returns the parameters of the likelihood. It takes any leading
            dimensions.
        latent_dim: number of latent dimensions.
        likelihood: ``"bernoulli"`` (logits), ``"normal"`` (means; one learned scale),
            ``"categorical"`` (logits), ``"continuous_bernoulli"`` (logits), or an instance of
            :class:`~pyrogen.models.Likelihood`.
        beta: weight of the KL term, > 0. Give the guide the same. It becomes a buffer, so that it
            can be changed between steps: ``model.beta.fill_(0.5); guide.beta.fill_(0.5)``.
        prior: the law of ``z``: a distribution of event shape ``[latent_dim]``, such as
            :class:`~pyrogen.distributions.ScoreBased`; a program whose ``distribution()`` returns
            one, such as :class:`~pyrogen.models.ScoreModel` or :class:`~pyrogen.models.Flow`; or a
            module that returns one. By default standard normal. What it has of parameters is
            trained with the rest, by a loss for its kind.

    Attributes:
        event_shape: shape of one datum.
        latent_dim: number of latent dimensions.
        beta: tensor of shape ``[]``.

    Raises:
        TypeError: if ``decoder`` is no ``torch.nn.Module``.
        ValueError: if ``latent_dim`` or ``beta`` is not positive, the likelihood is unknown, the
            decoder does not map ``[2, latent_dim]`` to ``[2, *event_shape]``, or the prior is over
            events of another shape.

    References:
        D. P. Kingma, M. Welling, *Auto-encoding variational Bayes*, 2013, arXiv:1312.6114.
        I. Higgins et al., *beta-VAE: learning basic visual concepts with a constrained variational
        framework*, 2017.
        A. Vahdat, K. Kreis, J. Kautz, *Score-based generative modeling in latent space*, 2021,
        arXiv:2106.05931.

    Example:
        >>> import torch
        >>> from pyrogen.nn import MLP
        >>> model = VAE(MLP(2, (8, 8), hidden=(32,)), latent_dim=2)
        >>> model(None, num_samples=64).shape
        torch.Size([64, 8, 8])
        >>> model.decode(torch.zeros(5, 2)).event_shape
        torch.Size([8, 8])
    """

    beta: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        beta: float = 1.0,
        prior: Any = None,
    ) -> None:
        super().__init__()
        _check_arguments(decoder, latent_dim, beta)
        self.latent_dim = latent_dim
        self.decoder = decoder
        self.likelihood = as_likelihood(likelihood)
        parameters = _probe(decoder, latent_dim)
        self.event_shape = _event_shape(self.likelihood, parameters)
        self._parameter_shape = tuple(parameters.shape[1:])
        self.likelihood.to(parameters)
        self.register_buffer("beta", parameters.new_tensor(beta))
        self._prior = as_base(latent_dim if prior is None else prior)
        if prior is None:
            self._prior.to(parameters)
        self._check_prior()

    def prior(self) -> TorchDistribution:
        """Returns the distribution of ``z``, event shape ``[latent_dim]``."""
        prior: TorchDistribution = self._prior()
        return prior

    def _check_prior(self) -> None:
        prior = self.prior()
        if prior.event_shape != (self.latent_dim,) or prior.batch_shape:
            raise ValueError(
                f"prior: expected event shape [{self.latent_dim}] and batch shape [], got "
                f"{list(prior.event_shape)} and {list(prior.batch_shape)}"
            )

    def decode(self, z: Tensor) -> TorchDistribution:
        """Returns the likelihood at ``z``.

        Args:
            z: ``[*, latent_dim]``.

        Returns:
            A distribution of batch shape ``[*]`` and event shape ``event_shape``.
        """
        likelihood: TorchDistribution = self.likelihood(self.decoder(z), len(self.event_shape))
        return likelihood

    def mean(self, z: Tensor) -> Tensor:
        """Returns the expected event at ``z``, ``[*, *event_shape]``, for pictures."""
        return self.likelihood.mean(self.decode(z))

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores data, or draws.

        Args:
            data: ``[n, *event_shape]``, or ``None`` to draw. Outer plates stand to the left of
                ``n``.
            num_samples: how many events to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, *event_shape]``.

        Raises:
            ValueError: if data have another dtype, event shape or values than the likelihood
                scores, are empty or not finite; or if data and ``num_samples`` are both given.
        """
        plate = pyro.plate("data", self._size(data, num_samples), dim=-1)
        with plate, poutine.scale(scale=self.beta):
            z = pyro.sample("z", self.prior())
        # Outside the plate, so that random weights of a Bayesian decoder serve all data.
        likelihood = self.decode(z)
        with plate:
            x: Tensor = pyro.sample("x", likelihood, obs=data)
        return x

    def _size(self, data: Tensor | None, num_samples: int | None) -> int:
        if data is None:
            return _positive_int(1 if num_samples is None else num_samples, "num_samples")
        if num_samples is not None:
            raise ValueError(
                f"num_samples: expected None with data, got {num_samples}; pass data=None to draw"
            )
        dtype = self.likelihood.data_dtype(self.beta.dtype)
        check_data(data, self.event_shape, dtype=dtype)
        self.likelihood.check_support(data, self._parameter_shape, name="x")
        return data.shape[-1 - len(self.event_shape)]


def _positive_int(value: int, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value


def _check_arguments(decoder: nn.Module, latent_dim: int, beta: float) -> None:
    if not isinstance(decoder, nn.Module):
        raise TypeError(f"decoder: expected a torch.nn.Module, got {type(decoder).__name__}")
    _positive_int(latent_dim, "latent_dim")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta: expected a positive finite number, got {beta}")


def _probe(decoder: nn.Module, latent_dim: int) -> Tensor:
    """Runs a copy of the decoder on two latents, leaving module and parameter store as they are."""
    reference = next(decoder.parameters(), torch.empty(0))
    z = reference.new_zeros(2, latent_dim)
    with torch.no_grad(), poutine.block(), pyro.get_param_store().scope():
        try:
            parameters = copy.deepcopy(decoder).eval()(z)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"decoder: expected a network for input [*, {latent_dim}] (latent_dim = "
                f"{latent_dim}), got an error on input [2, {latent_dim}]: {error}"
            ) from error
    got = list(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
    if not isinstance(parameters, Tensor) or parameters.shape[:1] != Size([2]):
        raise ValueError(
            f"decoder: expected output [2, *event_shape] for input [2, {latent_dim}], got {got}"
        )
    return parameters


def _event_shape(likelihood: Likelihood, parameters: Tensor) -> tuple[int, ...]:
    """Returns the shape of one event, checked against what the likelihood makes of it."""
    split = parameters.dim() - likelihood.parameter_dim
    if split < 1:
        raise ValueError(
            f"decoder: expected output [2, *event_shape, K] for {type(likelihood).__name__}, got "
            f"{list(parameters.shape)}"
        )
    expected = parameters.shape[1:split]
    got: object
    with torch.no_grad(), poutine.block(), pyro.get_param_store().scope():
        try:
            probe = copy.deepcopy(likelihood).to(parameters)(parameters, len(expected))
            got = list(probe.shape()[1:])
        except (RuntimeError, ValueError) as error:
            got = f"an error: {error}"
    if got != list(expected):
        raise ValueError(
            f"likelihood: expected one that makes events of shape {list(expected)} from the "
            f"decoder's output {list(parameters.shape)}, got {got}"
        )
    return tuple(expected)
