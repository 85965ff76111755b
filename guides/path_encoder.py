r"""The guide of latent paths of many series: an encoder tells the drift what lies ahead.

.. math:: q: \quad z_0 \sim N\big(\mu(h), \operatorname{diag} \sigma^2(h)\big), \qquad
   dz = \big[f(z, t) + u_\phi(z, t, c_t)\big]\, dt + g\, dW .

The encoder reads the observations of a series from its end (:class:`pyrogen.nn.BackwardGRU`). It
gives a summary :math:`h` of all, for the beginning, and for each step the context :math:`c_t` of
the observations after it: the best control at a time knows the state there, and what is still to be
seen, and of the past nothing. Where nothing is left to be seen the control is zero, as that of the
posterior is.

The noise is that of the model, and :math:`u_\phi`, :math:`\mu`, :math:`\sigma` begin such that
guide and prior are the same: the divergence is zero at first.

References:
    X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic
    differential equations*, 2020, arXiv:2001.01328.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrogen.distributions import Path
from pyrogen.guides._steering import still
from pyrogen.nn import BackwardGRU

__all__ = ["PathEncoder"]


class PathEncoder(PyroModule):
    """Guide of :class:`pyrogen.models.LatentSDE`, amortised over series.

    Args:
        model: the model that is trained. It stays the same object, and its parameters are none of
            the guide's.
        encoder: ``(values [n, K, F], times, mask [n, K, F], grid [T]) -> (context [n, T, C],
            summary [n, S])``, with attributes ``context_dim`` and ``summary_dim``; the last number
            of a context is 1 if anything is ahead and 0 if not. By default
            :class:`pyrogen.nn.BackwardGRU`.
        control: ``u(z, t, context)``, ``[*, D]``; by default :class:`pyrogen.nn.TimeMLP` of widths
            ``hidden`` with a last layer of zeros, which takes the span of the grid for its unit of
            time.
        hidden: widths of the hidden layers of the default control; the first is the size of the
            default encoder's state.

    Raises:
        TypeError: if the model has no path with observations, or the control is no function.
        ValueError: on call, if there are no data, or ``num_samples`` is given.

    References:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, *Scalable gradients for stochastic
        differential equations*, 2020, arXiv:2001.01328.

    Example:
        >>> import torch
        >>> from pyrogen.losses import PathELBO
        >>> from pyrogen.models import LatentSDE
        >>> from pyrogen.processes import OrnsteinUhlenbeck
        >>> grid = torch.linspace(0, 1, 11)
        >>> model = LatentSDE(OrnsteinUhlenbeck(), torch.nn.Linear(2, 3), 2, grid)
        >>> guide = PathEncoder(model)
        >>> data, times = torch.randn(4, 5, 3), torch.rand(4, 5).sort(-1).values
        >>> PathELBO().loss(model, guide, data, times, data > -1) > 0
        True
    """

    def __init__(
        self,
        model: Any,
        encoder: nn.Module | None = None,
        control: Callable[..., Tensor] | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if not all(hasattr(model, name) for name in ("prior", "path_site", "features", "times")):
            raise TypeError(
                "model: expected one with a latent path and observations, such as "
                f"pyrogen.models.LatentSDE, got {type(model).__name__}"
            )
        self._model = (model,)  # in a tuple, since the parameters of a module would be the guide's
        prior = model.prior()
        size = prior.event_shape[-1]
        given: Any = BackwardGRU(model.features, hidden[0]) if encoder is None else encoder
        self.encoder = given
        if control is not None and not callable(control):
            raise TypeError(
                f"control: expected a function of (z, t, context), got {type(control).__name__}"
            )
        network = still(size, hidden, given.context_dim) if control is None else control
        self.control = _Ahead(network, model.times if control is None else None)
        self.beginning = None
        if not isinstance(prior.initial, Tensor):
            self.beginning = nn.Linear(given.summary_dim, 2 * size)
            nn.init.zeros_(self.beginning.weight)
            nn.init.zeros_(self.beginning.bias)

    def law(self, data: Tensor, times: Tensor | None = None, mask: Tensor | None = None) -> Path:
        """The law of the path of each series, of batch shape ``[n]``.

        Args:
            data: ``[n, K, F]``.
            times: as for the model.
            mask: as for the model.
        """
        (model,) = self._model
        prior: Path = model.prior(data, times, mask)
        times = model.times if times is None else times
        mask = torch.ones_like(data, dtype=torch.bool) if mask is None else mask
        values = data.to(model.times.dtype)
        context, summary = self.encoder(values, times, mask, model.times[:-1])
        law = prior.steered(self.control, context)
        if self.beginning is None:
            return law
        shift, log_ratio = self.beginning(summary).chunk(2, -1)
        mean, std = prior.initial.mean, prior.initial.stddev  # type: ignore[union-attr]
        return law.started_at(dist.Normal(mean + std * shift, std * log_ratio.exp()).to_event(1))

    def forward(
        self,
        data: Tensor | None = None,
        times: Tensor | None = None,
        mask: Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensor:
        """Samples a path for each series.

        Args:
            data: ``[n, K, F]``.
            times: as for the model.
            mask: as for the model.
            num_samples: only for the model's signature; must be ``None``.

        Returns:
            ``[n, T + 1, D]``.
        """
        if data is None or num_samples is not None:
            got = "no data" if data is None else f"num_samples={num_samples}"
            raise ValueError(
                f"guide: expected series to infer paths from and no num_samples, got {got}; to "
                "draw series call the model without data: model(None, num_samples=...)"
            )
        (model,) = self._model
        law = self.law(data, times, mask)
        with pyro.plate(model.path_plate, law.batch_shape[-1], dim=-1):
            path: Tensor = pyro.sample(model.path_site, law)
        return path


class _Ahead(nn.Module):
    """A control that is zero where nothing is ahead, in a unit of time of its own."""

    begin: Tensor | None
    span: Tensor | None

    def __init__(self, network: Callable[..., Tensor], grid: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("begin", None if grid is None else grid[0].clone())
        self.register_buffer("span", None if grid is None else grid[-1] - grid[0])

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if self.begin is not None and self.span is not None:
            t = (t - self.begin) / self.span
        return self.network(z, t, context) * context[..., -1:]
