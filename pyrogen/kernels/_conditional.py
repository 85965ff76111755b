"""What Gibbs kernels share: a target whose conditionals can be drawn, found in a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Transform, constraints

from pyrogen.distributions import CategoricalUnits, EnergyBased, Units
from pyrogen.kernels._chains import Chains
from pyrogen.kernels._kernel import Kernel, _floating
from pyrogen.kernels._one_site import OneSite, distribution_at
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._target import Layout, Target
from pyrogen.kernels._tuning import Info, Tuning
from pyrogen.modes import up_to_a_constant

__all__ = ["Conditional", "ConditionalPotential", "energy_based_site"]


class ConditionalPotential(Potential):
    """The potential of an energy-based site, which the kernel may ask for conditionals.

    Args:
        fn: the distribution of the site.
    """

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def values(self, position: Tensor) -> Tensor:
        """The values ``[points, *event]`` of chains ``[chains, size]``."""
        flat = position.reshape(-1, *self.fn.event_shape)
        values: Tensor = self.fn.units.value(flat)
        return values

    def of_chains(self, numbers: Tensor, chains: int) -> Tensor:
        """What is known of each point, for each chain."""
        return numbers.reshape(chains, -1)

    def value(self, position: Tensor) -> Tensor:
        """The potential energy ``[chains]``."""
        energy = -self.fn.unnormalized_log_prob(self.values(position))
        return self.of_chains(energy, len(position)).sum(-1)


class Conditional(Kernel):
    """A kernel that draws from conditionals of an energy-based distribution of one kind.

    Args:
        model: the distribution itself, whose site is then called ``"x"``; or a Pyro model in which
            it is the distribution of the first latent site, and nothing is observed. Sites after it
            can be drawn given its draws, by ``Predictive(distributions.unnormalized(model), ...)``.
            ``None``, to be used by an objective.
        compile: as of every :class:`~pyrogen.kernels.Kernel`.

    Raises:
        ValueError: at the start, if the model is none of these.
    """

    kind: ClassVar[type[EnergyBased]]
    can_diverge: ClassVar[bool] = False

    def __init__(
        self, model: Callable[..., Any] | EnergyBased | None = None, *, compile: bool = True
    ) -> None:
        super().__init__(
            OneSite(model) if isinstance(model, EnergyBased) else model, compile=compile
        )

    @abstractmethod
    def step(self, potential: Any, state: Any, tuning: Any) -> tuple[Any, Any]:
        """The next state."""

    def initial_tuning(self, target: Target) -> Tuning:
        """Nothing is tuned."""
        one = torch.ones((), dtype=target.dtype, device=target.device)
        return Tuning(one, one, one)

    def info(self, energy: Tensor, tuning: Tuning) -> Info:
        """Every draw is accepted."""
        return Info(
            accept_prob=torch.ones_like(energy),
            diverging=~torch.isfinite(energy),
            potential_energy=energy,
            energy=energy,
            num_steps=tuning.step_size,
            step_size=tuning.step_size,
        )

    def target_of(self, name: str, fn: Any) -> Target:
        """The distribution of a site as a target.

        Raises:
            ValueError: if it is of another kind.
        """
        if not isinstance(fn, self.kind):
            raise ValueError(
                f"site {name!r}: {type(self).__name__} expected a {self.kind.__name__}, got "
                f"{type(fn).__name__}"
            )
        fn = fn.unexpanded()
        return _target(name, fn, lambda *_: ConditionalPotential(fn))

    def target(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
    ) -> Target:
        """The energy-based site of the model."""
        self.check_target()
        name, fn = self._checked_site(args, kwargs)
        potential = _SitePotential(self.model, name)
        return _target(name, fn, potential, (tuple(args), dict(kwargs)))

    def _checked_site(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, Any]:
        return energy_based_site(self.model, args, kwargs, self.kind, type(self).__name__)

    def _start(
        self,
        num_chains: int,
        warmup_steps: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        initial_params: Mapping[str, Tensor] | None,
    ) -> Chains:
        """Chains at draws of the base, or where the user says."""
        target = self.target(args, kwargs, {})
        self._shell.runner = run = Runner(target, self.compile, self._shell.runner)
        self._shell.transforms = target.transforms
        if initial_params is None:
            _, fn = self._checked_site(args, kwargs)
            position = fn.initial_point((num_chains,)).to(target.dtype).reshape(num_chains, -1)
        else:
            given = {name: _floating(x) for name, x in initial_params.items()}
            position = target.flatten(given, (num_chains,))
        return Chains(self, target, run, position, warmup_steps)


def energy_based_site(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], kind: type, name: str
) -> tuple[str, Any]:
    """The name and the distribution of the first site of a model.

    Raises:
        ValueError: if it is of another kind, or something is observed.
    """
    with torch.no_grad(), poutine.block(), up_to_a_constant():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    nodes: Any = trace.nodes.items()
    sites = [
        (name, node)
        for name, node in nodes
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    ]
    observed = [name for name, node in sites if node["is_observed"]]
    first, node = sites[0] if sites else ("none", {"fn": None})
    if observed or not isinstance(node["fn"], kind):
        raise ValueError(
            f"{name}: expected a model whose first site is a {kind.__name__} and where nothing is "
            f"observed, got first site {first!r} of {type(node['fn']).__name__}, observed "
            f"{observed}"
        )
    return first, node["fn"]


class _SitePotential:
    """Runs the model up to its energy-based site, whose parameters are read at every call."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> ConditionalPotential:
        args, kwargs = arguments
        return ConditionalPotential(distribution_at(self._model, self._name, args, kwargs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SitePotential) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def _target(name: str, fn: Any, make_potential: Any, arguments: Any = ()) -> Target:
    like = fn.bias
    whole = isinstance(fn.units, CategoricalUnits)
    return Target(
        layout=((name, tuple(fn.shape())),),
        make_potential=make_potential,
        arguments=arguments,
        transforms={name: _Whole(fn.units, like.dtype)} if whole else {},
        dtype=like.dtype,
        device=like.device,
    )


class _Whole(Transform):
    """From levels to the reals that stand for them in a position."""

    domain = constraints.nonnegative_integer
    codomain = constraints.real
    bijective = True

    def __init__(self, units: Units, dtype: torch.dtype) -> None:
        super().__init__()
        self._units, self._dtype = units, dtype

    def _call(self, x: Tensor) -> Tensor:
        return x.to(self._dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._units.value(y)
