r"""The terms of the logarithm of a positive wave function.

Each is a function of the positions of ``n`` particles in ``d`` dimensions, symmetric in them, and
handed over with its gradient and Laplacian (:mod:`pyrogen.nn._jet`).

Where two charges meet, the potential is infinite, and only the cusp of Kato makes
:math:`H\psi / \psi` finite: :math:`\log \psi` has the slope :math:`-Z` in the distance to a
nucleus, and :math:`\tfrac12` in that of two electrons of opposite spin. Of a distance :math:`r`,
:math:`c(r) = (1 - e^{-br}) / b` has slope 1 at zero and is bounded, and :math:`s = r - c` is smooth
at zero and linear far out. So the cusps are fixed terms in :math:`c`, exact whatever else is
learned, and all other terms are made of :math:`s`, or of other smooth functions.

References:
    T. Kato, *On the eigenfunctions of many-particle systems in quantum mechanics*, 1957,
    doi:10.1002/cpa.3160100201. W. Heitler, F. London, *Wechselwirkung neutraler Atome und
    homöopolare Bindung nach der Quantenmechanik*, 1927, doi:10.1007/BF01397394.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyrogen.nn._conditioning import linear
from pyrogen.nn._jet import Jet
from pyrogen.nn.shapes import positive_ints

__all__ = ["Envelope", "Orbitals", "PairCusp", "SymmetricNetwork", "WaveTerm"]


class WaveTerm(nn.Module, ABC):
    """A term of ``log psi``.

    Args:
        num_particles: ``n``.
        dim: ``d``, of space.
    """

    def __init__(self, num_particles: int, dim: int) -> None:
        super().__init__()
        self.num_particles, self.dim = positive_ints([num_particles, dim], "num_particles, dim")

    @abstractmethod
    def forward(self, particles: Jet) -> Jet:
        """The term, ``[*]``, of positions ``[*, n, d]``."""


class Envelope(WaveTerm):
    r"""What keeps particles together in a trap,

    .. math:: -\tfrac12 a \sum_i r_i^2 \quad\text{or}\quad
       -a \sum_i \left(\sqrt{1 + r_i^2} - 1\right),

    a Gaussian or an exponential decay, with a learned :math:`a > 0`.

    Args:
        num_particles: ``n``.
        dim: ``d``, of space.
        decay: ``"gaussian"`` or ``"exponential"``.
        rate: :math:`a` at first.

    Raises:
        ValueError: if ``decay`` is neither, or a number is not positive.

    Example:
        >>> import torch
        >>> from pyrogen.nn import WaveFunction
        >>> envelope = WaveFunction(Envelope(2, 1, rate=2.0))
        >>> envelope.log_amplitude(torch.tensor([1.0, 2.0])).detach()
        tensor(-5.)
    """

    def __init__(
        self, num_particles: int, dim: int, decay: str = "gaussian", rate: float = 1.0
    ) -> None:
        super().__init__(num_particles, dim)
        if decay not in ("gaussian", "exponential"):
            raise ValueError(f"decay: expected 'gaussian' or 'exponential', got {decay!r}")
        self.decay = decay
        self.log_rate = nn.Parameter(torch.tensor(_log("rate", rate)))

    def forward(self, particles: Jet) -> Jet:
        """The term."""
        square = particles.square_norm()
        shape = square * 0.5 if self.decay == "gaussian" else square.rounded()
        return shape.sum(-1) * -self.log_rate.exp()


class Orbitals(WaveTerm):
    r"""One or two electrons about nuclei at :math:`R_a`, with the cusps at the nuclei,

    .. math:: \log \sum_{a,b} W_{ab}\, e^{-\zeta_a s(r_{1a}) - \zeta_b s(r_{2b})}
       - \sum_{i,a} Z_a\, c(r_{ia}) .

    With equal weights that is a product of molecular orbitals; without the diagonal, the covalent
    bond of Heitler and London, which is right at any separation. :math:`W > 0` (symmetric),
    :math:`\zeta` and the range of each :math:`c` are learned. One electron has weights :math:`W_a`.
    At :math:`\zeta = Z` a nucleus alone has its exact orbital :math:`e^{-Zr}`.

    Args:
        nuclei: ``[M, 3]``, in Bohr.
        charges: ``[M]``.
        num_electrons: 1, or 2 of opposite spin.

    Raises:
        ValueError: for shapes that do not fit, charges that are not positive, or more electrons,
            whose wave function is not positive.

    Example:
        >>> import torch
        >>> from pyrogen.nn import WaveFunction
        >>> hydrogen = WaveFunction(Orbitals(torch.zeros(1, 3), torch.ones(1), 1))
        >>> hydrogen(torch.tensor([4.0, 3.0, 0.0])).detach()[:2]  # -r / |r|
        tensor([-0.8000, -0.6000])
    """

    nuclei: Tensor
    charges: Tensor
    log_weight: Tensor

    def __init__(self, nuclei: Tensor, charges: Tensor, num_electrons: int = 2) -> None:
        super().__init__(num_electrons, 3)
        if num_electrons > 2:
            raise ValueError(
                "num_electrons: expected 1 or 2, because a wave function of more electrons changes "
                f"sign, got {num_electrons}"
            )
        nuclei = _centers(nuclei, 3, "nuclei")
        charges = torch.as_tensor(charges).to(nuclei)
        if charges.shape != nuclei.shape[:1] or not bool((charges > 0).all()):
            raise ValueError(
                f"charges: expected positive numbers [{len(nuclei)}], one for each nucleus, got "
                f"{charges}"
            )
        self.register_buffer("nuclei", nuclei.clone())
        self.register_buffer("charges", charges.clone())
        self.log_decay = nn.Parameter(charges.log())
        self.log_exponent = nn.Parameter(charges.log())
        weight = torch.zeros([len(nuclei)] * num_electrons).to(nuclei)
        if len(nuclei) > 1:
            self.log_weight = nn.Parameter(weight)
        else:  # a factor of psi alone
            self.register_buffer("log_weight", weight)

    def forward(self, particles: Jet) -> Jet:
        """The term."""
        near, rest = _apart(particles, self.nuclei).norm().cusp(self.log_decay.exp())
        orbitals = rest * -self.log_exponent.exp()
        weight = self.log_weight
        if self.num_particles == 1:
            orbitals = orbitals.sum(-2)
        else:
            orbitals = orbitals.each(_every_pair)
            weight = 0.5 * (weight + weight.T).flatten()
        return (orbitals + weight).logsumexp() + (near * -self.charges).sum(-2, -1)


class PairCusp(WaveTerm):
    r"""The cusps of pairs, :math:`\sum_{i<j} \kappa\, c(r_{ij})`.

    :math:`\kappa = \tfrac12` for electrons of opposite spin in three dimensions. The range of
    :math:`c` is learned.

    Args:
        num_particles: ``n``, at least 2.
        dim: ``d``, of space.
        slope: :math:`\kappa`.

    Raises:
        ValueError: if there is no pair.

    Example:
        >>> import torch
        >>> from pyrogen.nn import WaveFunction
        >>> x = torch.tensor([0.0, 0.0, 1e-6, 0.0, 0.0, -1e-6])
        >>> WaveFunction(PairCusp(2, 3))(x).detach()[[2, 5]].round(decimals=4)
        tensor([ 0.5000, -0.5000])
    """

    def __init__(self, num_particles: int, dim: int, slope: float = 0.5) -> None:
        super().__init__(num_particles, dim)
        if num_particles < 2:
            raise ValueError(f"num_particles: expected at least 2, got {num_particles}")
        self.slope = float(slope)
        self.log_decay = nn.Parameter(torch.tensor(0.0))
        first, second = torch.triu_indices(num_particles, num_particles, 1).tolist()
        self._pairs = first, second

    def forward(self, particles: Jet) -> Jet:
        """The term."""
        first, second = self._pairs
        apart = particles.each(lambda x: x[..., first, :] - x[..., second, :])
        near, _ = apart.norm().cusp(self.log_decay.exp())
        return near.sum(-1) * self.slope


class SymmetricNetwork(WaveTerm):
    r"""A smooth function of all particles that does not tell them apart,

    .. math:: m_i = \sum_{j \ne i} \tanh\left(A\, o_i + B\, o_j + C\, o_{ij} + d\right), \qquad
       \sum_i w \cdot \tanh(V m_i + e),

    where :math:`o_i` is what is known of one particle, and :math:`o_{ij}` of a pair. These are the
    rounded distances :math:`\sqrt{1 + r^2} - 1`, to the centers and of the pair, smooth where
    :math:`r = 0`; without centers :math:`o_i` are the coordinates. One particle has
    :math:`m = \tanh(A\, o + d)`. The last layer begins at zero.

    Args:
        num_particles: ``n``.
        dim: ``d``, of space.
        centers: ``[M, d]``, such as nuclei or the middle of a trap; the function then turns with
            them. ``None`` where coordinates themselves are to be seen.
        width: hidden units.
        num_layers: hidden layers.

    Raises:
        ValueError: if a size is not positive or centers have another dimension.

    References:
        M. Zaheer et al., *Deep sets*, 2017, arXiv:1703.06114.

    Example:
        >>> import torch
        >>> from pyrogen.nn import WaveFunction
        >>> network = SymmetricNetwork(3, 2, centers=torch.zeros(1, 2))
        >>> _ = torch.nn.init.normal_(network.last.weight)
        >>> f, x = WaveFunction(network), torch.randn(7, 3, 2)
        >>> swapped = f.log_amplitude(x[:, [2, 0, 1]].flatten(1))
        >>> torch.allclose(swapped, f.log_amplitude(x.flatten(1)), atol=1e-5)
        True
    """

    def __init__(
        self,
        num_particles: int,
        dim: int,
        centers: Tensor | None = None,
        width: int = 48,
        num_layers: int = 2,
    ) -> None:
        super().__init__(num_particles, dim)
        width, num_layers = positive_ints([width, num_layers], "width, num_layers")
        centers = None if centers is None else _centers(centers, dim, "centers").clone()
        self.register_buffer("centers", centers)
        size = dim if centers is None else len(centers)
        self.of_one = linear(size, width)
        self.of_other = linear(size, width, bias=False) if num_particles > 1 else None
        self.of_pair = linear(1, width, bias=False) if num_particles > 1 else None
        self.layers = nn.ModuleList(linear(width, width) for _ in range(num_layers - 1))
        self.last = linear(width, 1, bias=False)
        nn.init.zeros_(self.last.weight)
        each = range(num_particles)
        self._others = [[j for j in each if j != i] for i in each]

    def forward(self, particles: Jet) -> Jet:
        """The term."""
        hidden = self._first(particles)
        for layer in self.layers:
            hidden = hidden.affine(layer.weight, layer.bias).tanh()  # type: ignore[arg-type]
        return hidden.affine(self.last.weight).sum(-2, -1)

    def _first(self, particles: Jet) -> Jet:
        known = particles
        if self.centers is not None:
            known = _apart(particles, self.centers).square_norm().rounded()  # type: ignore[arg-type]
        one = known.affine(self.of_one.weight, self.of_one.bias)
        if self.of_other is None or self.of_pair is None:
            return one.tanh()
        others = self._others
        other = known.affine(self.of_other.weight).each(lambda h: h[..., others, :])
        apart = particles.each(lambda x: x.unsqueeze(-2) - x[..., others, :])
        pair = apart.square_norm().rounded().each(lambda r: r.unsqueeze(-1))
        mine = one.each(lambda h: h.unsqueeze(-2))
        return (mine + other + pair.affine(self.of_pair.weight)).tanh().sum(-2)


def _apart(particles: Jet, centers: Tensor) -> Jet:
    """From each center to each particle, ``[*, n, M, d]``."""
    shape = (len(centers), centers.shape[-1])
    each = particles.each(lambda x: x.unsqueeze(-2).expand(*x.shape[:-1], *shape))
    return each + -centers


def _every_pair(orbitals: Tensor) -> Tensor:
    """Sums of an entry for each of two particles, ``[*, 2, M] -> [*, M * M]``."""
    first, second = orbitals.unbind(-2)
    return (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)


def _centers(centers: Tensor, dim: int, name: str) -> Tensor:
    if centers.dim() != 2 or centers.shape[0] == 0 or centers.shape[1] != dim:
        raise ValueError(f"{name}: expected positions [M, {dim}], got {list(centers.shape)}")
    return centers


def _log(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return math.log(value)
