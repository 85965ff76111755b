r"""Ground states of quantum mechanics as inference of paths.

For :math:`H = -\tfrac12 \nabla^2 + V`, in units :math:`\hbar = m = 1`, the formula of Feynman and
Kac says that imaginary time is an average over Brownian paths,

.. math:: \left(e^{-HT} f\right)(x_0) = \mathbb{E}_{x \sim \text{Brownian}}\left[
   e^{-\int_0^T V(x_t)\, dt} f(x_T)\right] \;\sim\; e^{-E_0 T} .

So :math:`e^{-\int V}` is a likelihood of paths. The ELBO of a guide whose paths have the drift
:math:`v` is, by Girsanov's theorem, a cost per unit of time, and the evidence bounds it:

.. math:: C_T[v] = \frac1T\, \mathbb{E} \int_0^T \tfrac12 \lVert v(x_t) \rVert^2 + V(x_t)\, dt
   \;\ge\; -\frac1T \log \mathbb{E}\, e^{-\int V} \;\to\; E_0 .

It is attained by :math:`v = \nabla \log \varphi_0`, of the ground state :math:`\varphi_0 > 0`, for
which :math:`V - \tfrac12 \lVert v \rVert^2 - \tfrac12 \nabla \cdot v = E_0` everywhere: the paths,
weighed by the potential, are those of a diffusion whose law is :math:`\varphi_0^2`. Time is cut
into steps, and both integrals take their values at the beginning of each.

References:
    M. Kac, *On distributions of certain Wiener functionals*, 1949, doi:10.2307/1990512. A. Barr,
    W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
    arXiv:2006.09044.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen.distributions import Path
from pyrogen.errors import NonFiniteError
from pyrogen.processes import Brownian

__all__ = ["FeynmanKac"]


class FeynmanKac(PyroModule):
    r"""Brownian paths, site ``"x"`` in the plate ``"walkers"``, with the factor ``"potential"``,
    :math:`-\sum_k V(x_k)\, \Delta t`.

    Any loss of paths trains a guide for it: :class:`~pyrogen.losses.PathELBO`, whose value is
    ``num_walkers * duration`` times the cost per unit of time, or ``Trace_ELBO``.

    Args:
        potential: ``V``, ``[*, dim] -> [*]``: a module of :mod:`pyrogen.models`, or a function.
        dim: number of coordinates of all particles together.
        duration: :math:`T`, length of a path in time.
        num_steps: steps of a path; :math:`\Delta t` is ``duration / num_steps``.
        num_walkers: how many paths.
        initial: where paths start: a point ``[dim]``, points ``[num_walkers, dim]``, or a
            distribution of event ``[dim]``; by default a standard normal one.
        scale: :math:`\sigma` of the paths ``dx = sigma dW``, for
            :math:`H = -\tfrac12 \sigma^2 \nabla^2 + V`.

    Attributes:
        potential: as given.
        dim: as given.
        path_site: ``"x"``.
        path_plate: ``"walkers"``.

    Raises:
        ValueError: if numbers are not positive or shapes do not fit, or if the potential does not
            return one number for each point.
        TypeError: if the potential is no function.
        NonFiniteError: if the potential along a path is not finite, with the step of the path,
            where Pyro validates.

    References:
        A. Barr, W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
        arXiv:2006.09044.

    Example:
        >>> from pyrogen.guides import PathDrift
        >>> from pyrogen.losses import PathELBO
        >>> from pyrogen.models import Harmonic
        >>> ground = dist.Normal(torch.zeros(1), 0.5**0.5).to_event(1)
        >>> model = FeynmanKac(Harmonic(), dim=1, num_walkers=5000, initial=ground)
        >>> guide = PathDrift(model, drift=lambda x, t: -x)  # that of the ground state
        >>> cost = PathELBO().loss(model, guide) / 5000
        >>> abs(cost - 0.5) < 0.05
        True
    """

    path_site = "x"
    path_plate = "walkers"
    times: Tensor
    _points: Tensor | None

    def __init__(
        self,
        potential: Callable[[Tensor], Tensor],
        dim: int,
        duration: float = 1.0,
        num_steps: int = 100,
        num_walkers: int = 1000,
        initial: Tensor | Any = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not callable(potential):
            raise TypeError(
                f"potential: expected a function of points, got {type(potential).__name__}"
            )
        for name, count in (("dim", dim), ("num_steps", num_steps), ("num_walkers", num_walkers)):
            if not (isinstance(count, int) and count > 0):
                raise ValueError(f"{name}: expected a whole number above 0, got {count!r}")
        if not 0 < duration < float("inf"):
            raise ValueError(f"duration: expected a finite number above 0, got {duration!r}")
        self.potential = potential
        self.dim, self.num_walkers, self.num_steps = dim, num_walkers, num_steps
        self.duration = float(duration)
        self.process = Brownian(scale)
        points, self._law = _beginning(initial, dim, num_walkers)
        self.register_buffer("_points", points)
        start = self._a_point()
        self.register_buffer("times", torch.linspace(0, self.duration, num_steps + 1).to(start))
        with torch.no_grad():
            self._checked(potential(start.expand(2, 1, dim)), (2, 1))

    @property
    def dt(self) -> float:
        """The length of a step."""
        return self.duration / self.num_steps

    @property
    def walkers(self) -> Tensor:
        """Numbers of all walkers: what ``training.fit(model, guide, [model.walkers] * steps, ...)``
        takes for data, and shares out among processes; its loss is the cost times ``duration``."""
        return torch.arange(self.num_walkers, device=self.times.device)

    def prior(self, walkers: Tensor | None = None) -> Path:
        """The law of Brownian paths.

        Args:
            walkers: numbers of those that are wanted, ``[n]``; by default all.

        Returns:
            a batch ``[n]`` of paths.
        """
        size = self.num_walkers if walkers is None else len(walkers)
        if self._points is not None:
            initial: Any = self._points if walkers is None else self._points[walkers]
        elif self._law is not None:
            initial = self._law.expand((size,))
        else:
            initial = dist.Normal(self.times.new_zeros(size, self.dim), 1.0).to_event(1)
        return Path(self.process, initial, self.times)

    def forward(self, walkers: Tensor | None = None) -> Tensor:
        """Draws paths, and weighs them by the potential along them.

        Args:
            walkers: as for :meth:`prior`.

        Returns:
            ``[n, num_steps + 1, dim]``.
        """
        law = self.prior(walkers)
        with pyro.plate(self.path_plate, law.batch_shape[-1], dim=-1):
            path: Tensor = pyro.sample(self.path_site, law)
            before = path[..., :-1, :]
            values = self._checked(self.potential(before), before.shape[:-1])
            if is_validation_enabled():
                _refuse_nonfinite(before, values)
            pyro.factor("potential", -(values * self.times.diff()).sum(-1))
        return path

    def _a_point(self) -> Tensor:
        """Some point, of the dtype and device that paths have."""
        if self._points is not None:
            return self._points[0]
        if self._law is None:
            return torch.zeros(self.dim)
        with torch.random.fork_rng([]):
            point: Tensor = self._law.sample()
        return point

    def _checked(self, values: Any, shape: tuple[int, ...]) -> Tensor:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if got != tuple(shape):
            raise ValueError(
                f"potential: expected one number for each point, {list(shape)} for points "
                f"{[*shape, self.dim]}, got {list(got) if isinstance(got, tuple) else got}; sum "
                "over the last dimension"
            )
        return values  # type: ignore[no-any-return]


def _refuse_nonfinite(path: Tensor, values: Tensor) -> None:
    finite = path.isfinite().all(-1) & values.isfinite()
    if bool(finite.all()):
        return
    bad = (~finite).flatten(0, -2)
    step = int(bad.any(0).nonzero()[0])
    count = int(bad[:, step].sum())
    raise NonFiniteError(
        f"site 'potential': not finite for {count} of {len(bad)} walkers at step {step} of "
        f"{bad.shape[-1]} of their paths; the drift throws them far out, or they are at a "
        "singularity of the potential. Use smaller steps, or bound the drift",
        site="potential",
        step=step,
    )


def _beginning(initial: Any, dim: int, num_walkers: int) -> tuple[Tensor | None, Any]:
    """Where walkers start: points ``[num_walkers, dim]``, or a law of that batch, or neither."""
    if initial is None:
        return None, None
    if isinstance(initial, Tensor):
        if initial.shape not in ((dim,), (num_walkers, dim)) or not initial.is_floating_point():
            raise ValueError(
                f"initial: expected a point [{dim}] or points [{num_walkers}, {dim}], got "
                f"{list(initial.shape)} of {initial.dtype}"
            )
        return initial.expand(num_walkers, dim).clone(), None
    if tuple(getattr(initial, "event_shape", ())) != (dim,):
        raise ValueError(
            f"initial: expected a tensor or a distribution of event [{dim}], got {initial!r}; use "
            ".to_event(1)"
        )
    if tuple(initial.batch_shape) != ():
        raise ValueError(
            f"initial: expected one law for all walkers, got a batch {list(initial.batch_shape)}"
        )
    return None, initial
