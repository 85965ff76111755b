"""The base of every kernel: pure functions over all chains, and a shell for Pyro's driver."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor, nn
from torch.distributions import Transform

from pyrogen.distributions import EnergyBased
from pyrogen.kernels._adaptation import WarmUp
from pyrogen.kernels._chains import Chains
from pyrogen.kernels._initial import given_position, random_position
from pyrogen.kernels._potential import Potential
from pyrogen.kernels._runner import Runner
from pyrogen.kernels._shell import Shell
from pyrogen.kernels._target import Target
from pyrogen.kernels._tuning import Tuning

__all__ = ["Kernel", "Source"]


class Source(TypedDict, total=False):
    """What is sampled if not a model, and how; see :class:`Kernel`."""

    potential_fn: Callable[[dict[str, Tensor]], Tensor] | None
    energy: Callable[[Tensor], Tensor] | None
    event_shape: Sequence[int] | None
    compile: bool


class Kernel(MCMCKernel):
    r"""A Markov transition that moves many chains at once.

    A kernel is a pair of pure functions of tensors whose leading dimension is the chain:
    :meth:`init` makes a state from positions, :meth:`step` makes the next state. They contain no
    Python branch on a value, so that a step runs as one compiled graph, and each chain accepts or
    rejects for itself. What a step reads besides (step size, mass matrix) is ``tuning``; what it
    reports is ``info``. All three are named tuples of tensors.

    A subclass defines :meth:`init`, :meth:`step` and :meth:`initial_tuning`, and if it is tuned
    :meth:`warm_up`. Then it runs under :class:`~pyrogen.kernels.MCMC` with any number of chains,
    and under ``pyro.infer.MCMC`` with one.

    Args:
        model: a Pyro model of static structure. A kernel with nothing to sample is a part of
            something else, such as :class:`ShortRun` or a loss.
        potential_fn: instead of a model, the potential :math:`-\log p` of a dictionary of
            unconstrained tensors of one chain; needs ``initial_params``.
        energy: instead of a model, an energy of all chains, ``[chains, *event_shape] -> [chains]``;
            its one site is called ``"x"``.
        event_shape: shape of one point, for an energy.
        compile: run steps as compiled graphs. Without, they run operation by operation, and a model
            with Python branches on values runs chain by chain.

    Raises:
        ValueError: if more than one of model, potential and energy is given.
    """

    # Attributes are options, which graphs of the kernel depend on; what changes while chains run is
    # kept out of their sight.
    __slots__ = ("_shell",)

    needs_exact_potential: ClassVar[bool] = True
    """Whether a minibatch potential would make the kernel wrong."""

    regroups_chains: ClassVar[bool] = False
    """Whether a transition asks for the potential of some of the chains, in any order."""

    can_diverge: ClassVar[bool] = True
    """Whether a step may end where a number is not finite."""

    takes_gradient_ahead: ClassVar[bool] = False
    """Whether the gradient where a step ends serves the next step alone, so that the last of some
    steps can do without."""

    is_independent: ClassVar[bool] = False
    """Whether a draw does not depend on the one before, so that there is nothing to warm up."""

    unrecorded: ClassVar[tuple[str, ...]] = ()
    """Fields of ``info`` that are for warm-up alone."""

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        energy: Callable[[Tensor], Tensor] | None = None,
        event_shape: Sequence[int] | None = None,
        compile: bool = True,
    ) -> None:
        super().__init__()
        given = [x is not None for x in (model, potential_fn, energy)]
        if sum(given) > 1:
            raise ValueError(f"expected one of model, potential_fn and energy, got {sum(given)}")
        if (energy is None) != (event_shape is None):
            raise ValueError(
                "expected energy and event_shape together: HMC(energy=..., event_shape=(2,))"
            )
        self.model = model
        self.potential_fn = potential_fn
        self.energy = energy
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.compile = compile
        self._shell = Shell()

    # What a kernel defines.

    @abstractmethod
    def init(self, potential: Potential, position: Tensor, tuning: Any) -> Any:
        """The state of chains at ``position [chains, size]``.

        Returns:
            a named tuple of tensors ``[chains, *]``, with ``position`` among them: what the next
            step needs and nothing else.
        """

    @abstractmethod
    def step(self, potential: Potential, state: Any, tuning: Any) -> tuple[Any, Any]:
        """The next state, and an :class:`~pyrogen.kernels.Info` (or a tuple with its fields)."""

    @abstractmethod
    def initial_tuning(self, target: Target) -> Any:
        """The tuning before warm-up: a :class:`~pyrogen.kernels.Tuning` or another named tuple."""

    def warm_up(self) -> WarmUp | None:
        """How the kernel is tuned: the same object at every call; ``None`` if it is not."""
        return None

    def transition(self, run: Runner, state: Any, tuning: Any, iteration: int) -> tuple[Any, Any]:
        """One step, run by ``run(function, *tensors)``; by default :meth:`step` as one graph.

        A kernel whose steps differ in length overrides it with a loop over several graphs.
        """
        return run(self.step, state, tuning)  # type: ignore[no-any-return]

    def probe(self, run: Runner, state: Any, tuning: Any) -> Tensor:
        """Acceptance probabilities ``[chains]`` of a trial step, to find a first step size."""
        _, info = self.transition(run, state, tuning, 0)
        accept_prob: Tensor = info.accept_prob
        return accept_prob

    # Chains.

    def check_target(self) -> None:
        """Raises ``ValueError`` if the kernel was given nothing to sample."""
        if self.model is None and self.potential_fn is None and self.energy is None:
            raise ValueError(
                f"{type(self).__name__}: expected something to sample (a model, potential_fn or "
                "energy), got none"
            )

    def target_of(self, name: str, fn: EnergyBased) -> Target:
        """One site's distribution as what is sampled, all chains of it at once."""
        return Target.from_distribution(name, fn)

    def target(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
    ) -> Target:
        """What is sampled, given the arguments of the model.

        Args:
            args: of the model.
            kwargs: of the model.
            shapes: the unconstrained shapes of one chain, for a ``potential_fn``.

        Raises:
            ValueError: if the model cannot be sampled by this kernel.
        """
        self.check_target()
        if self.model is not None:
            target = Target.from_model(self.model, args, kwargs)
        elif self.energy is not None:
            target = Target.from_energy(self.energy, self.event_shape or ())
        else:
            target = Target.from_potential(self.potential_fn, shapes)  # type: ignore[arg-type]
        if target.enumerated:
            warnings.warn(
                f"the discrete sites {list(target.enumerated)} are summed out; draws hold the "
                "continuous sites alone",
                stacklevel=2,
            )
        if target.subsampled and self.needs_exact_potential:
            raise ValueError(
                f"{type(self).__name__} accepts by the exact density, but the plates "
                f"{list(target.subsampled)} draw a minibatch; expected subsample_size=None. "
                "Use SGLD or SGHMC for minibatches"
            )
        return target

    def start(
        self,
        num_chains: int,
        warmup_steps: int,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        initial_params: Mapping[str, Tensor] | None = None,
    ) -> Chains:
        """Chains at their initial points, ready to :meth:`~Chains.advance`.

        Args:
            num_chains: how many.
            warmup_steps: for how many steps they are tuned.
            args: of the model.
            kwargs: of the model.
            initial_params: unconstrained values, each ``[num_chains, *shape]``.
        """
        with pyro.validation_enabled(False), poutine.block(), torch.no_grad():
            return self._start(num_chains, warmup_steps, args, kwargs, initial_params)

    def _start(
        self,
        num_chains: int,
        warmup_steps: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        initial_params: Mapping[str, Tensor] | None,
    ) -> Chains:
        if initial_params is None and self.potential_fn is not None:
            raise ValueError(
                "expected initial_params with potential_fn, got none; they say which unconstrained "
                "tensors it takes"
            )
        given = {name: _floating(x) for name, x in (initial_params or {}).items()}
        target = self.target(args, kwargs, {name: x.shape[1:] for name, x in given.items()})
        if self.potential_fn is not None or (given and _has_no_parameters(self.energy)):
            # nothing else says of which type the numbers are
            example = next(iter(given.values()))
            target.dtype, target.device = example.dtype, example.device
        self._shell.runner = run = Runner(target, self.compile, self._shell.runner)
        if initial_params is None:
            position = random_position(target, run, num_chains)
        else:
            position = given_position(target, run, num_chains, given)
        if self.needs_exact_potential:
            _refuse_noise(run, position)
        self._shell.transforms = target.transforms
        return Chains(self, target, run, position, warmup_steps)

    # The shell: one chain under ``pyro.infer.MCMC``.

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Starts one chain; what an earlier one left is forgotten."""
        shell = self._shell
        given = shell.initial_params
        shell.reset()
        shell.initial_params = given
        one = None if given is None else {name: x.unsqueeze(0) for name, x in given.items()}
        shell.chains = self.start(1, warmup_steps, args, kwargs, one)

    def cleanup(self) -> None:
        """Forgets the chain and where it was to start."""
        self._shell.reset()

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The draw that follows ``params``, unconstrained."""
        return self._shell.sample(params)

    def logging(self) -> dict[str, str]:
        """Step size and mean acceptance probability so far, for a progress bar."""
        infos = self._shell.infos
        if not infos:
            return {}
        return {
            "step size": f"{float(infos[-1].step_size):.2e}",
            "acc. prob": f"{self._shell.mean_accept_prob():.3f}",
        }

    def diagnostics(self) -> dict[str, Any]:
        """The draws that diverged, the mean acceptance probability, and ``info``, after warm-up."""
        infos = self._shell.infos
        diverging = [bool(info.diverging) for info in infos]
        return {
            "divergences": [i for i, diverged in enumerate(diverging) if diverged],
            "acceptance rate": self._shell.mean_accept_prob(),
            "info": self._shell.info(self.unrecorded),
        }

    @property
    def transforms(self) -> dict[str, Transform] | None:
        """The bijections from supports to the reals, once the model has been seen."""
        return self._shell.transforms

    @property
    def initial_params(self) -> dict[str, Tensor] | None:
        """Unconstrained values that the chain starts from."""
        given, chains = self._shell.initial_params, self._shell.chains
        if given is None and chains is not None:
            return chains.target.unflatten(chains.position[0].clone())
        return None if given is None else dict(given)

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor] | None) -> None:
        self._shell.initial_params = None if params is None else dict(params)

    @property
    def save_params(self) -> list[str]:
        """The sites that Pyro's driver keeps, sorted, as it unpacks them."""
        if self._shell.save_params is None:
            raise AttributeError("save_params")  # Pyro's driver then keeps all
        return self._shell.save_params

    @save_params.setter
    def save_params(self, names: Sequence[str] | None) -> None:
        self._shell.save_params = None if names is None else sorted(names)

    def __getstate__(self) -> dict[str, Any]:
        """A kernel without its chain and its graphs, which cannot be copied."""
        return {**self.__dict__, "_shell": self._shell.portable()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def _floating(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _has_no_parameters(energy: Any) -> bool:
    return energy is not None and not (
        isinstance(energy, nn.Module) and next(energy.parameters(), None) is not None
    )


def _refuse_noise(run: Runner, position: Tensor) -> None:
    first, second = (run.once(_energy, position) for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        raise ValueError(
            "expected a density without random numbers of its own, got energies "
            f"{float(first[0]):.6g} and {float(second[0]):.6g} at one point; draw what is random "
            "in a pyro.sample statement, or outside the model"
        )


def _energy(potential: Potential, position: Tensor) -> Tensor:
    return potential.value(position)


def standard_tuning(target: Target, step_size: float, dense: bool = False) -> Tuning:
    """A :class:`Tuning` of the target's size, with the identity for a mass matrix."""
    options: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
    size = target.size
    return Tuning(
        step_size=torch.tensor(step_size, **options),
        scale=torch.eye(size, **options) if dense else torch.ones(size, **options),
        trajectory_length=torch.tensor(step_size, **options),
    )
