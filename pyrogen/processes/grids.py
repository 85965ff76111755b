r"""Where to stop on the way from noise to data.

A sampler walks down times :math:`t_1 = T_1 > T_2 > \dots > T_n = t_0`. Evenly spaced times are
right for a process whose time is already even in difficulty. Others are even in another quantity:
in :math:`\sqrt t`, in the log-SNR :math:`\lambda`, or in a power of the noise-to-signal ratio
:math:`\sigma / \alpha = e^{-\lambda/2}`,

.. math:: (\sigma/\alpha)^{1/\rho} \text{ even}, \qquad \rho = 7,

which spends more of them near the data than ratios evenly spaced (:math:`\rho = 1`) and fewer than
the log-SNR does (:math:`\rho \to \infty`).

References:
    J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, 2021, arXiv:2010.02502.
    T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space of diffusion-based
    generative models*, 2022, arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen.processes.linear import LinearProcess

__all__ = ["GRIDS", "time_grid"]

_RHO = 7.0
_NO_SIGNAL = -12.0  # a log-SNR below which nothing is left to see, for grids that are even in it


def time_grid(
    process: LinearProcess,
    num_times: int,
    kind: str = "uniform",
    max_time: float = 1.0,
    min_time: float = 1e-5,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Times from noise to data.

    Args:
        process: by which the data are noised.
        num_times: how many, both ends counted.
        kind: what is evenly spaced: the time (``"uniform"``), its square root (``"quadratic"``),
            the log-SNR (``"log-snr"``), or the seventh root of the noise-to-signal ratio
            (``"karras"``).
        max_time: the first.
        min_time: the last.
        dtype: of the times; torch's default if ``None``.
        device: of the times.

    Returns:
        ``[num_times]``, falling.

    Raises:
        ValueError: for another kind, fewer than 2 times, unless ``0 <= min_time < max_time``, or
            for one of the last two kinds without noise at ``min_time``.

    Example:
        >>> from pyrogen.processes import VariancePreserving
        >>> time_grid(VariancePreserving(), 5, "quadratic", min_time=0.0)
        tensor([1.0000, 0.5625, 0.2500, 0.0625, 0.0000])
    """
    if kind not in GRIDS:
        raise ValueError(f"kind: expected one of {', '.join(GRIDS)}, got {kind!r}")
    if num_times < 2:
        raise ValueError(f"num_times: expected at least 2, for both ends, got {num_times}")
    if not 0 <= min_time < max_time:
        raise ValueError(f"expected 0 <= min_time < max_time, got {min_time!r} and {max_time!r}")
    by_noise = kind in ("log-snr", "karras") and is_validation_enabled()
    if by_noise and not bool(process.std(min_time) > 0):
        raise ValueError(
            f"min_time: expected some noise there for kind {kind!r}, got none of "
            f"{type(process).__name__} at {min_time:g}; end at 1e-5"
        )
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    ends = torch.linspace(max_time, min_time, 2, **options)
    share = torch.linspace(0, 1, num_times, **options)
    inner = GRIDS[kind](process, ends, share)[1:-1]
    return torch.cat([ends[:1], inner, ends[1:]])


def _even(ends: Tensor, share: Tensor) -> Tensor:
    return ends[0] + share * (ends[1] - ends[0])


def _quadratic(process: LinearProcess, ends: Tensor, share: Tensor) -> Tensor:
    return _even(ends.sqrt(), share).square()


def _log_snr(process: LinearProcess, ends: Tensor, share: Tensor) -> Tensor:
    return process.time_of(_even(_visible(process, ends), share))


def _karras(process: LinearProcess, ends: Tensor, share: Tensor) -> Tensor:
    roots = (-0.5 / _RHO * _visible(process, ends)).exp()
    return process.time_of(-2 * _RHO * _even(roots, share).log())


def _visible(process: LinearProcess, ends: Tensor) -> Tensor:
    return process.log_snr(ends).clamp(min=_NO_SIGNAL)


GRIDS: dict[str, Callable[[LinearProcess, Tensor, Tensor], Tensor]] = {
    "uniform": lambda process, ends, share: _even(ends, share),
    "quadratic": _quadratic,
    "log-snr": _log_snr,
    "karras": _karras,
}
