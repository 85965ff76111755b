r"""Score-based models: a network that removes noise, and the law of data that it implies.

Data :math:`x` are drawn from the law whose score the network knows at every level of noise
(:class:`pyrogen.distributions.ScoreBased`). It is trained by taking away noise that was added,
:class:`pyrogen.losses.DenoisingScoreMatching`; draws and densities come from solving a differential
equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyrogen.checks import check_data
from pyrogen.distributions import ScoreBased
from pyrogen.models.flow import num_events, refuse_num_samples
from pyrogen.processes import LinearProcess

__all__ = ["ScoreModel"]


class ScoreModel(PyroModule):
    """Score-based model as a Pyro model with site ``"x"`` in plate ``"data"``.

    It has no latent sites, so its guide is :class:`pyrogen.guides.Empty`.

    Args:
        process: how data become noise.
        denoiser: ``([n, *event_shape], [n]) -> [n, *event_shape]``, or with a third argument, the
            context ``[n, features]``.
        event_shape: shape of one datum; an integer ``n`` means ``(n,)``.
        prediction: what the network predicts; see :class:`pyrogen.distributions.ScoreBased`.
        options: of :class:`pyrogen.distributions.ScoreBased`, such as ``min_time``, ``atol`` or
            ``sampler``; the last may be set later, as an attribute.

    Raises:
        TypeError: as :class:`pyrogen.distributions.ScoreBased`.
        ValueError: likewise; on call, if data or context do not fit.

    References:
        Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
        2021, arXiv:2011.13456.

    Example:
        >>> import torch
        >>> from pyrogen.nn import TimeMLP
        >>> from pyrogen.processes import VariancePreserving
        >>> model = ScoreModel(VariancePreserving(), TimeMLP(2), event_shape=2)
        >>> model(None, num_samples=100).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        process: LinearProcess,
        denoiser: Callable[..., Tensor],
        event_shape: int | Sequence[int],
        prediction: str = "noise",
        sampler: Callable[..., Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.process = process
        self.denoiser = denoiser
        self.prediction = prediction
        self.sampler = sampler
        self.options = options
        given = (event_shape,) if isinstance(event_shape, int) else event_shape
        self.event_shape = tuple(given)
        self.distribution()  # refuses what does not fit

    def distribution(
        self, context: Tensor | None = None, guidance_scale: float = 1.0
    ) -> ScoreBased:
        """The law of one datum.

        Args:
            context: ``[*batch, features]``, what it is conditional on.
            guidance_scale: of classifier-free guidance.
        """
        return ScoreBased(
            self.process,
            self.denoiser,
            self.event_shape,
            self.prediction,
            context=context,
            guidance_scale=guidance_scale,
            sampler=self.sampler,
            **self.options,
        )

    def forward(
        self,
        data: Tensor | None = None,
        context: Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensor:
        """Scores data, or draws.

        Args:
            data: ``[n, *event_shape]``, or ``None`` to draw.
            context: ``[n, features]`` for each datum, or ``[features]``; ``None`` for none.
            num_samples: how many to draw; ``None`` means one for each row of the context, or one.

        Returns:
            The value of site ``"x"``: ``data``, or ``[num_samples, *event_shape]``.
        """
        fn = self.distribution(context)
        if data is not None:
            refuse_num_samples(num_samples)
            check_data(data, self.event_shape)
            size = data.shape[-1 - len(self.event_shape)]
        elif fn.batch_shape and num_samples is None:
            size = fn.batch_shape[-1]
        else:
            size = num_events(num_samples)
        with pyro.plate("data", size, dim=-1):
            x: Tensor = pyro.sample("x", fn, obs=data)
        return x
