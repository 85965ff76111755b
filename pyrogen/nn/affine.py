r"""Affine maps by weights that are arguments, and weights that are drawn for each datum anew.

A matrix :math:`W` of shape ``[in + 1, out]`` holds the weights and, as its last row, the bias,

.. math:: a = [x, 1]\, W .

If its elements are independent and normal, :math:`W_{ij} \sim N(M_{ij}, S_{ij}^2)`, so is the image
of a datum,

.. math:: a_j \sim N\Big(\sum_i [x, 1]_i M_{ij},\ \sum_i [x, 1]_i^2 S_{ij}^2\Big) .

To draw it (local reparametrisation) is to draw a matrix for each datum rather than one for all. The
mean over :math:`W` of a sum over data is the same; the variance of its estimate is lower, because
the data no longer err together.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine", "localized"]

_LAW = "_law_of_local_weights"


def localized(weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Marks weights as drawn from independent normal laws, for :func:`affine` to draw afresh.

    The mark stays with this tensor; copies, slices and stacks of it are plain weights.

    Args:
        weights: ``[*particles, in + 1, out]``, a draw.
        loc: ``[in + 1, out]``, the means.
        scale: ``[in + 1, out]``, the standard deviations.

    Returns:
        The same tensor.

    References:
        D. P. Kingma, T. Salimans, M. Welling, *Variational dropout and the local
        reparameterization trick*, 2015, arXiv:1506.02557.

    Example:
        >>> loc, scale = torch.zeros(3, 4), torch.ones(3, 4)
        >>> weights = localized(torch.randn(3, 4), loc, scale)
        >>> affine(torch.ones(5, 2), weights).std(0).gt(0).all()  # the same input five times
        tensor(True)
    """
    setattr(weights, _LAW, (loc, scale))
    return weights


def affine(x: Tensor, weights: Tensor) -> Tensor:
    """The affine map ``[x, 1] W`` of a batch of data.

    Args:
        x: ``[*, n, in]``.
        weights: ``[in + 1, out]``; or a draw for each particle, ``[*particles, 1, in + 1, out]``,
            with 1 in the place of the data, as Pyro shapes what stands outside their plate.

    Returns:
        ``[*, n, out]``.

    Raises:
        ValueError: if the weights have another size than 1 in the place of the data.

    Example:
        >>> affine(torch.tensor([[2.0]]), torch.tensor([[3.0], [1.0]]))
        tensor([[7.]])
    """
    law = getattr(weights, _LAW, None)
    if weights.dim() > 2:
        weights = without_plate(weights, 2)
    if law is None:
        return _affine(x, weights)
    loc, scale = law
    mean, variance = _affine(x, loc), _affine(x.square(), scale.square())
    shape = torch.broadcast_shapes(mean.shape, (*weights.shape[:-2], 1, 1))
    return mean + variance.sqrt() * torch.randn(shape, dtype=x.dtype, device=x.device)


def without_plate(weights: Tensor, event_dim: int) -> Tensor:
    """Drops the dimension of the data's plate, outside of which weights stand.

    Args:
        weights: ``[*particles, 1, *event]``.
        event_dim: number of dimensions of the event.

    Returns:
        ``[*particles, *event]``.

    Raises:
        ValueError: if that dimension is not of size 1.
    """
    if weights.shape[-event_dim - 1] != 1:
        raise ValueError(
            f"weights: expected batch shape [..., 1], got {list(weights.shape[:-event_dim])}: they "
            "are shared by the data and stand outside of their plate; Predictive needs "
            "parallel=False"
        )
    return weights.squeeze(-event_dim - 1)


def _affine(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[..., :-1, :] + weights[..., -1:, :]
