"""What is sampled: a Pyro model, an energy, or a potential of named tensors.

A kernel sees one flat unconstrained vector per chain, ``position [chains, size]``. A
:class:`Target` is the map between it and named sites, sorted by name, and makes the
:class:`~pyrogen.kernels._potential.Potential` of the tensors that it depends on (the arguments of
the model), so that a captured kernel takes new data without being captured anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, biject_to

from pyrogen.distributions import EnergyBased
from pyrogen.kernels._minibatch import Minibatch
from pyrogen.kernels._potential import Batched, PerChain, Potential
from pyrogen.kernels._sites import nonfinite_sites, potential_of_model, structure_of

__all__ = ["Layout", "Target"]

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""The unconstrained shape of each site, sorted by name."""

# (layout, arguments, one chain by one) -> potential
MakePotential = Callable[[Layout, Any, bool], Potential]


class Target:
    """A distribution to sample from, over named sites.

    Made by :meth:`from_model`, :meth:`from_energy`, :meth:`from_potential` or
    :meth:`from_distribution`.

    Attributes:
        layout: name and unconstrained shape of each site, sorted by name.
        transforms: for each site, the bijection from its support to the reals (Pyro's direction).
            Sites without an entry are unconstrained.
        arguments: what the potential depends on, a nest of tensors and hashable values.
        subsampled: the plates that draw a minibatch; if any, the potential is a random number.
        enumerated: the discrete sites that are summed out.
        dtype, device: of a position.
    """

    def __init__(
        self,
        layout: Layout,
        make_potential: MakePotential,
        arguments: Any = (),
        transforms: Mapping[str, Transform] = {},
        subsampled: Sequence[str] = (),
        enumerated: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        explain: Callable[[dict[str, Tensor]], list[str]] | None = None,
    ) -> None:
        self.layout = layout
        self.make_potential = make_potential
        self.arguments = arguments
        self.transforms = dict(transforms)
        self.subsampled = tuple(subsampled)
        self.enumerated = tuple(enumerated)
        self.dtype = dtype or torch.get_default_dtype()
        self.device = device or torch.get_default_device()
        self._explain = explain

    @classmethod
    def from_model(
        cls, model: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
    ) -> Target:
        """The posterior of a Pyro model of static structure, given its observed sites.

        Constrained sites are sampled in unconstrained space, through ``biject_to`` of their
        support. Discrete sites that can be enumerated are summed out, as Pyro's HMC does.

        Raises:
            ValueError: if the model has no continuous latent site, or one that cannot be sampled.
        """
        args, kwargs = tuple(args), dict(kwargs)
        structure = structure_of(model, args, kwargs)
        nesting = structure.plate_nesting if structure.enumerated else None
        prototypes = [site.prototype for site in structure.sites]
        return cls(
            layout=tuple((site.name, tuple(site.shape)) for site in structure.sites),
            make_potential=_ModelPotential(model, nesting, structure.subsampled),
            arguments=(args, kwargs),
            transforms={site.name: site.transform.inv for site in structure.sites},
            subsampled=tuple(structure.subsampled),
            enumerated=structure.enumerated,
            dtype=reduce(torch.promote_types, [x.dtype for x in prototypes]),
            device=prototypes[0].device,
            explain=lambda values: nonfinite_sites(model, args, kwargs, values),
        )

    @classmethod
    def from_energy(
        cls, energy: Callable[[Tensor], Tensor], event_shape: Sequence[int], name: str = "x"
    ) -> Target:
        r"""The density :math:`p(x) \propto e^{-E(x)}` of an energy of a batch of points.

        Args:
            energy: ``[chains, *event_shape] -> [chains]``; may be a module.
            event_shape: shape of one point.
            name: what the one site is called.
        """
        shape = tuple(int(size) for size in event_shape)
        parameter = next(energy.parameters(), None) if isinstance(energy, nn.Module) else None
        return cls(
            layout=((name, shape),),
            make_potential=_EnergyPotential(energy),
            dtype=None if parameter is None else parameter.dtype,
            device=None if parameter is None else parameter.device,
        )

    @classmethod
    def from_potential(
        cls,
        potential_fn: Callable[[dict[str, Tensor]], Tensor],
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Target:
        """The density ``exp(-potential_fn(values))`` of one chain's unconstrained ``values``.

        Args:
            potential_fn: takes a dictionary of tensors, returns a scalar tensor, as Pyro's
                ``potential_fn``.
            shapes: the shape of each entry of the dictionary.
            dtype: of the values.
            device: of the values.
        """
        return cls(
            layout=tuple((name, tuple(shapes[name])) for name in sorted(shapes)),
            make_potential=_FunctionPotential(potential_fn),
            dtype=dtype,
            device=device,
        )

    @classmethod
    def from_distribution(cls, name: str, fn: EnergyBased) -> Target:
        """The distribution of one site. Its chains are as many points as one likes; if points of
        its batch have densities of their own, any number of whole batches.

        Args:
            name: of the site.
            fn: the distribution.

        Raises:
            ValueError: if it is not continuous.
        """
        fn = fn if fn.is_conditional else fn.unexpanded()
        try:
            transform = biject_to(fn.support)
        except NotImplementedError as error:
            raise ValueError(
                f"site {name!r}: expected a support with a bijection from the reals, got "
                f"{fn.support}, where this kernel cannot move"
            ) from error
        like = fn.like
        shape = transform.inverse_shape(fn.shape())[len(fn.batch_shape) :]
        return cls(
            layout=((name, tuple(shape)),),
            make_potential=_DistributionPotential(fn, transform),
            transforms={name: transform.inv},
            dtype=like.dtype,
            device=like.device,
        )

    @property
    def size(self) -> int:
        """How many unconstrained numbers one chain has."""
        return sum(math.prod(shape) for _, shape in self.layout)

    def potential(self, vectorized: bool = True) -> Potential:
        """The potential of the target's own arguments."""
        return self.make_potential(self.layout, self.arguments, vectorized)

    def unflatten(self, position: Tensor) -> dict[str, Tensor]:
        """Splits ``position [*batch, size]`` into the unconstrained values of the sites."""
        return unflatten(self.layout, position)

    def flatten(self, values: Mapping[str, Tensor], batch: Sequence[int] = ()) -> Tensor:
        """Joins unconstrained values, each ``[*batch, *shape]``, into one ``[*batch, size]``.

        Raises:
            ValueError: if names or shapes are not those of the target.
        """
        expected = {name: (*batch, *shape) for name, shape in self.layout}
        got = {name: tuple(torch.as_tensor(value).shape) for name, value in values.items()}
        if expected != got:
            raise ValueError(
                "initial_params: expected unconstrained values of shapes "
                f"{_shown(expected)}, got {_shown(got)}"
                + (f"; the leading dimension is the {batch[0]} chains" if batch else "")
            )
        parts = [torch.as_tensor(values[name]) for name, _ in self.layout]
        flat = [part.detach().reshape((*batch, -1)) for part in parts]
        return torch.cat(flat, -1).to(self.device, self.dtype, copy=True)

    def start(self, value: Tensor) -> Tensor:
        """The position ``[chains, size]`` of values of the one site, ``[chains, *event]``."""
        ((name, shape),) = self.layout
        if name in self.transforms:
            value = self.transforms[name](value)
        return value.reshape((-1, math.prod(shape)))

    def constrain(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps unconstrained values ``[*batch, *shape]`` to the supports of their sites."""
        return {
            name: self.transforms[name].inv(value) if name in self.transforms else value
            for name, value in values.items()
        }

    def nonfinite_sites(self, position: Tensor) -> list[str]:
        """The sites at fault where the potential of one ``position [size]`` is not finite."""
        return [] if self._explain is None else self._explain(self.unflatten(position))


def unflatten(layout: Layout, position: Tensor) -> dict[str, Tensor]:
    sizes = [math.prod(shape) for _, shape in layout]
    parts = position.split(sizes, -1)
    batch = position.shape[:-1]
    return {
        name: part.reshape((*batch, *shape))
        for (name, shape), part in zip(layout, parts, strict=True)
    }


class _ModelPotential:
    def __init__(
        self,
        model: Callable[..., Any],
        enumerate_from: int | None,
        subsampled: Mapping[str, Minibatch] = {},
    ) -> None:
        self._model = model
        self._enumerate_from = enumerate_from
        self._subsampled = dict(subsampled)

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> Potential:
        args, kwargs = arguments

        def of_one_chain(position: Tensor, orders: Mapping[str, Tensor]) -> Tensor:
            values, enumerate_from = unflatten(layout, position), self._enumerate_from
            draws = {name: partial(self._subsampled[name].indices, x) for name, x in orders.items()}
            return potential_of_model(self._model, args, kwargs, values, enumerate_from, draws)

        return PerChain(of_one_chain, vectorized, self._draw_orders)

    def _draw_orders(self) -> dict[str, Tensor]:
        return {name: plate.order() for name, plate in self._subsampled.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ModelPotential) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class _EnergyPotential:
    def __init__(self, energy: Callable[[Tensor], Tensor]) -> None:
        self._energy = energy

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> Potential:
        ((_, shape),) = layout

        def of_all_chains(position: Tensor) -> Tensor:
            energy = self._energy(position.reshape((-1, *shape)))
            if energy.shape != position.shape[:1]:
                raise ValueError(
                    f"energy: expected one number per chain, shape {[len(position)]}, got "
                    f"{list(energy.shape)}"
                )
            return energy

        return Batched(of_all_chains)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EnergyPotential) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class _DistributionPotential:
    def __init__(self, fn: EnergyBased, transform: Transform) -> None:
        self._fn = fn
        self._transform = transform

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> Potential:
        ((_, shape),) = layout

        def of_all_chains(position: Tensor) -> Tensor:
            free = position.reshape((-1, *self._fn.batch_shape, *shape))
            value = self._transform(free)
            log_det = self._transform.log_abs_det_jacobian(free, value)
            density = self._fn.unnormalized_log_prob(value)
            energy: Tensor = -(density.flatten() + log_det.reshape(len(position), -1).sum(-1))
            return energy

        return Batched(of_all_chains)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _DistributionPotential) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class _FunctionPotential:
    def __init__(self, potential_fn: Callable[[dict[str, Tensor]], Tensor]) -> None:
        self._potential_fn = potential_fn

    def __call__(self, layout: Layout, arguments: Any, vectorized: bool) -> Potential:
        def of_one_chain(position: Tensor, common: Any) -> Tensor:
            return self._potential_fn(unflatten(layout, position))

        return PerChain(of_one_chain, vectorized)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FunctionPotential) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return "{" + ", ".join(f"{name!r}: {list(shape)}" for name, shape in shapes.items()) + "}"
