r"""Guidance: what an observation adds to the score of a noisy state.

By Bayes' rule the score of the posterior at time :math:`t` is

.. math:: \nabla \log p_t(x \mid y) = \nabla \log p_t(x) + \nabla \log p(y \mid x_t = x), \qquad
   p(y \mid x_t) = \int p(y \mid x_0)\, p(x_0 \mid x_t)\, dx_0 .

The first term is the prior's own. The second needs the law of the data given a noisy state, of
which the network knows the mean, :math:`\hat x(x_t)`, and through its derivative the covariance,

.. math:: \mathrm{Cov}[x_0 \mid x_t] = \frac{\sigma^2}{\alpha}\, \nabla \hat x(x_t) .

Methods differ in what they make of these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._inverse import InverseProblem
from pyrogen.kernels._score_site import Denoising
from pyrogen.kernels._target import Layout, Target
from pyrogen.processes import Prediction
from pyrogen.processes.process import beside
from pyrogen.processes.solver import Predict

__all__ = [
    "Guidance",
    "Guided",
    "GuidedDenoising",
    "OfPosterior",
    "Twist",
    "Twisted",
    "solve",
    "spread",
    "target_of_posterior",
]


class Guided(NamedTuple):
    """What is known at noisy states ``x [chains, *shape]``.

    Attributes:
        data: the mean of the data under the prior alone, of the shape of ``x``.
        score: the estimate of the gradient of ``log p(y | x_t)`` in ``x``, likewise.
    """

    data: Tensor
    score: Tensor


class Twisted(NamedTuple):
    """The same, and what the score is the gradient of, ``[chains]``."""

    data: Tensor
    score: Tensor
    log_prob: Tensor


class Guidance(ABC):
    """An estimate of the gradient of ``log p(y | x_t)``, given a prior and a likelihood."""

    needs_gaussian: bool = False
    """Whether the observations have to be normal, with noise that does not depend on the data."""

    @abstractmethod
    def __call__(
        self, problem: InverseProblem, x: Tensor, t: Tensor, until: Tensor | None
    ) -> Guided:
        """The guidance at noisy states.

        Args:
            problem: prior and likelihood.
            x: ``[chains, *shape]``.
            t: their time, ``[]``.
            until: the time of the states that are made next; ``None`` where they are the last.
        """


class Twist(Guidance):
    r"""A guidance that is the gradient of a function :math:`\log \tilde p(y \mid x_t)`."""

    @abstractmethod
    def at(
        self, problem: InverseProblem, data: Tensor, t: Tensor, until: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The function and its gradient in the mean of the data.

        Args:
            problem: prior and likelihood.
            data: the mean of the data given the noisy states, ``[chains, *shape]``.
            t: time of the noisy states.
            until: as for a call.

        Returns:
            ``[chains]`` and ``[chains, *shape]``.
        """

    def evaluate(
        self, problem: InverseProblem, x: Tensor, t: Tensor, until: Tensor | None
    ) -> Twisted:
        """The guidance with the function itself; arguments as for a call."""
        data, pull_back = vjp(lambda state: problem.prior.denoise(state, t), x)  # type: ignore[misc]
        log_prob, slope = self.at(problem, data, t, until)
        return Twisted(data, pull_back(slope)[0], log_prob)

    def __call__(
        self, problem: InverseProblem, x: Tensor, t: Tensor, until: Tensor | None
    ) -> Guided:
        """The guidance at noisy states."""
        return Guided(*self.evaluate(problem, x, t, until)[:2])


class GuidedDenoising(Denoising):
    r"""What a sampler asks of a posterior: data and noise in a state, given the observations.

    The score :math:`\nabla \log p_t(x) + \nabla \log p(y \mid x)` moves the mean of the data by
    :math:`\tfrac{\sigma^2}{\alpha} \nabla \log p(y \mid x)`, and that of the noise by
    :math:`-\sigma \nabla \log p(y \mid x)`.

    Args:
        problem: prior and likelihood.
        guidance: the estimate of the latter's score.
    """

    def __init__(self, problem: InverseProblem, guidance: Guidance) -> None:
        super().__init__(problem.prior, problem.shape)
        self.problem, self._guidance = problem, guidance

    def predict(self, x: Tensor, t: Tensor, until: Tensor | None = None) -> Prediction:
        """Data and noise in states ``x [chains, *shape]`` at time ``t``, a scalar."""
        data, score = self._guidance(self.problem, x, t, until)
        alpha, std = (beside(f(t), x) for f in (self.process.mean_scale, self.process.std))
        noise = (x - alpha * data) / std - std * score
        return Prediction(data + spread(self.fn, x, t) * score, noise)

    def predictor(self, until: Tensor) -> Predict:
        """As :meth:`predict`, on the way to the time ``until``."""
        return partial(self.predict, until=until)


class OfPosterior:
    """Makes a :class:`GuidedDenoising` of a model and its arguments."""

    def __init__(self, model: Callable[..., Any], guidance: Guidance) -> None:
        self._model, self._guidance = model, guidance

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> GuidedDenoising:
        args, kwargs = arguments
        problem = InverseProblem(self._model, args, kwargs, vectorized)
        return GuidedDenoising(problem, self._guidance)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OfPosterior) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def target_of_posterior(
    model: Callable[..., Any], guidance: Guidance, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Target:
    """The score-based site of a model as a target, with regard to what is observed.

    Raises:
        ValueError: if model and guidance do not go together.
    """
    with torch.no_grad():
        problem = InverseProblem(model, args, kwargs)
        problem.check(guidance.needs_gaussian)
    like = problem.prior.like
    make: Any = OfPosterior(model, guidance)
    return Target(
        ((problem.name, tuple(problem.shape)),),
        make,
        (tuple(args), dict(kwargs)),
        dtype=like.dtype,
        device=like.device,
    )


def spread(prior: ScoreBased, x: Tensor, t: Tensor) -> Tensor:
    """``sigma^2 / alpha`` beside ``x``."""
    process = prior.process
    return beside(process.variance(t) / process.mean_scale(t), x)


def solve(matrix: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """``(1 + M)^-1 b`` for each row by conjugate gradients, ``M`` symmetric and not negative.

    Where a network makes it negative after all, it is taken for zero along the direction searched,
    which keeps each step bounded.

    Args:
        matrix: ``u -> M u``, of the shape of ``b``.
        b: ``[chains, n]``.
        steps: how many; ``n`` are enough but for rounding.
    """
    solution, residual, direction = torch.zeros_like(b), b, b
    size = b.square().sum(-1, keepdim=True)
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(steps):
        image = matrix(direction)
        along = direction.square().sum(-1, keepdim=True)
        curvature = along + (direction * image).sum(-1, keepdim=True).clamp(min=0)
        step = size / curvature.clamp(min=tiny)
        solution = solution + step * direction
        residual = residual - step * (direction + image)
        before, size = size, residual.square().sum(-1, keepdim=True)
        direction = residual + size / before.clamp(min=tiny) * direction
    return solution
