"""Flows by the names that the field knows them by.

Each function returns a :class:`~pyrogen.models.Flow`, or with ``context_dim > 0`` a
:class:`~pyrogen.models.ConditionalFlow`. Their networks start at or near zero, so that the density
starts near its base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyrogen.models.conditional_flow import ConditionalFlow
from pyrogen.models.flow import Flow
from pyrogen.nn import TimeMLP
from pyrogen.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ContinuousFlow,
    DiagonalScaling,
    Inverse,
    InvertibleConvolution,
    Logit,
    MultiScale,
    SplineCoupling,
    Split,
    Squeeze,
)
from pyrogen.transforms._networks import coupling_conv, masked

__all__ = ["ffjord", "glow", "iaf", "maf", "nice", "nsf", "real_nvp"]


def nice(
    dim: int, num_layers: int = 4, hidden: Sequence[int] = (64, 64), **options: Any
) -> Flow | ConditionalFlow:
    """Additive couplings of alternating halves and one diagonal scaling.

    Args:
        dim: size of a datum, at least 2.
        num_layers: number of couplings.
        hidden: widths of the hidden layers of each network.
        options: shared by all of these functions. ``context_dim``: size of the context that every
            layer takes, 0 (the default) for none. ``levels``: number of levels of discrete data,
            see :class:`~pyrogen.models.Flow`. ``boundary``: if given, data lie
            in [0, 1] and the flow ends with the inverse of :class:`~pyrogen.transforms.Logit` with
            this margin. ``base``: a base other than the standard normal.

    Raises:
        ValueError: if a size is not positive or there are fewer than 2 dimensions.

    References:
        L. Dinh, D. Krueger, Y. Bengio, *NICE: non-linear independent components estimation*, 2014,
        arXiv:1410.8516.

    Example:
        >>> nice(3, hidden=(16,))(None, num_samples=5).shape
        torch.Size([5, 3])
    """
    context_dim = _context_dim(options)
    layers: list[Any] = []
    for swap in _alternate(dim, num_layers):
        layers.append(AdditiveCoupling(dim, None, dim // 2, swap, context_dim, hidden))
    return _program((dim,), [*layers, DiagonalScaling(dim)], options)


def real_nvp(
    dim: int, num_layers: int = 6, hidden: Sequence[int] = (64, 64), **options: Any
) -> Flow | ConditionalFlow:
    """Affine couplings of alternating halves.

    Args:
        dim: size of a datum, at least 2.
        num_layers: number of couplings.
        hidden: widths of the hidden layers of each network.
        options: ``context_dim``, ``levels``, ``boundary`` and ``base``; see :func:`nice`.

    Raises:
        ValueError: if a size is not positive or there are fewer than 2 dimensions.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, *Density estimation using Real NVP*, 2016,
        arXiv:1605.08803.

    Example:
        >>> model = real_nvp(2, context_dim=3)
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    context_dim = _context_dim(options)
    layers = []
    for swap in _alternate(dim, num_layers):
        layers.append(AffineCoupling(dim, None, dim // 2, swap, context_dim, hidden))
    return _program((dim,), layers, options)


def nsf(
    dim: int,
    num_layers: int = 4,
    hidden: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 5.0,
    **options: Any,
) -> Flow | ConditionalFlow:
    """Neural spline flow: spline couplings of alternating halves, with linear maps between.

    Args:
        dim: size of a datum, at least 2.
        num_layers: number of couplings, each after a linear map.
        hidden: widths of the hidden layers of each network.
        num_bins: bins of each spline.
        bound: the splines bend between ``-bound`` and ``bound``.
        options: ``context_dim``, ``levels``, ``boundary`` and ``base``; see :func:`nice`.

    Raises:
        ValueError: if a size is not positive or there are fewer than 2 dimensions.

    References:
        C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, *Neural spline flows*, 2019,
        arXiv:1906.04032.

    Example:
        >>> nsf(3, num_layers=2, hidden=(16,))(None, num_samples=5).shape
        torch.Size([5, 3])
    """
    context_dim = _context_dim(options)
    layers: list[Any] = []
    for swap in _alternate(dim, num_layers):
        layers.append(InvertibleConvolution(dim))
        layers.append(
            SplineCoupling(dim, None, num_bins, bound, dim // 2, swap, context_dim, hidden)
        )
    return _program((dim,), layers, options)


def maf(
    dim: int, num_layers: int = 5, hidden: Sequence[int] = (64, 64), **options: Any
) -> Flow | ConditionalFlow:
    """Masked autoregressive layers, the order reversed from one to the next.

    The density of data takes one pass; draws are made by parallel iteration.

    Args:
        dim: size of a datum, at least 2.
        num_layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each network, each at least ``dim``.
        options: ``context_dim``, ``levels``, ``boundary`` and ``base``; see :func:`nice`.

    Raises:
        ValueError: if a size is not positive or there are fewer than 2 dimensions.

    References:
        G. Papamakarios, T. Pavlakou, I. Murray, *Masked autoregressive flow for density
        estimation*, 2017, arXiv:1705.07057.

    Example:
        >>> maf(3, hidden=(16,)).distribution().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    return _program((dim,), _autoregressive(dim, num_layers, hidden, options, False), options)


def iaf(
    dim: int, num_layers: int = 5, hidden: Sequence[int] = (64, 64), **options: Any
) -> Flow | ConditionalFlow:
    """Inverse autoregressive layers, the order reversed from one to the next.

    Draws, and the density of its own draws, take one pass; the density of data is computed by
    parallel iteration. As a posterior see :class:`pyrogen.guides.AmortizedFlow`.

    Args:
        dim: size of a datum, at least 2.
        num_layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each network, each at least ``dim``.
        options: ``context_dim``, ``levels``, ``boundary`` and ``base``; see :func:`nice`.

    Raises:
        ValueError: if a size is not positive or there are fewer than 2 dimensions.

    References:
        D. P. Kingma et al., *Improving variational inference with inverse autoregressive flow*,
        2016, arXiv:1606.04934.

    Example:
        >>> iaf(3, hidden=(16,))(None, num_samples=5).shape
        torch.Size([5, 3])
    """
    return _program((dim,), _autoregressive(dim, num_layers, hidden, options, True), options)


def ffjord(
    dim: int,
    hidden: Sequence[int] = (64, 64),
    num_flows: int = 1,
    solver: dict[str, Any] | None = None,
    **options: Any,
) -> Flow | ConditionalFlow:
    """Continuous flow along the field of a network of state and time.

    Args:
        dim: size of a datum.
        hidden: widths of the hidden layers of the network.
        num_flows: number of such flows, one after the other.
        solver: further arguments of :class:`~pyrogen.transforms.ContinuousFlow`, such as
            ``{"trace": "hutchinson"}`` or ``{"method": "rk4", "steps": 16}`` (training exploits
            coarse fixed steps, see there; the default is adaptive).
        options: ``context_dim``, ``levels``, ``boundary`` and ``base``; see :func:`nice`.

    Raises:
        ValueError: if a size is not positive.

    References:
        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD: free-form
        continuous dynamics for scalable reversible generative models*, 2018, arXiv:1810.01367.

    Example:
        >>> ffjord(2, hidden=(16,))(None, num_samples=5).shape
        torch.Size([5, 2])
    """
    context_dim = _context_dim(options)
    _positive(num_flows, "num_flows")
    layers = [
        ContinuousFlow(TimeMLP(dim, hidden, context_dim), context_dim=context_dim, **(solver or {}))
        for _ in range(num_flows)
    ]
    return _program((dim,), layers, options)


def glow(
    event_shape: Sequence[int],
    num_levels: int = 2,
    num_steps: int = 4,
    hidden: int = 64,
    **options: Any,
) -> Flow | ConditionalFlow:
    """Multi-scale flow of images: each step a scaling, a mixture of channels and a coupling.

    Call ``model.initialize(data)`` (with a context, ``model.initialize(context, data)``) with a
    batch before training, which sets the scalings.

    Args:
        event_shape: ``(channels, height, width)``; height and width divisible by
            ``2 ** num_levels``.
        num_levels: how often positions are squeezed into channels.
        num_steps: number of steps on each level.
        hidden: number of channels inside the networks.
        options: ``context_dim``, ``levels``, ``boundary`` and ``base``; see :func:`nice`.

    Raises:
        ValueError: if ``event_shape`` is no image or cannot be squeezed, or a size is not positive.

    References:
        D. P. Kingma, P. Dhariwal, *Glow: generative flow with invertible 1×1 convolutions*, 2018,
        arXiv:1807.03039.

    Example:
        >>> model = glow((1, 8, 8), num_steps=2, hidden=16, levels=17, boundary=0.01)
        >>> images = torch.randint(17, (32, 1, 8, 8))
        >>> model.initialize(images)
        >>> model(None, num_samples=5).shape
        torch.Size([5, 1, 8, 8])
    """
    shape = tuple(event_shape)
    if len(shape) != 3:
        raise ValueError(f"event_shape: expected (channels, height, width), got {shape}")
    _positive(num_levels, "num_levels")
    _positive(num_steps, "num_steps")
    context_dim = _context_dim(options)
    size, levels, splits = math.prod(shape), [], []
    for level in range(num_levels):
        shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        steps = [_glow_step(shape, hidden, context_dim) for _ in range(num_steps)]
        levels.append([*(layer for step in steps for layer in step), Squeeze().inv])
        if level < num_levels - 1:
            half = shape[0] // 2
            splits.append(Split(shape, coupling_conv(half, half, 2, hidden)))
            shape = (half, *shape[1:])
    flow = MultiScale(tuple(event_shape), levels, splits, context_dim)
    return _program((size,), [flow], options)


def _glow_step(shape: tuple[int, ...], hidden: int, context_dim: int) -> list[Any]:
    half = shape[0] // 2
    network = coupling_conv(half + context_dim, half, 2, hidden)
    return [
        AffineCoupling(shape, network, context_dim=context_dim),
        InvertibleConvolution(shape[0], event_dim=3),
        ActNorm(shape[0], event_dim=3),
    ]


def _autoregressive(
    dim: int, num_layers: int, hidden: Sequence[int], options: dict[str, Any], inverse: bool
) -> Sequence[Any]:
    layers = [
        masked(dim, hidden, _context_dim(options), reverse)
        for reverse in _alternate(dim, num_layers)
    ]
    return [Inverse(layer) for layer in layers] if inverse else layers


def _program(
    shape: tuple[int, ...], transforms: Sequence[Any], options: dict[str, Any]
) -> Flow | ConditionalFlow:
    unknown = options.keys() - {"base", "boundary", "context_dim", "levels"}
    if unknown:
        raise TypeError(
            "options: expected some of base, boundary, context_dim and levels, got "
            f"{sorted(unknown)}"
        )
    boundary, levels = options.get("boundary"), options.get("levels")
    base = shape if options.get("base") is None else options["base"]
    if boundary is not None:
        transforms = [*transforms, Logit(boundary).inv]
    if not _context_dim(options):
        return Flow(base, transforms, levels=levels)
    return ConditionalFlow(base, transforms, levels=levels)


def _context_dim(options: dict[str, Any]) -> int:
    value = options.get("context_dim", 0)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"context_dim: expected a non-negative integer, got {value!r}")
    return value


def _alternate(dim: int, num_layers: int) -> list[bool]:
    """Which half each layer keeps, checked on the way."""
    if not isinstance(dim, int) or dim < 2:
        raise ValueError(
            f"dim: expected an integer above 1, since a layer changes one part of a datum given "
            f"another, got {dim!r}; for one dimension use ffjord"
        )
    _positive(num_layers, "num_layers")
    return [bool(i % 2) for i in range(num_layers)]


def _positive(value: int, name: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
