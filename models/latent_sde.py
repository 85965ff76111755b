r"""Latent stochastic differential equations: a path that nobody sees, observed now and then.

.. math:: z_0 \sim p(z_0), \qquad dz = f_\theta(z, t)\, dt + g(z, t)\, dW, \qquad
   x_{ij} \mid z \sim p\big(x \mid \mathrm{decoder}(z_{t_{ij}})\big), \quad j = 1, \ldots, K_i .

Each series :math:`i` is observed at its own times, and of what could have been seen at a time some
may be missing. The path is known on a grid. An observation at a time of the grid sees the state
there; between two times of the grid it sees the straight line between their states, which is off
by an order of the step's noise, so that a grid that holds the times of observation is the better
one where they are few.

A constant :math:`g` can be left at any number: another one is another scale of :math:`z`, which
drift and decoder make up for.

The guide is :class:`pyrogen.guides.PathEncoder`, whose drift is told by an encoder what lies ahead,
or :class:`pyrogen.guides.PathDrift`, with one drift for all series.
"""

from __future__ import annotations

import copy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import Path
from pyrogen.distributions._base import LearnedNormal, as_base
from pyrogen.models.flow import num_events, refuse_num_samples
from pyrogen.models.likelihoods import Likelihood, as_likelihood
from pyrogen.nn.shapes import positive_ints
from pyrogen.processes import Process

__all__ = ["LatentSDE"]


class LatentSDE(PyroModule):
    """Model with sites ``"z"``, a path, and ``"x"``, its observations, in plate ``"data"``.

    Args:
        process: the prior of the path; its drift and diffusion may be networks, which are learned,
            such as ``Process(TimeMLP(4), diffusion=0.5)``.
        decoder: network ``[*, latent_dim] -> [*, F]`` (``[*, F, K]`` for categorical data), from a
            state to the parameters of the likelihood.
        latent_dim: the number D of dimensions of a state.
        times: the grid, ``[T + 1]``, increasing.
        likelihood: of each of the F values of an observation; as for :class:`~pyrogen.models.VAE`.
        initial: where paths start: a distribution of event ``[D]`` or a module that returns one; a
            point ``[D]``; or ``None``, for a normal distribution that is learned.
        solver: as for :class:`~pyrogen.distributions.Path`.
        gradient: likewise.

    Attributes:
        features: the number F of values of an observation.
        latent_dim: as given.
        times: the grid, a buffer.
        path_site: ``"z"``.
        path_plate: ``"data"``.

    Raises:
        TypeError: if ``process`` is no process, or ``decoder`` no module.
        ValueError: if the decoder does not map ``[2, latent_dim]`` to ``[2, F]``, or the beginning
            is over another number of dimensions.

    References:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic
        differential equations*, 2020, arXiv:2001.01328.

    Example:
        >>> import torch
        >>> from pyrogen.nn import TimeMLP
        >>> from pyrogen.processes import Process
        >>> process = Process(TimeMLP(2), diffusion=0.5)
        >>> model = LatentSDE(process, torch.nn.Linear(2, 3), 2, torch.linspace(0, 1, 21))
        >>> model(None, times=torch.tensor([0.1, 0.25, 0.9]), num_samples=4).shape
        torch.Size([4, 3, 3])
    """

    path_site, path_plate = "z", "data"
    times: Tensor

    def __init__(
        self,
        process: Process,
        decoder: nn.Module,
        latent_dim: int,
        times: Tensor,
        likelihood: str | Likelihood = "normal",
        initial: Any = None,
        solver: str = "euler",
        gradient: str = "direct",
    ) -> None:
        super().__init__()
        if not isinstance(process, Process):
            raise TypeError(
                f"process: expected a Process, got {type(process).__name__}; a drift network f "
                "makes one by Process(f, diffusion=0.5)"
            )
        if not isinstance(decoder, nn.Module):
            raise TypeError(f"decoder: expected a torch.nn.Module, got {type(decoder).__name__}")
        (self.latent_dim,) = positive_ints((latent_dim,), "latent_dim")
        self.process = process
        self.networks = nn.ModuleList(process.networks())
        self.decoder = decoder
        self.likelihood = as_likelihood(likelihood)
        self.solver, self.gradient = solver, gradient
        times = torch.as_tensor(times)
        self.register_buffer("times", times.to(next(decoder.parameters(), times).dtype))
        self._beginning = _beginning(initial, latent_dim)
        self._parameter_shape = _probe(decoder, latent_dim, self.likelihood.parameter_dim)
        self.features = self._parameter_shape[0]
        # On a copy: a module of Pyro that has run cannot become part of another one.
        with poutine.block(), pyro.get_param_store().scope():
            first = copy.deepcopy(self._beginning)()
        law = Path(process, first, self.times, solver=solver, gradient=gradient)
        if law.event_shape[-1] != latent_dim:
            raise ValueError(
                f"initial: expected {latent_dim} dimensions, got {law.event_shape[-1]}"
            )

    def prior(self, data: Tensor | None = None, *args: Any, **kwargs: Any) -> Path:
        """The law of the path of each series, ``[n]``, or of one, ``[]``.

        Args:
            data: ``[n, K, F]``; or ``None``.
            args: the rest of the arguments of the model, which do not matter here.
            kwargs: likewise.
        """
        law = Path(
            self.process, self._beginning(), self.times, solver=self.solver, gradient=self.gradient
        )
        return law if data is None else law.expand(data.shape[-3:-2])

    def states_at(self, z: Tensor, times: Tensor) -> Tensor:
        """States of paths at any times, ``[*, n, K, D]``; straight lines between those of the grid.

        Args:
            z: paths ``[*, n, T + 1, D]``.
            times: ``[K]`` or ``[n, K]``, within the grid.
        """
        grid = self.times
        times = times.to(grid)
        after = torch.searchsorted(grid, times.contiguous(), right=True)
        left = (after - 1).clamp(0, len(grid) - 2)
        weight = (times - grid[left]) / (grid[left + 1] - grid[left])
        return torch.lerp(_take(z, left), _take(z, left + 1), weight.unsqueeze(-1))

    def decode(self, states: Tensor) -> TorchDistribution:
        """The likelihood at states ``[*, D]``, of batch shape ``[*, F]``."""
        likelihood: TorchDistribution = self.likelihood(self.decoder(states), 0)
        return likelihood

    def forward(
        self,
        data: Tensor | None = None,
        times: Tensor | None = None,
        mask: Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensor:
        """Scores series, or draws them.

        Args:
            data: ``[n, K, F]``, or ``None`` to draw.
            times: of the observations, ``[K]``, or ``[n, K]`` for series with times of their own;
                not decreasing and within the grid. ``None`` means the grid, ``K = T + 1``.
            mask: booleans ``[n, K, F]``, true where a value was observed; what stands elsewhere in
                the data does not matter. ``None`` if nothing is missing.
            num_samples: how many series to draw; ``None`` means one, or one for each row of
                ``times``. Only without data.

        Returns:
            The value of site ``"x"``, ``[n, K, F]``.

        Raises:
            ValueError: if data, times and mask do not fit each other, the grid or the likelihood.
        """
        times = self.times if times is None else times
        size = self._size(data, times, mask, num_samples)
        plate = pyro.plate("data", size, dim=-1)
        with plate:
            z = pyro.sample("z", self.prior(data))
        likelihood = self.decode(self.states_at(z, times))
        if mask is not None:
            likelihood = likelihood.mask(mask)
            data = None if data is None else torch.where(mask, data, torch.zeros_like(data))
        with plate:
            x: Tensor = pyro.sample("x", likelihood.to_event(2), obs=data)
        return x

    def _size(
        self, data: Tensor | None, times: Tensor, mask: Tensor | None, num_samples: int | None
    ) -> int:
        """The number of series."""
        if data is None:
            rows = times.shape[0] if times.dim() > 1 and num_samples is None else num_samples
            size = num_events(rows)
            self._check_times(times, size)
            return size
        refuse_num_samples(num_samples)
        seen = data if mask is None else _hidden(data, mask)
        length = times.shape[-1]
        dtype = self.likelihood.data_dtype(self.times.dtype)
        check_data(seen, (length, self.features), dtype=dtype)
        self.likelihood.check_support(seen, self._parameter_shape, name="x")
        self._check_times(times, data.shape[-3])
        return data.shape[-3]

    def _check_times(self, times: Tensor, size: int) -> None:
        if times.dim() not in (1, 2) or (times.dim() == 2 and times.shape[0] != size):
            raise ValueError(f"times: expected shape [K] or [{size}, K], got {list(times.shape)}")
        if not is_validation_enabled():
            return
        first, last = float(self.times[0]), float(self.times[-1])
        slack = 1e-6 * (last - first)  # times of another precision
        if not bool(((times >= first - slack) & (times <= last + slack)).all()):
            raise ValueError(
                f"times: expected times within the grid, from {first:g} to {last:g}, got some from "
                f"{float(times.min()):g} to {float(times.max()):g}"
            )
        if bool((times.diff(dim=-1) < 0).any()):
            raise ValueError("times: expected times that do not decrease, got some that do")


class _Point(nn.Module):
    """A point that is no parameter."""

    point: Tensor

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.register_buffer("point", point)

    def forward(self) -> Tensor:
        return self.point


def _beginning(initial: Any, size: int) -> nn.Module:
    if initial is None:
        return LearnedNormal(torch.zeros(size), torch.ones(size))
    if isinstance(initial, Tensor):
        return _Point(initial)
    return as_base(initial)


def _probe(decoder: nn.Module, latent_dim: int, parameter_dim: int) -> tuple[int, ...]:
    """The shape of the parameters of an observation, by a call of the decoder."""
    reference = next(decoder.parameters(), torch.empty(0))
    with torch.no_grad(), poutine.block(), pyro.get_param_store().scope():
        found = decoder(reference.new_zeros(2, latent_dim))
    if found.dim() != 2 + parameter_dim or found.shape[0] != 2:
        raise ValueError(
            f"decoder: expected output [2, F{', K' if parameter_dim else ''}] for input "
            f"[2, {latent_dim}], got {list(found.shape)}"
        )
    return tuple(found.shape[1:])


def _hidden(data: Tensor, mask: Tensor) -> Tensor:
    """Data with zeros where nothing was observed."""
    if mask.dtype != torch.bool or mask.shape != data.shape:
        raise ValueError(
            f"mask: expected booleans of the shape of the data, {list(data.shape)}, got "
            f"{mask.dtype} of shape {list(mask.shape)}"
        )
    return torch.where(mask, data, torch.zeros_like(data))


def _take(z: Tensor, index: Tensor) -> Tensor:
    """States ``[*, n, K, D]`` of paths, by ``[K]`` or ``[n, K]``."""
    if index.dim() == 1:
        return z.index_select(-2, index)
    index = index.expand((*z.shape[:-2], index.shape[-1])).unsqueeze(-1)
    return torch.take_along_dim(z, index, dim=-2)
