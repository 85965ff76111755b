r"""The energy of a ground state, by walkers in the law of a trained drift.

What training minimises is an average over a few short paths, with the bias of their beginning and
of the step. Here walkers forget where they began, and three numbers follow, each with its error:

* the cost per unit of time, an upper bound on :math:`E_0` but for the step: at :math:`h` and
  :math:`h / 2` with the same noise, and extrapolated, :math:`2 C_{h/2} - C_h`;
* for a drift that is the gradient of a known :math:`\log \varphi`, the mean of the local energy
  under :math:`\varphi^2` exactly, an upper bound whatever the step;
* with the weights :math:`w_\tau` that correct paths to those of Feynman and Kac over a window of
  time :math:`\tau`,

  .. math:: E_0 \approx -\frac{\log \mathbb{E}\, w_\tau - \log \mathbb{E}\, w_{\tau/2}}{\tau / 2},
     \qquad w_\tau = \frac{p(x)}{q(x)}\, e^{-\int_0^\tau V} ,

  which no longer depends on the drift but through what is left of excited states,
  :math:`e^{-\text{gap}\, \tau / 2}`. For Euler's steps the ratio of the densities is exact, and the
  error of order :math:`h^2`. With a trial function
  :math:`w_\tau = e^{-\int_0^\tau E_L} = \frac{p(x)}{q(x)} e^{-\int V}
  \frac{\varphi(x_\tau)}{\varphi(x_0)}` along the accepted steps (of which time is the share of
  the diffusion that was accepted). It has less spread, and a mean also where the potential falls to
  :math:`-\infty`: that of :math:`e^{h / r}` is infinite. Its error is of the order of the time of
  0.02 between two looks at :math:`E_L`, or a step, times half the variance of :math:`E_L`.

Walkers are independent of each other, and a block is as long as their number allows: all of the run
where there are 64 of them or more.

References:
    H. Flyvbjerg, H. G. Petersen, *Error estimates on averages of correlated data*, 1989,
    doi:10.1063/1.457480. W. M. C. Foulkes, L. Mitas, R. J. Needs, G. Rajagopal, *Quantum Monte
    Carlo simulations of solids*, 2001, doi:10.1103/RevModPhys.73.33. A. Barr, W. Gispen,
    A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020, arXiv:2006.09044.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor

from pyrogen.diagnostics._draws import check_num_samples, evaluating
from pyrogen.diagnostics._evaluation import Evaluation
from pyrogen.diagnostics._walkers import Dynamics
from pyrogen.distributions import Path
from pyrogen.kernels._processes import Processes
from pyrogen.processes import Brownian

__all__ = ["Estimate", "GroundStateEnergy", "ground_state_energy"]

_BLOCKS = 16
_LEAST = 64
_UNSETTLED = 5.0
_FEW = 50.0


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes:
        value: the number.
        error: one standard error.
    """

    value: float
    error: float

    def __str__(self) -> str:
        if not (self.error > 0 and math.isfinite(self.error)):
            return f"{self.value:.8g} ± {self.error:.1g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


@dataclass(frozen=True)
class GroundStateEnergy:
    """What :func:`ground_state_energy` found; print it.

    Attributes:
        cost: per unit of time, at the step ``dt``.
        cost_half: at ``dt / 2``.
        extrapolated: of both, to a step of zero.
        variational: the mean of the local energy under the square of the trial function; ``None``
            for a drift that is not the gradient of one.
        projected: with importance weights; ``None`` without a window.
        ess: effective number of windows among ``num_windows``.
        num_windows: of all walkers together.
        window: their length in time.
        variance: of the local energy over the walkers' places: 0 for the exact drift.
        accept_prob: of the steps behind ``variational``.
        dt: the step.
        num_walkers: how many there were.
        duration: for how long they were watched, in time.
        equilibration: what was discarded before, in time.
    """

    cost: Estimate
    cost_half: Estimate
    extrapolated: Estimate
    variational: Estimate | None
    projected: Estimate | None
    ess: float | None
    num_windows: int
    window: float | None
    variance: float
    accept_prob: float | None
    dt: float
    num_walkers: int
    duration: float
    equilibration: float

    @property
    def best(self) -> Estimate:
        """The upper bound: ``variational`` where it is known, else ``extrapolated``."""
        return self.extrapolated if self.variational is None else self.variational

    @property
    def energy(self) -> float:
        """The value of :attr:`best`."""
        return self.best.value

    @property
    def error(self) -> float:
        """Its standard error."""
        return self.best.error

    def __str__(self) -> str:
        rows = [
            (f"cost, steps of {self.dt:g}", str(self.cost)),
            (f"cost, steps of {self.dt / 2:g}", str(self.cost_half)),
            ("extrapolated to 0", str(self.extrapolated)),
        ]
        if self.variational is not None:
            accepted = f"   {self.accept_prob:.1%} of steps accepted"
            rows.append(("under the trial function", f"{self.variational}{accepted}"))
        if self.projected is not None:
            share = f"   {self.ess:.0f} of {self.num_windows} windows of {self.window:g} effective"
            rows.append(("importance-sampled", f"{self.projected}{share}"))
        rows.append(("variance of local energy", f"{self.variance:.3g}"))
        lines = [f"ground-state energy {self.best}"]
        lines += [f"  {name:<26}{text}" for name, text in rows]
        lines.append(
            f"  {self.num_walkers} walkers for a time of {self.duration:g}, after "
            f"{self.equilibration:g} that is discarded"
        )
        return "\n".join(lines)


def ground_state_energy(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    num_walkers: int = 1000,
    dt: float | None = None,
    duration: float = 80.0,
    equilibration: float = 10.0,
    window: float | None = 8.0,
    initial: Tensor | None = None,
    compile: bool = True,
) -> GroundStateEnergy:
    r"""Evaluates the drift of a guide for :class:`~pyrogen.models.FeynmanKac`.

    Under ``torchrun`` each process runs its share of the walkers with noise of its own, and all of
    them return what the walkers found together. The memory does not depend on the number of steps.

    Args:
        model: with ``potential``, ``prior()``, ``path_site`` and ``duration``; its paths Brownian.
        guide: with the path's law as a site; :class:`~pyrogen.guides.PathDrift`. A drift with
            ``log_amplitude`` and ``local_kinetic`` is the gradient of a trial function. One that
            depends on time is used over and over, from the beginning of the model's paths to their
            end.
        num_walkers: how many walkers, at least 4.
        dt: the step; by default that of the model.
        duration: for how long walkers are watched.
        equilibration: for how long they go before.
        window: length of the paths that are weighed, ``None`` for none. What is left of excited
            states is :math:`e^{-\text{gap}\, \tau / 2}`; the weights of a poor drift have a spread
            that grows with :math:`\tau`.
        initial: where walkers start, ``[num_walkers, dim]``, such as where training left them; by
            default where the model's start.
        compile: run each step as a compiled graph.

    Returns:
        The estimates, as :class:`GroundStateEnergy`.

    Raises:
        ValueError: if numbers are not positive, there are fewer than two windows or 16 steps, the
            model has no potential, or shapes do not fit.
        NonFiniteError: if a walker goes where drift or potential are not finite, with the step.

    Warns:
        UserWarning: if the first half of the run differs from the second by more than five errors,
            or few windows carry the weight.

    References:
        A. Barr, W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
        arXiv:2006.09044.

    Example:
        >>> from pyrogen.guides import PathDrift
        >>> from pyrogen.models import FeynmanKac, Harmonic
        >>> model = FeynmanKac(Harmonic(), dim=1, num_steps=10)
        >>> guide = PathDrift(model, drift=lambda x, t: -x)
        >>> found = ground_state_energy(model, guide, duration=20.0, compile=False)
        >>> abs(found.energy - 0.5) < 5 * found.error
        True
        >>> found.variance < 1e-10  # the drift is exact
        True
    """
    check_num_samples(num_walkers, least=4, name="num_walkers")
    with evaluating(model, guide), pyro.validation_enabled(False), poutine.block():
        law, amplitude = _law(model, guide)
        step = float(law.times.diff()[0]) if dt is None else dt
        _check_times(step, duration, equilibration, window)
        x = _places(law, num_walkers, initial)
        processes = Processes()
        first, count = processes.share(num_walkers)
        dynamics = Dynamics(
            law.process.drift,
            model.potential,  # type: ignore[attr-defined]
            _scale(model),
            step,
            amplitude,
        )
        _check_shapes(dynamics, x[:2], law.times[0])
        evaluation = Evaluation(dynamics, law.times, str(model.path_site), compile)  # type: ignore[attr-defined]
        error: Exception | None = None
        found: dict[str, Tensor] = {}
        try:
            with processes.own_noise():
                found = evaluation.run(
                    x[first : first + count], duration, equilibration, window, _BLOCKS
                )
        except Exception as failure:
            error = failure
        processes.check(error)
        found = processes.join(found)
    return _summary(found, step, num_walkers, duration, equilibration, window)


def _law(model: Any, guide: Any) -> tuple[Path, Any]:
    """The law of the guide's path, and what its drift is the gradient of, if that is known."""
    lacking = [n for n in ("potential", "prior", "path_site") if not hasattr(model, n)]
    if lacking:
        raise ValueError(
            f"model: expected one with a potential, such as pyrogen.models.FeynmanKac, got "
            f"{type(model).__name__} without {lacking}"
        )
    _scale(model)
    law = guide.law() if hasattr(guide, "law") else _site(guide, model.path_site)
    drift = getattr(guide, "drift", None)
    known = all(hasattr(drift, name) for name in ("log_amplitude", "local_kinetic"))
    return law, drift if known else None


def _site(guide: Any, name: str) -> Path:
    nodes: Any = poutine.trace(guide).get_trace().nodes
    law = nodes[name]["fn"] if name in nodes else None
    if not isinstance(law, Path):
        raise ValueError(
            f"guide: expected a law of paths at site {name!r}, such as guides.PathDrift(model), "
            f"got sites {list(nodes)}"
        )
    return law


def _scale(model: Any) -> float:
    process = model.prior().process
    if not isinstance(process, Brownian):
        raise ValueError(
            f"model: expected paths that are Brownian, got {type(process).__name__}; the energy is "
            "that of a potential alone"
        )
    return process.scale


def _places(law: Path, num_walkers: int, initial: Tensor | None) -> Tensor:
    dim = law.event_shape[-1]
    if initial is not None:
        if tuple(initial.shape) != (num_walkers, dim):
            raise ValueError(
                f"initial: expected places [{num_walkers}, {dim}], got {list(initial.shape)}"
            )
        return initial.detach().clone()
    batch = law.batch_shape.numel()
    rounds = -(-num_walkers // batch)
    if isinstance(law.initial, Tensor):
        places = law.initial.expand(rounds, *law.batch_shape, dim)
    else:
        places = law.initial.expand(law.batch_shape).sample((rounds,))
    return places.reshape(-1, dim)[:num_walkers].clone()


def _check_times(dt: float, duration: float, equilibration: float, window: float | None) -> None:
    for name, value in (("dt", dt), ("duration", duration)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    if not 0 <= equilibration < math.inf:
        raise ValueError(f"equilibration: expected a number of at least 0, got {equilibration!r}")
    if duration < _BLOCKS * dt:
        raise ValueError(f"duration: expected {_BLOCKS} steps of {dt:g} at least, got {duration:g}")
    if window is not None and not 2 * dt <= window <= 0.5 * duration:
        raise ValueError(
            f"window: expected two steps of {dt:g} at least and half the duration of "
            f"{duration:g} at most, got {window!r}; or None"
        )


def _check_shapes(dynamics: Dynamics, x: Tensor, t: Tensor) -> None:
    drift, potential = dynamics.drift(x, t), dynamics.potential(x)
    if drift.shape != x.shape:
        raise ValueError(
            f"drift: expected shape {list(x.shape)} like the places of walkers, got "
            f"{list(drift.shape)}"
        )
    if potential.shape != x.shape[:-1]:
        raise ValueError(
            f"potential: expected shape {list(x.shape[:-1])} for places {list(x.shape)}, got "
            f"{list(potential.shape)}; sum over the last dimension"
        )


def _summary(
    found: dict[str, Tensor],
    dt: float,
    num_walkers: int,
    duration: float,
    equilibration: float,
    window: float | None,
) -> GroundStateEnergy:
    coarse, fine = found["coarse"], found["fine"]
    _warn_of_a_trend(fine)
    variational = _estimate(found["variational"]) if "variational" in found else None
    projected, ess, num_windows = None, None, 0
    if window is not None:
        num_windows = int(found["windows"].sum())
        projected, ess = _projected(found, num_windows, window)
    return GroundStateEnergy(
        cost=_estimate(coarse),
        cost_half=_estimate(fine),
        extrapolated=_estimate(2 * fine - coarse),
        variational=variational,
        projected=projected,
        ess=ess,
        num_windows=num_windows,
        window=window,
        variance=_variance(found),
        accept_prob=float(found["accepted"].mean()) if variational is not None else None,
        dt=dt,
        num_walkers=num_walkers,
        duration=duration,
        equilibration=equilibration,
    )


def _estimate(blocks: Tensor) -> Estimate:
    """Mean and error of ``[blocks, walkers]``, of which neighbours in time are joined as long as
    enough are left."""
    longest = blocks.shape[0]
    while longest > 1 and blocks.numel() // longest < _LEAST:
        longest //= 2
    joined = blocks.unflatten(0, (-1, longest)).mean(1).flatten()
    return Estimate(float(blocks.mean()), float(joined.std()) / math.sqrt(len(joined)))


def _variance(found: dict[str, Tensor]) -> float:
    if "square" in found:
        return float(found["square"].mean() - found["variational"].mean().square())
    return float(found["local"].var())


def _projected(found: dict[str, Tensor], count: int, window: float) -> tuple[Estimate, float]:
    """By importance weights, whose sums over the windows of a walker are independent of others'."""
    half = 0.5 * window * float(found["pace"].mean() if "pace" in found else 1.0)
    middle, end = (_shares(found[name]) for name in ("log_middle", "log_end"))
    growth = float(found["log_end"].logsumexp(0) - found["log_middle"].logsumexp(0))
    error = float((end - middle).std()) / math.sqrt(len(end)) / half
    ess = float((2 * found["log_end"].logsumexp(0) - found["log_square"].logsumexp(0)).exp())
    if ess < _FEW:
        warnings.warn(
            f"the weight of {count} windows is that of {ess:.1f}: expected a better drift, or a "
            "shorter window; neither the importance-sampled energy nor its error can be trusted",
            stacklevel=4,
        )
    return Estimate(-growth / half, error), ess


def _shares(log_sums: Tensor) -> Tensor:
    """Weights of the walkers, of mean 1."""
    return log_sums.softmax(0) * len(log_sums)


def _warn_of_a_trend(blocks: Tensor) -> None:
    half = len(blocks) // 2
    change = _estimate(blocks[half:] - blocks[:half])
    # Beyond errors, what rounding can do.
    floor = 1e-6 * (1 + blocks.abs().mean())
    if abs(change.value) > _UNSETTLED * change.error + float(floor):
        warnings.warn(
            f"the cost of the second half of the run differs from that of the first by {change}: "
            "expected a longer equilibration, or a better start",
            stacklevel=4,
        )
