r"""A drift of particles, from what each sees of itself and of the others.

.. math:: v_i = u\Big(x_i,\; \frac1{n-1} \sum_{j \ne i} e_{ij}\Big)
   - \sum_a w_a(r_i)\, Z_a\, \hat r_{ia} + \kappa \sum_{j \ne i} \hat r_{ij}, \qquad
   e_{ij} = a\big(x_i,\; x_j,\; x_i - x_j,\; \|x_i - x_j\|\big) ,

where :math:`\hat r` are unit vectors along differences. The drift permutes with the
particles. Its fixed part has the cusps of Kato, without which the local energy is infinite where
charges meet: the drift of the hydrogen atom towards each nucleus, and half a unit apart for two
electrons of opposite spin. Weights :math:`w_a \propto 1 / r_{ia}`, of sum 1, leave at a nucleus its
own pull alone. The learned part begins at zero.

References:
    A. Barr, W. Gispen, A. Lamacraft, *Quantum ground states from reinforcement learning*, 2020,
    arXiv:2006.09044. T. Kato, *On the eigenfunctions of many-particle systems in quantum
    mechanics*, 1957, doi:10.1002/cpa.3160100201.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrogen.nn._points import perceptron
from pyrogen.nn.shapes import batch_shape, positive_ints

__all__ = ["PairDrift"]

_TINY = 1e-30  # of a squared distance


class PairDrift(nn.Module):
    """A drift ``v(x, t)`` of ``n`` particles in ``d`` dimensions, constant in time.

    Args:
        num_particles: ``n``.
        dim: ``d``, of space.
        width: hidden units.
        nuclei: ``[M, d]``, where particles have cusps; ``None`` for none.
        charges: ``[M]``, the slopes of these.
        pair_cusp: slope of the cusp of each pair, such as 0.5 for two electrons of opposite spin.
        trap: a fixed drift ``-trap * x`` besides, which keeps particles together.

    Attributes:
        in_shape: ``(n * d,)``, the coordinates of all particles, one after the other.

    Raises:
        ValueError: if a size is not positive, shapes do not fit, or there are nuclei without
            charges or charges without nuclei; on call, if the input does not end in ``in_shape``.

    Example:
        >>> helium = PairDrift(2, 3, nuclei=torch.zeros(1, 3), charges=torch.tensor([2.0]))
        >>> x = torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0, 4.0])
        >>> helium(x).detach() + 0.0  # two units towards the nucleus
        tensor([-2.,  0.,  0.,  0.,  0., -2.])
    """

    nuclei: Tensor | None
    charges: Tensor | None

    def __init__(
        self,
        num_particles: int,
        dim: int,
        width: int = 64,
        nuclei: Tensor | None = None,
        charges: Tensor | None = None,
        pair_cusp: float = 0.0,
        trap: float = 0.0,
    ) -> None:
        super().__init__()
        num_particles, dim, width = positive_ints([num_particles, dim, width], "sizes")
        self.num_particles, self.dim = num_particles, dim
        self.in_shape = self.out_shape = (num_particles * dim,)
        self.pair_cusp, self.trap = float(pair_cusp), float(trap)
        _check_nuclei(nuclei, charges, dim)
        self.register_buffer("nuclei", nuclei)
        self.register_buffer("charges", charges)
        centers = 0 if nuclei is None else len(nuclei)
        each = range(num_particles)
        self._others = [[j for j in each if j != i] for i in each]
        alone = num_particles == 1
        self.of_pair = None if alone else perceptron(3 * dim + 1, width, width)
        inside = dim + centers + (0 if alone else width)
        self.of_one = perceptron(inside, width, width, dim, gain=0.0)

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """The drift.

        Args:
            x: ``[*, n * d]``.
            t: not looked at.

        Returns:
            ``[*, n * d]``.
        """
        batch_shape(x, self.in_shape, "PairDrift")
        x = x.unflatten(-1, (self.num_particles, self.dim))
        known, drift = [x], -self.trap * x
        if self.nuclei is not None and self.charges is not None:
            apart = x.unsqueeze(-2) - self.nuclei
            distance = _length(apart)
            near = 1 / distance
            weight = self.charges.unsqueeze(-1) * near / near.sum(-2, keepdim=True)
            drift = drift - (weight * apart / distance).sum(-2)
            known.append(distance.squeeze(-1))
        if self.of_pair is not None:
            other = x[..., self._others, :]
            apart = x.unsqueeze(-2) - other
            distance = _length(apart)
            drift = drift + self.pair_cusp * (apart / distance).sum(-2)
            mine = x.unsqueeze(-2).expand_as(other)
            seen = self.of_pair(torch.cat([mine, other, apart, distance], -1))
            known.append(nn.functional.silu(seen).mean(-2))
        learned: Tensor = self.of_one(torch.cat(known, -1))
        return (drift + learned).flatten(-2)


def _length(x: Tensor) -> Tensor:
    return (x.square().sum(-1, keepdim=True) + _TINY).sqrt()


def _check_nuclei(nuclei: Tensor | None, charges: Tensor | None, dim: int) -> None:
    if nuclei is None and charges is None:
        return
    places = None if nuclei is None else list(nuclei.shape)
    strengths = None if charges is None else list(charges.shape)
    if places is None or len(places) != 2 or places[1] != dim or strengths != places[:1]:
        raise ValueError(
            f"nuclei, charges: expected positions [M, {dim}] and charges [M], got {places} and "
            f"{strengths}"
        )
