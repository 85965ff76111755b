r"""The guide of diffusion models in discrete time: the noising of data, which has nothing to learn.

.. math:: q(x_{1:T} \mid x_0) = q(x_T \mid x_0) \prod_{k=2}^{T} q(x_{k-1} \mid x_k, x_0) .

The order is that of the model, from noise to data, so that each site faces the model's law of the
same state given the same one, and ``TraceMeanField_ELBO`` compares the two in closed form.
"""

from __future__ import annotations

from typing import Any

import pyro
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

__all__ = ["ForwardNoising"]


class ForwardNoising(PyroModule):
    """Guide of :class:`pyrogen.models.DenoisingDiffusion`, and of diffusions of discrete states.

    It has the latent sites of the model in either form (``subsample_size``), and no parameters.

    Args:
        model: the diffusion model that is trained. It stays the same object, and its parameters
            are none of the guide's.

    Raises:
        TypeError: if the model is no diffusion model in discrete time.

    References:
        J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli, *Deep unsupervised learning
        using nonequilibrium thermodynamics*, 2015, arXiv:1503.03585.

    Example:
        >>> import torch
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrogen.models import DenoisingDiffusion
        >>> from pyrogen.nn import ModulatedMLP
        >>> model = DenoisingDiffusion(ModulatedMLP(2))
        >>> guide = ForwardNoising(model)
        >>> TraceMeanField_ELBO().loss(model, guide, torch.randn(100, 2)) > 0
        True
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not all(hasattr(model, name) for name in ("noised", "posterior", "steps_at_once")):
            raise TypeError(
                "model: expected a diffusion model in discrete time, such as "
                f"pyrogen.models.DenoisingDiffusion, got {type(model).__name__}"
            )
        self._model = (model,)  # in a tuple, since the parameters of a module would be the guide's

    def forward(
        self,
        data: Tensor | None = None,
        context: Tensor | None = None,
        num_samples: int | None = None,
    ) -> None:
        """Samples the latent states given data.

        Args:
            data: ``[n, *event_shape]``.
            context: only for the model's signature.
            num_samples: likewise; must be ``None``.

        Raises:
            ValueError: if there are no data, or ``num_samples`` is given.
        """
        (model,) = self._model
        if data is None or num_samples is not None:
            got = "no data" if data is None else f"num_samples={num_samples}"
            raise ValueError(
                f"guide: expected data to be noised and no num_samples, got {got}; to draw events "
                "call the model without data: model(None, num_samples=...)"
            )
        model.check(data)
        plate = pyro.plate("data", data.shape[-1 - len(model.event_shape)], dim=-1)
        if model.steps_at_once is not None:
            _some_steps(model, data, plate)
        last = model.num_timesteps
        with plate:
            x = pyro.sample(f"x_{last}", model.noised(data, model.steps(last, data)))
        if model.steps_at_once is None:
            _all_steps(model, data, x, plate)


def _all_steps(model: Any, data: Tensor, x: Tensor, plate: Any) -> None:
    """From the end, as the chain of the model does."""
    for k in range(model.num_timesteps, 1, -1):
        with plate:
            x = pyro.sample(f"x_{k - 1}", model.posterior(x, data, model.steps(k, x)))


def _some_steps(model: Any, data: Tensor, plate: Any) -> None:
    """Those of the plate, each for itself."""
    steps, m = model.num_timesteps, model.steps_at_once
    with pyro.plate("time", steps, m, dim=-2, device=str(data.device)) as index, plate:
        k = model.spread(index, plate.size)
        with poutine.mask(mask=False):
            x = pyro.sample("x_t", model.noised(data, k))
        with poutine.mask(mask=k > 1):
            pyro.sample("x_s", model.posterior(x, data, k))
