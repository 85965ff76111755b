r"""A recurrent network that reads an irregular series from its end, for what is still to come.

What a latent path should do next depends on the observations that lie ahead of it. So a gated
recurrent unit reads a series :math:`(t_j, x_j, m_j)_{j \le K}` of times, values and masks from its
last observation to its first,

.. math:: h_j = \mathrm{GRU}\big([m_j x_j,\, m_j,\, t_{j+} - t_j],\, h_{j+}\big), \quad h_{K+1} = 0,

where :math:`j+` is the next time after :math:`j` at which anything was observed. A time at which
nothing was observed is passed over, as if it were not there. At a time :math:`s` of another grid
the context is

.. math:: c(s) = \big[h_{s+},\; t_{s+} - s,\; 1\big],

of the first observation after :math:`s`, and zero where none is left.

References:
    X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic
    differential equations*, 2020, arXiv:2001.01328. Z. Che, S. Purushotham, K. Cho, D. Sontag,
    Y. Liu, *Recurrent neural networks for multivariate time series with missing values*, 2018,
    arXiv:1606.01865 (values, masks and gaps as input).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import positive_ints

__all__ = ["BackwardGRU"]


class BackwardGRU(nn.Module):
    """Reads series backwards, and tells at each time of a grid what lies ahead.

    Args:
        features: the number F of values at each time.
        hidden: size of the recurrent state.

    Attributes:
        features: as given.
        summary_dim: size of the state after all of a series was read, ``hidden``.
        context_dim: size of a context, ``hidden + 2``: the last two numbers are the time until the
            next observation, and 1 if there is one (0 if not, and then all are 0).

    Raises:
        ValueError: if a size is not positive; on call, if values, times or mask do not fit.

    References:
        X. Li et al., *Scalable gradients for stochastic differential equations*, 2020,
        arXiv:2001.01328.

    Example:
        >>> import torch
        >>> encoder = BackwardGRU(features=2, hidden=16)
        >>> values, times = torch.zeros(5, 3, 2), torch.tensor([0.0, 0.35, 0.8])
        >>> context, summary = encoder(values, times, values == 0, torch.linspace(0, 1, 11)[:-1])
        >>> context.shape, summary.shape
        (torch.Size([5, 10, 18]), torch.Size([5, 16]))
        >>> context[0, :, -1].tolist()  # is an observation ahead?
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.features, self.summary_dim = positive_ints((features, hidden), "features, hidden")
        self.context_dim = hidden + 2
        self.cell = nn.GRUCell(2 * features + 1, hidden)

    def forward(
        self, values: Tensor, times: Tensor, mask: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reads series.

        Args:
            values: ``[n, K, F]``; what stands where the mask is false does not matter.
            times: ``[K]``, or ``[n, K]`` for series with times of their own; not decreasing.
            mask: booleans ``[n, K, F]``, true where a value was observed.
            grid: ``[T]``, the times at which contexts are wanted.

        Returns:
            Contexts ``[n, T, context_dim]``, each of the observations after its time, and summaries
            ``[n, summary_dim]`` of all observations.
        """
        self._check(values, times, mask)
        times = times.to(values.dtype).expand(values.shape[:2]).contiguous()
        values = torch.where(mask, values, torch.zeros_like(values))
        seen = mask.any(-1)
        state = values.new_zeros(len(values), self.summary_dim)
        ahead, any_ahead = torch.zeros_like(times[:, 0]), torch.zeros_like(seen[:, 0])
        rows = [_row(state, ahead, any_ahead)]
        for j in reversed(range(values.shape[1])):
            now, observed = times[:, j], seen[:, j]
            gap = torch.where(any_ahead, ahead - now, torch.zeros_like(now))
            read = torch.cat([values[:, j], mask[:, j].to(values.dtype), gap.unsqueeze(-1)], -1)
            state = torch.where(observed.unsqueeze(-1), self.cell(read, state), state)
            ahead = torch.where(observed, now, ahead)
            any_ahead = any_ahead | observed
            rows.append(_row(state, ahead, any_ahead))
        states = torch.stack(rows[::-1], dim=1)
        return _at(states, times, grid.to(values.dtype)), state

    def _check(self, values: Tensor, times: Tensor, mask: Tensor) -> None:
        if values.dim() != 3 or values.shape[-1] != self.features:
            raise ValueError(
                f"BackwardGRU: expected values of shape [n, K, {self.features}], got "
                f"{list(values.shape)}"
            )
        if times.shape not in (values.shape[1:2], values.shape[:2]):
            raise ValueError(
                f"BackwardGRU: expected times of shape {list(values.shape[1:2])} or "
                f"{list(values.shape[:2])}, got {list(times.shape)}"
            )
        if mask.shape != values.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"BackwardGRU: expected a mask of booleans of shape {list(values.shape)}, got "
                f"{mask.dtype} of shape {list(mask.shape)}"
            )


def _row(state: Tensor, ahead: Tensor, any_ahead: Tensor) -> Tensor:
    return torch.cat([state, ahead.unsqueeze(-1), any_ahead.to(state.dtype).unsqueeze(-1)], -1)


def _at(states: Tensor, times: Tensor, grid: Tensor) -> Tensor:
    """The rows ``[n, K + 1, H + 2]`` of the first observation after each time of a grid."""
    queries = grid.expand(len(times), len(grid)).contiguous()
    index = torch.searchsorted(times, queries, right=True)
    rows = torch.take_along_dim(states, index.unsqueeze(-1), dim=1)
    state, ahead, flag = rows[..., :-2], rows[..., -2:-1], rows[..., -1:]
    return torch.cat([state, (ahead - grid.unsqueeze(-1)) * flag, flag], -1)
