r"""Flow matching: the velocity that carries noise to data, learned by regression.

Along the straight line :math:`x_t = (1 - t)\, x_0 + t\, \epsilon` the velocity is
:math:`\epsilon - x_0`. Its mean given :math:`x_t` carries the law of data to that of noise and
back:

.. math:: J = \tfrac12\, \mathbb{E}_{t, (x_0, \epsilon) \sim \pi}
   \left\lVert \hat v(x_t, t) - \frac{d x_t}{dt} \right\rVert^2 .

This holds for every joint law :math:`\pi` of data and noise whose marginals are theirs. Independent
pairs cross, and the mean velocity is curved; pairs of least total distance within a batch hardly
cross, so that the flow becomes straight and cheap to solve.

With such pairs a state is no longer data under Gaussian noise: the velocity is right, and with it
draws and densities of the probability flow; scores and denoised means made from it are not.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import ELBO
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.losses._noising import NoisingELBO, over_event

__all__ = ["FlowMatching"]

_COUPLINGS = ("independent", "optimal-transport")


class FlowMatching(NoisingELBO):
    r"""Trains score-based sites by the velocity of their probability flow.

    Args:
        coupling: how data and noise are paired: ``"independent"``, or ``"optimal-transport"``, the
            pairs of a batch with the least sum of squared distances, at a cost that grows with the
            cube of the batch. With a context, pairs are sought across contexts.
        num_times: how many times are drawn for each datum.
        low_discrepancy: draw the times of a batch evenly, each uniform by itself.
        context_dropout: with which probability a datum is shown without its context.
        elbo: the estimate that the surrogate enters; ``Trace_ELBO()`` by default.

    Raises:
        ValueError: for an unknown coupling or numbers out of range; when run, if a score-based
            site is latent.

    References:
        Y. Lipman, R. T. Q. Chen, H. Ben-Hamu, M. Nickel, M. Le, *Flow matching for generative
        modeling*, 2022, arXiv:2210.02747.
        A. Tong et al., *Improving and generalizing flow-based generative models with minibatch
        optimal transport*, 2023, arXiv:2302.00482.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyrogen.guides import Empty
        >>> from pyrogen.models import ScoreModel
        >>> from pyrogen.nn import TimeMLP
        >>> from pyrogen.processes import Rectified
        >>> model = ScoreModel(Rectified(), TimeMLP(2), event_shape=2, prediction="velocity")
        >>> objective = FlowMatching(coupling="optimal-transport")
        >>> svi = SVI(model, Empty(), pyro.optim.Adam({"lr": 1e-3}), loss=objective)
        >>> loss = svi.step(torch.randn(100, 2))
    """

    def __init__(
        self,
        coupling: str = "independent",
        num_times: int = 1,
        low_discrepancy: bool = True,
        context_dropout: float = 0.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(num_times, low_discrepancy, context_dropout, elbo)
        if coupling not in _COUPLINGS:
            raise ValueError(f"coupling: expected one of {', '.join(_COUPLINGS)}, got {coupling!r}")
        self.coupling = coupling

    def score(self, name: str, fn: Any, value: Tensor) -> Tensor:
        """Minus the estimate, ``[*batch]``."""
        data = self.repeated(fn, value)
        noise = torch.randn_like(data)
        if self.coupling == "optimal-transport":
            noise = _nearest(fn, data, noise)
        t = fn.min_time + (fn.max_time - fn.min_time) * self.uniform(fn, data)
        shown = self.show(fn, data, noise, t, "velocity")
        error = over_event(fn, (shown.prediction - shown.target).square())
        return -0.5 * error.mean(0)


def _nearest(fn: ScoreBased, data: Tensor, noise: Tensor) -> Tensor:
    """The noise, each beside the datum that it is paired with."""
    dims = len(fn.event_shape)
    batch = data.shape[1 : data.dim() - dims]
    one, other = (x.detach().reshape((len(x), batch.numel(), -1)) for x in (data, noise))
    exact = torch.promote_types(data.dtype, torch.float32)
    order = _assignment(torch.cdist(one.to(exact), other.to(exact)).square())
    paired = torch.take_along_dim(other, order.unsqueeze(-1), 1)
    return paired.reshape(noise.shape)


@torch.library.custom_op("pyrogen::assignment", mutates_args=())
def _assignment(cost: Tensor) -> Tensor:
    """For each row the column of the assignment of least cost, ``[k, n]`` of ``[k, n, n]``."""
    columns = [linear_sum_assignment(one.cpu().numpy())[1] for one in cost]
    return torch.stack([torch.from_numpy(each) for each in columns]).to(cost.device)


@_assignment.register_fake
def _(cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[:2], dtype=torch.int64)
