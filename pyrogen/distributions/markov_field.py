r"""Markov random fields of pairs: units on a graph, each bound to its neighbours.

.. math:: p(x) = \frac1Z \prod_i h(x_i)\, \exp\Big(\sum_i \phi(x_i) \cdot \eta_i
   + \sum_{(i,j) \in E} J_{ij}\, \phi(x_i) \cdot \phi(x_j)\Big)

With spins on a lattice this is the Ising model, with categorical units the Potts model, with
Bernoulli units and all pairs a Boltzmann machine without hidden units. Sites of one colour, none of
them neighbours, are independent given the rest.

References:
    E. Ising, *Beitrag zur Theorie des Ferromagnetismus*, 1925. R. B. Potts, *Some generalized
    order-disorder transformations*, 1952. J. Besag, *Spatial interaction and the statistical
    analysis of lattice systems*, 1974.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from pyrogen.distributions.energy import EnergyBased
from pyrogen.distributions.harmonium import Harmonium
from pyrogen.distributions.units import Units, as_units

__all__ = ["InteractionGraph", "MarkovField"]

_MOST_BITS = 20


class InteractionGraph:
    """Which sites are bound to which, and a colouring in which no neighbours share a colour.

    Args:
        edges: ``[edges, 2]``, pairs of sites. A pair that occurs twice is bound twice.
        num_sites: how many sites; by default up to the largest in ``edges``.

    Attributes:
        edges: as given.
        num_sites: how many sites there are.
        colours: the sites of each colour.

    Raises:
        ValueError: if an edge is not of two different sites.

    Example:
        >>> square = InteractionGraph.lattice((4, 4))
        >>> square.num_sites, len(square.edges), len(square.colours)
        (16, 32, 2)
        >>> len(InteractionGraph(torch.tensor([[0, 1], [1, 2], [2, 0]])).colours)
        3
    """

    def __init__(self, edges: Tensor, num_sites: int | None = None) -> None:
        if edges.dim() != 2 or edges.shape[1] != 2 or edges.is_floating_point() or not len(edges):
            raise ValueError(
                f"edges: expected integers [edges, 2], got {edges.dtype} {list(edges.shape)}"
            )
        largest = int(edges.max()) + 1
        self.num_sites = largest if num_sites is None else int(num_sites)
        if int(edges.min()) < 0 or largest > self.num_sites or (edges[:, 0] == edges[:, 1]).any():
            raise ValueError(
                f"edges: expected pairs of two different sites 0..{self.num_sites - 1}, got "
                f"{edges.min().item()}..{largest - 1}, or a site bound to itself"
            )
        self.edges = edges.long()
        self.neighbours, self.bonds = self._tables()
        self.colours = self._coloured()

    @classmethod
    def lattice(cls, shape: Sequence[int], periodic: bool = True) -> InteractionGraph:
        """A cubic lattice in any number of dimensions; sites are numbered row by row.

        Args:
            shape: how many sites along each dimension.
            periodic: bind the last site along a dimension to the first.

        Raises:
            ValueError: if a size is not positive, or 1 and periodic.
        """
        sizes = tuple(int(size) for size in shape)
        if min(sizes, default=0) < (2 if periodic else 1):
            raise ValueError(f"shape: expected sizes of at least 2, got {tuple(shape)}")
        sites = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
        pairs = []
        for axis, size in enumerate(sizes):
            ahead = sites.roll(-1, axis)
            kept = size if periodic else size - 1
            one, other = (x.narrow(axis, 0, kept).flatten() for x in (sites, ahead))
            pairs.append(torch.stack([one, other], -1))
        return cls(torch.cat(pairs), sites.numel())

    def to(self, device: torch.device) -> InteractionGraph:
        """The graph on a device; itself, if it is there."""
        if self.edges.device == device:
            return self
        moved = copy.copy(self)
        moved.edges, moved.neighbours, moved.bonds = (
            x.to(device) for x in (self.edges, self.neighbours, self.bonds)
        )
        moved.colours = tuple(sites.to(device) for sites in self.colours)
        return moved

    def _tables(self) -> tuple[Tensor, Tensor]:
        """The neighbours of each site ``[sites, degree]``, and the edges that lead there.

        A site of fewer neighbours has itself for the rest, by an edge that is none: the last.
        """
        around: list[list[tuple[int, int]]] = [[] for _ in range(self.num_sites)]
        for bond, (one, other) in enumerate(self.edges.tolist()):
            around[one].append((other, bond))
            around[other].append((one, bond))
        degree, none = max(map(len, around)), len(self.edges)
        rows = [each + [(site, none)] * (degree - len(each)) for site, each in enumerate(around)]
        table = torch.tensor(rows, device=self.edges.device)
        return table[..., 0].contiguous(), table[..., 1].contiguous()

    def _coloured(self) -> tuple[Tensor, ...]:
        """Breadth first, each site the first colour that is free: two, where two are enough."""
        colour = [-1] * self.num_sites
        neighbours = [set(row) - {site} for site, row in enumerate(self.neighbours.tolist())]
        for start in range(self.num_sites):
            waiting = [start] if colour[start] < 0 else []
            for site in waiting:  # grows as it goes
                if colour[site] < 0:
                    taken = {colour[other] for other in neighbours[site]}
                    colour[site] = next(c for c in itertools.count() if c not in taken)
                    waiting.extend(sorted(other for other in neighbours[site] if colour[other] < 0))
        colours = torch.tensor(colour, device=self.edges.device)
        return tuple((colours == c).nonzero().flatten() for c in range(int(colours.max()) + 1))


class MarkovField(EnergyBased):
    r"""A pairwise Markov random field, an energy-based distribution.

    Args:
        graph: which sites are bound.
        coupling: :math:`J`, ``[]`` or ``[edges]``.
        bias: :math:`\eta`, ``[sites * features]``: one feature a site, but for categorical units,
            which have one a level.
        units: ``"spin"``, ``"bernoulli"``, or :class:`~pyrogen.distributions.Units` of finitely
            many states.
        sampler: draws, as for :class:`~pyrogen.distributions.EnergyBased`.
        validate_args: check values; ``None`` follows Pyro's setting.

    Raises:
        ValueError: if shapes do not fit, or units are not discrete.

    Example:
        >>> ring = InteractionGraph.lattice((6,))
        >>> ising = MarkovField(ring, torch.tensor(0.5), torch.zeros(6))
        >>> ising.unnormalized_log_prob(torch.ones(6))  # six bonds
        tensor(3.)
        >>> k = torch.tensor(0.5)
        >>> torch.allclose(ising.exact_log_z(), ((2 * k.cosh()) ** 6 + (2 * k.sinh()) ** 6).log())
        True
    """

    def __init__(
        self,
        graph: InteractionGraph,
        coupling: Tensor,
        bias: Tensor,
        units: str | Units = "spin",
        sampler: Callable[[Any, Size], Tensor] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.graph, self.coupling, self.bias = graph.to(bias.device), coupling, bias
        self.units = as_units(units)
        sites, bonds = graph.num_sites, len(graph.edges)
        if bias.dim() != 1 or self.units.num_units(len(bias)) != sites:
            raise ValueError(
                f"bias: expected [{self.units.size(sites)}] for {sites} sites, got "
                f"{list(bias.shape)}"
            )
        if coupling.shape not in {(), (bonds,)}:
            raise ValueError(f"coupling: expected [] or [{bonds}], got {list(coupling.shape)}")
        if not self.units.discrete:
            raise ValueError(f"units: expected units of finitely many states, got {units!r}")
        super().__init__(
            self._tilt, self.units.law(bias), sampler=sampler, validate_args=validate_args
        )

    def _tilt(self, value: Tensor) -> Tensor:
        return -self.interaction(value) - self.units.log_partition(self.bias)

    def features(self, value: Tensor) -> Tensor:
        """The features of each site, ``[*, sites, features of one]``."""
        flat = self.units.features(value, self.bias)
        features: Tensor = flat.unflatten(-1, (self.graph.num_sites, -1))
        return features

    def interaction(self, value: Tensor) -> Tensor:
        """What the bonds add to the log-density, ``[*]``."""
        features = self.features(value)
        one, other = self.graph.edges.unbind(-1)
        alike = (features[..., one, :] * features[..., other, :]).sum(-1)
        return (self.coupling * alike).sum(-1)

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """The exponent above, ``[*]``."""
        own = self.units.features(value, self.bias) @ self.bias
        return own + self.interaction(value)

    def natural(self, value: Tensor, sites: Tensor) -> Tensor:
        """The natural parameters of some sites given all others, ``[*, sites * features]``."""
        features = self.features(value)
        around = features[..., self.graph.neighbours[sites], :]
        bonds = self.coupling.expand(len(self.graph.edges))
        strength = torch.cat([bonds, bonds.new_zeros(1)])[self.graph.bonds[sites]]
        own = self.bias.unflatten(0, (self.graph.num_sites, -1))[sites]
        natural: Tensor = own + (strength.unsqueeze(-1) * around).sum(-2)
        return natural.flatten(-2)

    def given(self, value: Tensor, sites: Tensor) -> Any:
        """The law of sites that are not neighbours, given all others."""
        return self.units.law(self.natural(value, sites))

    def sweep(self, value: Tensor, backward: bool = False) -> Tensor:
        """Draws every site once given the others, colour by colour: Gibbs sampling.

        Args:
            value: ``[*, sites]``.
            backward: take the colours in the opposite order, which reverses the transition.
        """
        for sites in self.graph.colours[:: -1 if backward else 1]:
            drawn = self.units.draw(self.natural(value, sites))
            value = value.index_copy(-1, sites, drawn.to(value.dtype))
        return value

    def tempered(self, beta: float | Tensor, bias: Tensor | None = None) -> MarkovField:
        r"""A field between one without bonds and this one: couplings :math:`\beta J`.

        Args:
            beta: 0 for independent sites, 1 for this field.
            bias: the natural parameters of the independent sites; by default those of this field.
        """
        start = self.bias if bias is None else bias
        changed = start + beta * (self.bias - start)
        return MarkovField(self.graph, beta * self.coupling, changed, self.units)

    def harmonium(self) -> Harmonium:
        """The same law as a machine of two sides, the sites of one colour against the others.

        Raises:
            ValueError: if the graph needs more than two colours.
        """
        if len(self.graph.colours) != 2:
            raise ValueError(
                f"expected a graph of two colours, got {len(self.graph.colours)}; a periodic "
                "lattice has two if its sizes are even"
            )
        width = len(self.bias) // self.graph.num_sites
        bonds = self.coupling.expand(len(self.graph.edges))
        one, other = self.graph.edges.unbind(-1)
        dense = bonds.new_zeros(self.graph.num_sites, self.graph.num_sites)
        dense = dense.index_put((one, other), bonds, accumulate=True)
        dense = dense + dense.T
        first, second = self.graph.colours
        eye = torch.eye(width, dtype=bonds.dtype, device=bonds.device)
        bias = self.bias.unflatten(0, (-1, width))
        return Harmonium(
            torch.kron(dense[first][:, second].contiguous(), eye),
            bias[first].flatten(),
            bias[second].flatten(),
            self.units,
            self.units,
        )

    def exact_log_z(self) -> Tensor:
        """The log-normaliser, by enumeration: of one colour of two, or of all sites.

        Raises:
            ValueError: if that has more than 2^20 states.
        """
        if len(self.graph.colours) == 2:
            return self.harmonium().exact_log_z()
        return self.unnormalized_log_prob(self._states()).logsumexp(0)

    def exact_sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Independent draws, by enumeration, ``[*sample_shape, *batch, sites]``.

        Raises:
            ValueError: as for :meth:`exact_log_z`.
        """
        shape = Size((*sample_shape, *self.batch_shape))
        with torch.no_grad():
            if len(self.graph.colours) == 2:
                machine = self.harmonium()
                first = machine.exact_sample(shape)
                second = machine.other_units.draw(machine.other_natural(first))
                order = torch.cat(self.graph.colours).argsort()
                return torch.cat([first, second], -1)[..., order]
            states = self._states()
            weights = self.unnormalized_log_prob(states).softmax(0)
            drawn = torch.multinomial(weights, max(shape.numel(), 1), True)
            return states[drawn].reshape(*shape, -1)

    def _states(self) -> Tensor:
        bits = self.units.log_num_states(len(self.bias))
        if bits > _MOST_BITS:
            raise ValueError(
                f"expected at most 2^{_MOST_BITS} states to enumerate, got 2^{bits:.4g}; estimate "
                "log Z by diagnostics.ais"
            )
        return self.units.states(len(self.bias), self.bias)
