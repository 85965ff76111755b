r"""The Ising and Potts models on periodic or free lattices.

.. math:: p(s) = \frac1Z \exp\Big(K \sum_{(i,j)} s_i s_j + H \sum_i s_i\Big), \quad s_i = \pm 1,
   \qquad p(x) = \frac1Z \exp\Big(K \sum_{(i,j)} [x_i = x_j]\Big), \quad x_i \in \{0..q-1\}

with a bond between nearest neighbours. On the periodic square lattice without a field the
normaliser of the Ising model is known in closed form, a measure for everything that estimates one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrogen.checks import check_data
from pyrogen.distributions import (
    CategoricalUnits,
    InteractionGraph,
    MarkovField,
    SpinUnits,
    Units,
)
from pyrogen.models.flow import num_events, refuse_num_samples

__all__ = ["Ising", "Potts"]

CRITICAL_COUPLING = 0.5 * math.log(1 + math.sqrt(2))


class _Lattice(PyroModule):
    """A Markov field on a lattice, all bonds of one strength."""

    def __init__(
        self,
        shape: Sequence[int],
        units: Units,
        coupling: float,
        field: Tensor,
        periodic: bool,
        sampler: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.units = units
        self.periodic = periodic
        self.graph = InteractionGraph.lattice(self.shape, periodic)
        self.coupling = nn.Parameter(torch.tensor(float(coupling)))
        self.field = nn.Parameter(field)
        self.sampler = sampler
        self.event_shape = (self.graph.num_sites,)

    def distribution(self) -> MarkovField:
        """Returns the density of one configuration, known up to a constant."""
        field = self.field.expand(self.graph.num_sites, *self.field.shape).flatten()
        return MarkovField(self.graph, self.coupling, field, self.units, self.sampler)

    def forward(self, data: Tensor | None = None, num_samples: int | None = None) -> Tensor:
        """Scores configurations, or draws with the sampler.

        Args:
            data: ``[n, sites]``, row by row, or ``None`` to draw.
            num_samples: how many to draw; ``None`` means one. Only without data.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, sites]``.
        """
        if data is None:
            size = num_events(num_samples)
        else:
            refuse_num_samples(num_samples)
            check_data(data, self.event_shape)
            size = data.shape[-2]
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", self.distribution(), obs=data)
        return x


class Ising(_Lattice):
    r"""Ising model on a lattice as a Pyro model with site ``"x"`` in plate ``"data"``.

    It is sampled by :class:`pyrogen.kernels.Gibbs`. Coupling and field are parameters, which
    ``losses.ContrastiveDivergence(kernels.Gibbs())`` fits to configurations.

    Args:
        shape: sizes of the lattice, in any number of dimensions.
        coupling: :math:`K`, the interaction over the temperature; in two dimensions the transition
            is at :math:`\log(1 + \sqrt 2) / 2 = 0.44069`.
        field: :math:`H`.
        periodic: the lattice has no border.
        sampler: how ``model(None)`` draws, such as :class:`pyrogen.kernels.ShortRun`.

    Attributes:
        event_shape: ``(sites,)``, row by row.

    References:
        E. Ising, *Beitrag zur Theorie des Ferromagnetismus*, 1925. B. Kaufman, *Crystal statistics
        II: partition function evaluated by spinor analysis*, 1949, doi:10.1103/PhysRev.76.1232.

    Example:
        >>> model = Ising((4, 4), coupling=0.4406868)
        >>> model.exact_log_z()
        tensor(15.5219)
        >>> model.distribution().exact_log_z()  # by enumeration
        tensor(15.5219, grad_fn=...)
    """

    def __init__(
        self,
        shape: Sequence[int],
        coupling: float = CRITICAL_COUPLING,
        field: float = 0.0,
        periodic: bool = True,
        sampler: Callable[..., Tensor] | None = None,
    ) -> None:
        start = torch.tensor(float(field))
        super().__init__(shape, SpinUnits(), coupling, start, periodic, sampler)

    def exact_log_z(self) -> Tensor:
        """The log-normaliser of a periodic square lattice without a field, in closed form.

        Returns:
            a tensor of shape ``[]``, computed in double precision.

        Raises:
            ValueError: if there is a border, a field, a negative coupling, or if the lattice does
                not have two dimensions.
        """
        coupling, field = float(self.coupling.detach()), float(self.field.detach())
        if not (self.periodic and len(self.shape) == 2 and field == 0 and coupling >= 0):
            raise ValueError(
                "expected a periodic lattice of two dimensions with coupling >= 0 and no field, "
                f"got shape {self.shape}, periodic={self.periodic}, coupling {coupling:.6g}, field "
                f"{field:.6g}; estimate log Z by diagnostics.ais"
            )
        return torch.tensor(_kaufman(*self.shape, coupling), dtype=self.coupling.dtype)


class Potts(_Lattice):
    r"""Potts model on a lattice as a Pyro model with site ``"x"`` in plate ``"data"``.

    It is sampled by :class:`pyrogen.kernels.Gibbs`.

    Args:
        shape: sizes of the lattice, in any number of dimensions.
        num_states: :math:`q`, how many states a site has.
        coupling: :math:`K`; on the square lattice the transition is at :math:`\log(1 + \sqrt q)`,
            which is the default.
        periodic: the lattice has no border.
        sampler: how ``model(None)`` draws, such as :class:`pyrogen.kernels.ShortRun`.

    Attributes:
        event_shape: ``(sites,)``, row by row; values are int64.

    References:
        R. B. Potts, *Some generalized order-disorder transformations*, 1952,
        doi:10.1017/S0305004100027419.

    Example:
        >>> import torch
        >>> potts = Potts((3, 3), num_states=2, coupling=0.8)
        >>> ising = Ising((3, 3), coupling=0.4)  # bonds are K or -K there, 2K or 0 here
        >>> difference = potts.distribution().exact_log_z() - ising.exact_log_z()
        >>> bool(torch.isclose(difference, torch.tensor(18 * 0.4)))
        True
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_states: int,
        coupling: float | None = None,
        periodic: bool = True,
        sampler: Callable[..., Tensor] | None = None,
    ) -> None:
        units = CategoricalUnits(num_states)
        start = math.log(1 + math.sqrt(num_states)) if coupling is None else coupling
        super().__init__(shape, units, start, torch.zeros(num_states), periodic, sampler)


def _kaufman(rows: int, columns: int, coupling: float) -> float:
    r"""Kaufman's formula for the log-normaliser of the periodic lattice.

    .. math:: Z = \tfrac12 (2 \sinh 2K)^{mn/2} \Big( \prod_{r\,\text{odd}} 2 \cosh \tfrac m2
        \gamma_r + \prod_{r\,\text{odd}} 2 \sinh \tfrac m2 \gamma_r + \prod_{r\,\text{even}} 2 \cosh
        \tfrac m2 \gamma_r + \prod_{r\,\text{even}} 2 \sinh \tfrac m2 \gamma_r \Big)

    with :math:`\cosh \gamma_r = \cosh 2K \coth 2K - \cos(\pi r / n)` and, of either sign,
    :math:`\gamma_0 = 2K + \log \tanh K`.
    """
    sites = rows * columns
    if coupling == 0:
        return sites * math.log(2)
    double = 2 * coupling
    angle = math.pi * torch.arange(2 * columns, dtype=torch.float64) / columns
    gamma = torch.acosh(math.cosh(double) / math.tanh(double) - angle.cos())
    gamma[0] = double + math.log(math.tanh(coupling))
    half = 0.5 * rows * gamma
    log_cosh = half.abs() + softplus(-2 * half.abs())  # of 2 cosh
    log_sinh = half.abs() + torch.log(-torch.expm1(-2 * half.abs()))
    terms = torch.stack([x[r::2].sum() for x in (log_cosh, log_sinh) for r in (1, 0)])
    signs = torch.tensor([1.0, 1.0, 1.0, float(torch.sign(gamma[0]))], dtype=torch.float64)
    largest = terms.max()
    total = largest + torch.log((signs * (terms - largest).exp()).sum())
    return float(total) + 0.5 * sites * math.log(2 * math.sinh(double)) - math.log(2)
