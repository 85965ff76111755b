r"""Score matching: the gradient of the log-density is fitted, and the constant drops out.

The score :math:`s(x) = \nabla_x \log p(x)` of an energy-based site does not know :math:`Z`.
Fisher's divergence between its score and that of the data is, by partial integration and but for a
number that depends on the data alone,

.. math:: J = \mathbb{E}_{x}\!\left[\tfrac12 \lVert s(x) \rVert^2 + \nabla \cdot s(x)\right] .

That is what every method here estimates, over the data or, for ``"denoising"``, over the data with
noise added. They differ in the price of the divergence :math:`\nabla \cdot s`: with :math:`v` a
vector of random signs, :math:`\epsilon \sim N(0, I)` and :math:`L` the unnormalised log-density,

===================== =========================================================== ================
method                 estimate                                                   gradients in x
===================== =========================================================== ================
``exact``              :math:`\tfrac12 \lVert s \rVert^2 + \nabla \cdot s`        1 + dimensions
``sliced``             :math:`\tfrac12 (v^\top s)^2 + v^\top (\nabla s)\, v`      2
``sliced-vr``          :math:`\tfrac12 \lVert s \rVert^2 + v^\top (\nabla s)\, v` 2
``denoising``          :math:`\tfrac12 \lVert s(\tilde x) \rVert^2 + s(\tilde x)  1 of 2 points
                       \cdot \epsilon / \sigma`, at
                       :math:`\tilde x = x \pm \sigma \epsilon`
``finite-difference``  ``sliced`` by differences of :math:`L` at                  none of 3 points
                       :math:`x, x \pm \sigma v`
===================== =========================================================== ================

The first three are unbiased. ``denoising`` is unbiased for data convolved with
:math:`N(0, \sigma^2 I)`, by Stein's identity; the usual square
:math:`\tfrac12 \lVert s(\tilde x) + \epsilon / \sigma \rVert^2` is the same and
:math:`\lVert \epsilon \rVert^2 / 2 \sigma^2`. Its noise comes in pairs of both signs, so that the
variance stays bounded as :math:`\sigma \to 0`. Differences are off by :math:`O(\sigma^2)`, and
their rounding grows as :math:`1 / \sigma^2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import constraints
from torch.func import grad, vjp, vmap

from pyrogen.losses._scoring import ScoringELBO, expanded

__all__ = ["ScoreMatching"]

_METHODS = ("exact", "sliced", "sliced-vr", "denoising", "finite-difference")
_WITH_SIGMA = ("denoising", "finite-difference")


class ScoreMatching(ScoringELBO):
    r"""Trains energies by the score, without a sample of the model.

    The energy-based sites of the model are scored by :math:`-\hat J`, estimated by one of the
    methods above, in place of their log-density. It is no number of nats, and no bound.

    The score sees the shape of a density where there are data, and not how much mass lies in parts
    that are far apart: weights of separate modes are learned badly (with noise that bridges them,
    better).

    Args:
        method: ``"exact"``, for few dimensions; ``"sliced"``; ``"sliced-vr"``, most often with less
            variance; ``"denoising"``; ``"finite-difference"``, which needs no derivative of the
            energy.
        sigma: the standard deviation of the noise, or the step of the differences; for these two
            methods only.
        num_projections: how many directions, or pairs of noise, are averaged for each datum. Not
            for ``"exact"``.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: for an unknown method, a ``sigma`` or ``num_projections`` that the method does
            not have or lacks; when run, if a site does not live on the whole space.

    References:
        A. Hyvärinen, *Estimation of non-normalized statistical models by score matching*, 2005,
        Journal of Machine Learning Research 6.
        P. Vincent, *A connection between score matching and denoising autoencoders*, 2011,
        doi:10.1162/NECO_a_00142.
        Y. Song, S. Garg, J. Shi, S. Ermon, *Sliced score matching: a scalable approach to density
        and score estimation*, 2019, arXiv:1905.07088.
        T. Pang et al., *Efficient learning of generative models via finite-difference score
        matching*, 2020, arXiv:2007.03317.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyrogen.distributions import EnergyBased
        >>> from pyrogen.guides import Empty
        >>> flat = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
        >>> def model(x):
        ...     precision = pyro.param("precision", torch.ones(2))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         energy = lambda x: 0.5 * (precision * x.square()).sum(-1)
        ...         pyro.sample("x", EnergyBased(energy, flat), obs=x)
        >>> x = torch.tensor([[2.0, 1.0], [-2.0, -1.0]])
        >>> svi = SVI(model, Empty(), pyro.optim.Adam({"lr": 0.05}), ScoreMatching("exact"))
        >>> losses = [svi.step(x) for _ in range(200)]
        >>> pyro.param("precision").detach()  # one over the variances
        tensor([0.2500, 1.0000])
    """

    def __init__(
        self,
        method: str = "sliced-vr",
        sigma: float | None = None,
        num_projections: int | None = None,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        if method not in _METHODS:
            raise ValueError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
        _check_sigma(method, sigma)
        _check_projections(method, num_projections)
        self.method = method
        self.sigma: Any = sigma
        self.num_projections = 1 if num_projections is None else num_projections
        self._estimate: Callable[[Any, Tensor], Tensor] = {
            "exact": _exact,
            "sliced": self._sliced,
            "sliced-vr": self._sliced_vr,
            "denoising": self._denoising,
            "finite-difference": self._finite_difference,
        }[method]

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """Minus the estimate, ``[*batch]``."""
        _check_support(name, fn)
        return -self._estimate(fn, expanded(fn, value))

    def _sliced(self, fn: Any, x: Tensor) -> Tensor:
        directions = self._signs(x)
        score, second = _slices(fn, x, directions)
        first = _inner(fn, directions, score)
        return (0.5 * first.square() + second).mean(0)

    def _sliced_vr(self, fn: Any, x: Tensor) -> Tensor:
        score, second = _slices(fn, x, self._signs(x))
        return 0.5 * _inner(fn, score, score) + second.mean(0)

    def _denoising(self, fn: Any, x: Tensor) -> Tensor:
        half = torch.randn_like(x.expand(self.num_projections, *x.shape))
        noise = torch.cat([half, -half])
        score = _score(fn)(x + self.sigma * noise)
        terms = 0.5 * _inner(fn, score, score) + _inner(fn, score, noise) / self.sigma
        estimate: Tensor = terms.mean(0)
        return estimate

    def _finite_difference(self, fn: Any, x: Tensor) -> Tensor:
        step, count = self.sigma * self._signs(x), self.num_projections
        density = fn.unnormalized_log_prob(torch.cat([x + step, x - step, x.unsqueeze(0)]))
        right, left, middle = density.split([count, count, 1])
        # The mean of both sides less the middle, in an order that loses no digits needlessly.
        second = ((right - middle) - (middle - left)) / self.sigma**2
        first = (right - left) / (2 * self.sigma)
        estimate: Tensor = (0.5 * first.square() + second).mean(0)
        return estimate

    def _signs(self, x: Tensor) -> Tensor:
        """Directions, ``[num_projections, *x.shape]``."""
        uniform = torch.rand_like(x.expand(self.num_projections, *x.shape))
        return torch.where(uniform < 0.5, 1.0, -1.0).to(x)


def _exact(fn: Any, x: Tensor) -> Tensor:
    size = math.prod(fn.event_shape)
    axes = torch.eye(size, dtype=x.dtype, device=x.device)
    batch = [1] * (x.dim() - len(fn.event_shape))
    directions = axes.reshape(size, *batch, *fn.event_shape).expand(size, *x.shape)
    score, second = _slices(fn, x, directions)
    return 0.5 * _inner(fn, score, score) + second.sum(0)


def _score(fn: Any) -> Callable[[Tensor], Tensor]:
    """The gradient of the log-density of every point; a leaf of no graph but its own."""
    return grad(lambda x: fn.unnormalized_log_prob(x).sum())


def _slices(fn: Any, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The score, ``[*batch, *event]``, and its slope along directions, ``[n, *batch]``."""
    score, pull_back = vjp(_score(fn), x)  # type: ignore[misc]
    (rows,) = vmap(pull_back)(directions)  # the Jacobian of a gradient is symmetric
    return score, _inner(fn, rows, directions)


def _inner(fn: Any, one: Tensor, other: Tensor) -> Tensor:
    """The inner product over the event."""
    product = one * other
    dims = len(fn.event_shape)
    return product.flatten(-dims).sum(-1) if dims else product


def _check_sigma(method: str, sigma: float | None) -> None:
    if method in _WITH_SIGMA:
        if sigma is None or not (0 < sigma < math.inf):
            raise ValueError(
                f"sigma: expected a positive number for method {method!r}, got {sigma}"
            )
    elif sigma is not None:
        raise ValueError(f"sigma: method {method!r} has none, got {sigma}; leave it out")


def _check_projections(method: str, num_projections: int | None) -> None:
    if num_projections is None:
        return
    if method == "exact":
        raise ValueError(
            f"num_projections: method 'exact' has none, got {num_projections}; leave it out"
        )
    if not isinstance(num_projections, int) or num_projections < 1:
        raise ValueError(f"num_projections: expected a positive integer, got {num_projections!r}")


def _check_support(name: str, fn: Any) -> None:
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        raise ValueError(
            f"site {name!r}: expected a continuous site, got support {fn.support}; use "
            "PseudoLikelihood, RatioMatching or ContrastiveDivergence"
        )
    if not isinstance(support, type(constraints.real)):
        raise ValueError(
            f"site {name!r}: expected a density on the whole space, got support {fn.support}, at "
            "whose edge partial integration fails; transform the data, for instance by "
            "torch.distributions.biject_to(support).inv, or use ContrastiveDivergence"
        )
