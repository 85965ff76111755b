"""Objectives of ground states that have walkers of their own, in place of the guide's paths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import constraints

from pyrogen.distributions import Path
from pyrogen.errors import NonFiniteError
from pyrogen.losses._stateful import Carried, StatefulELBO
from pyrogen.processes import Brownian

__all__ = ["Problem", "WalkerELBO"]

_ENERGY = " energy"


@dataclass(frozen=True)
class Problem:
    """What a model and its guide say of a ground state.

    Attributes:
        site: the name of the path.
        plate: the name of its plate, or ``None``.
        prior: the law of free paths, of batch ``[walkers]``.
        potential: ``V``, ``[*, D] -> [*]``.
        psi: the wave function.
    """

    site: str
    plate: str | None
    prior: Path
    potential: Callable[[Tensor], Tensor]
    psi: Any

    @property
    def duration(self) -> Tensor:
        """The length of a path in time."""
        return self.prior.times[-1] - self.prior.times[0]

    def positions(self) -> Tensor:
        """Where paths begin, ``[walkers, D]``."""
        initial = self.prior.initial
        x: Tensor = initial if isinstance(initial, Tensor) else initial.sample()
        return x.expand((*self.prior.batch_shape, x.shape[-1])).contiguous()


class WalkerELBO(StatefulELBO):
    """An objective for the wave function of a guide, whose drift is its gradient.

    Model and guide are looked at for the potential, the law of free paths and the wave function;
    the guide's paths are not drawn. What is minimised is one number for each walker.

    Attributes:
        kind: paths.
        suspects: what is not finite.
    """

    kind: ClassVar[type[TorchDistribution]] = Path
    suspects = "the energy of a walker: the drift throws it far out, or its cusps are not there"

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def energy(self) -> float:
        """The energy that the last gradient step estimated, before it changed the parameters."""
        values = [float(value) for name, value in self.carried.items() if name.endswith(_ENERGY)]
        return values[0] if values else float("nan")

    @staticmethod
    def placed(site: str, x: Tensor) -> Carried:
        """What is carried of walkers at ``x`` before there is an energy. (Entries that come later
        would make another graph.)"""
        return {site: x, site + _ENERGY: x.new_full((), float("nan"))}

    @abstractmethod
    def cost(self, carried: Carried, problem: Problem) -> tuple[Tensor, Tensor]:
        """What is minimised, ``[walkers]``, and an estimate of the energy; entries of ``carried``
        are replaced by what to carry on."""

    def problem(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Problem:
        """The ground state that a model asks for.

        Raises:
            TypeError: if the model has no potential, or the guide no wave function.
            ValueError: if free paths are not those of unit mass.
        """
        name = type(self).__name__
        names = ("prior", "path_site", "path_plate", "potential")
        if not all(hasattr(model, each) for each in names):
            raise TypeError(
                f"{name}: expected a model with a potential and paths, such as "
                f"pyrogen.models.FeynmanKac, got {type(model).__name__}"
            )
        psi = getattr(guide, "drift", None)
        if not all(hasattr(psi, each) for each in ("log_amplitude", "local_kinetic")):
            raise TypeError(
                f"{name}: expected a guide whose drift is the gradient of a wave function, with "
                "log_amplitude and local_kinetic, such as PathDrift(model, "
                f"drift=pyrogen.nn.WaveFunction(...)), got {type(guide).__name__} with the drift "
                f"{type(psi).__name__}; PathELBO(persistent=True) trains any drift"
            )
        prior = model.prior(*args, **kwargs)
        process = prior.process
        if not isinstance(process, Brownian) or process.scale != 1:
            raise ValueError(
                f"{name}: expected free paths of unit mass, Brownian(scale=1.0), for which the "
                f"drift is the gradient of log psi, got {process}"
            )
        if len(prior.batch_shape) != 1 or prior.batch_shape[0] < 2:
            raise ValueError(
                f"{name}: expected a batch of at least 2 walkers, got {list(prior.batch_shape)}"
            )
        return Problem(model.path_site, model.path_plate, prior, model.potential, psi)

    def step(
        self,
        method: Callable[..., Any],
        carried: Mapping[str, Tensor],
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, Carried]:
        """What a method of the ELBO returns, and what to carry on."""
        following = dict(carried)
        problem = self.problem(model, guide, args, kwargs)
        _refuse_others(problem, carried)
        still = _Still(problem.site, problem.prior)

        def program(*args: Any, **kwargs: Any) -> None:
            cost, energy = self.cost(following, problem)
            following[problem.site + _ENERGY] = energy.detach()
            scored = _Standing(problem.prior, cost)
            if problem.plate is None:
                pyro.sample(problem.site, scored)
                return
            with pyro.plate(problem.plate, len(cost), dim=-1):
                pyro.sample(problem.site, scored)

        return method(program, still(guide), *args, **kwargs), following

    def score_and_carry(self, carried: Carried, name: str, fn: Any, value: Tensor) -> Tensor:
        """The density of a path, which is not minimised."""
        return fn.log_prob(value)  # type: ignore[no-any-return]

    def finite(self, result: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """``result``, if it is.

        Raises:
            NonFiniteError: if not, with the site and the number of gradient steps so far.
        """
        try:
            return super().finite(result, model, guide, args, kwargs)
        except NonFiniteError as error:
            site = error.site or model.path_site
            raise NonFiniteError(f"site {site!r}: {error}", site, self.steps) from None


def _refuse_others(problem: Problem, carried: Mapping[str, Tensor]) -> None:
    """An objective carries the walkers of one model, all of them."""
    x, size = carried.get(problem.site), problem.prior.batch_shape[0]
    expected = (size, problem.prior.event_shape[-1])
    if x is None or tuple(x.shape) != expected:
        raise ValueError(
            f"site {problem.site!r}: expected walkers {list(expected)} as in the first step, got "
            f"{None if x is None else list(x.shape)}; give each model an objective of its own, "
            "and each step all walkers"
        )


class _Still(Messenger):
    """Keeps the paths of a guide from being drawn; its parameters are announced nonetheless."""

    def __init__(self, site: str, prior: Path) -> None:
        super().__init__()
        self._site, self._prior = site, prior

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == self._site:
            msg["fn"] = _Standing(self._prior, None)


class _Standing(TorchDistribution):
    """Stands for a law of paths, of which nothing but a cost for each is asked."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(self, law: Path, cost: Tensor | None) -> None:
        self._law, self._cost = law, cost
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _Standing:
        return self

    def rsample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return self._law.times.new_zeros(()).expand(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._cost is None:
            return value.new_zeros(self.batch_shape)
        return -self._cost
