r"""Binomial diffusion: a chain of independent coins from noise to binary data.

A bit keeps its value with probability :math:`1 - \beta_k` in step k and is tossed anew otherwise.
With :math:`a_k = \prod_{j \le k} (1 - \beta_j)`, and the log-odds of a bit :math:`u` that is right
with probability :math:`(1 + c) / 2` written as :math:`(2u - 1)\, L(c)`, :math:`L(c) = 2
\operatorname{artanh} c`,

.. math:: \operatorname{logit} q(x_k = 1 \mid x_0) = (2 x_0 - 1)\, L(a_k), \qquad
   \operatorname{logit} q(x_{k-1} = 1 \mid x_k, x_0)
   = (2 x_0 - 1)\, L(a_{k-1}) + (2 x_k - 1)\, L(1 - \beta_k) .

The model puts a guess in the place of the datum: the network says with which log-odds
:math:`\ell(x_k, k / T)` each bit of the datum is 1 *but for* what its own noisy value tells, and

.. math:: \operatorname{logit} p(x_{k-1} = 1 \mid x_k)
   = \operatorname{logit} r + (2 x_k - 1)\, L(1 - \beta_k), \qquad
   r = \tfrac12 (1 - a_{k-1}) + a_{k-1}\, \sigma(\ell) .
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrogen.checks import check_data
from pyrogen.models._discrete_time import DiscreteTimeDiffusion
from pyrogen.models._state_laws import Binary, FixedBinary, remaining

__all__ = ["BinomialDiffusion"]


class BinomialDiffusion(DiscreteTimeDiffusion):
    r"""Diffusion model of binary data, as a Pyro model with a site for each step.

    Its guide is :class:`pyrogen.guides.ForwardNoising`; sites, plates and ``subsample_size`` are as
    in :class:`pyrogen.models.DenoisingDiffusion`.

    Args:
        denoiser: ``([n, *event_shape], [n]) -> [n, *event_shape]``, from bits (0.0 or 1.0) and
            times :math:`k / T` to log-odds :math:`\ell`; or with a third argument, the context
            ``[n, features]``.
        event_shape: shape of one datum; an integer ``n`` means ``(n,)``, ``None`` takes
            ``denoiser.in_shape``.
        num_timesteps: T.
        betas: the shares of bits that are tossed in each step, ``[T]``; ``None`` means
            ``1 / (T - k + 1)``, by which the data are forgotten at a constant pace.
        subsample_size: how many steps are looked at for each datum; ``None`` runs the chain.

    Attributes:
        event_shape: shape of one datum.

    Raises:
        TypeError: if the denoiser cannot be called.
        ValueError: if a size or share is none; on call, if data are not 0 or 1.

    References:
        J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli, *Deep unsupervised learning
        using nonequilibrium thermodynamics*, 2015, arXiv:1503.03585.

    Example:
        >>> import torch
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrogen.guides import ForwardNoising
        >>> from pyrogen.nn import ModulatedMLP
        >>> model = BinomialDiffusion(ModulatedMLP(5), num_timesteps=20)
        >>> data = torch.ones(8, 5)
        >>> bound = TraceMeanField_ELBO().loss(model, ForwardNoising(model), data)
        >>> model(None, num_samples=3).shape
        torch.Size([3, 5])
    """

    log_left: Tensor
    betas: Tensor

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        event_shape: int | Sequence[int] | None = None,
        num_timesteps: int = 1000,
        betas: Tensor | None = None,
        subsample_size: int | None = 1,
    ) -> None:
        super().__init__(denoiser, event_shape, num_timesteps, subsample_size)
        shares = remaining(betas, num_timesteps)
        log_left = torch.cat([shares.new_zeros(1), torch.log1p(-shares).cumsum(0)])
        dtype = torch.get_default_dtype()
        self.register_buffer("betas", shares.to(dtype), persistent=False)
        self.register_buffer("log_left", log_left.to(dtype), persistent=False)

    def check(self, data: Tensor) -> None:
        """Raises ValueError if data cannot be scored."""
        check_data(data, self.event_shape)
        if is_validation_enabled() and not ((data == 0) | (data == 1)).all():
            raise ValueError(
                f"data: expected values 0 or 1, got values from {data.min().item():.6g} to "
                f"{data.max().item():.6g}; binarise the data"
            )

    def terminal(self) -> TorchDistribution:
        """``p(x_T)``: fair coins."""
        return self._joined(Binary(logits=self.betas.new_zeros(self.event_shape)))

    def noised(self, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_k | x_0)``.

        Args:
            data: ``[*batch, *event_shape]``.
            k: integers ``1..T``, broadcasting against ``[*batch]``.
        """
        k, x0 = self.together(k, data)
        return self._joined(FixedBinary(logits=(2 * x0 - 1) * self._beside(self._kept(k))))

    def posterior(self, x: Tensor, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_{k-1} | x_k, x_0)`` for ``k > 1``; arguments as for :meth:`noised`."""
        k, x, x0 = self.together(k, x, data)
        k = k.clamp(min=2)
        of_data = (2 * x0 - 1) * self._beside(self._kept(k - 1))
        return self._joined(FixedBinary(logits=of_data + self._told(x, k)))

    def reverse(
        self, x: Tensor, k: Tensor, context: Tensor | None = None
    ) -> tuple[TorchDistribution, TorchDistribution]:
        """``p(x_{k-1} | x_k)``, twice: for ``k > 1``, and for the data at ``k = 1``.

        Args:
            x: ``[*batch, *event_shape]``.
            k: integers ``1..T``, broadcasting against ``[*batch]``.
            context: ``[features]`` or broadcasting against ``[*batch, features]``.
        """
        k, x = self.together(k, x)
        guess = self._called(x, k, context)
        log_left = self._beside(self.log_left[k - 1])
        log_lost = torch.log(-torch.expm1(log_left) / 2)
        odds = [torch.logaddexp(log_lost, log_left + logsigmoid(s * guess)) for s in (1, -1)]
        law = self._joined(Binary(logits=odds[0] - odds[1] + self._told(x, k)))
        return law, law

    def denoise(self, x: Tensor, k: Tensor, context: Tensor | None = None) -> Tensor:
        """The probability that each bit of the datum is 1; arguments as for :meth:`reverse`."""
        k, x = self.together(k, x)
        told = (2 * x - 1) * self._beside(self._kept(k))
        return (self._called(x, k, context) + told).sigmoid()

    def _called(self, x: Tensor, k: Tensor, context: Tensor | None) -> Tensor:
        guess = self.called(x, k, context)
        if guess.shape != x.shape:
            raise ValueError(
                f"denoiser: expected shape {['n', *self.event_shape]}, got "
                f"{['n', *guess.shape[k.dim() :]]}"
            )
        return guess

    def _kept(self, k: Tensor) -> Tensor:
        """``L(a_k)``."""
        log_left = self.log_left[k]
        return torch.log1p(log_left.exp()) - torch.log(-torch.expm1(log_left))

    def _told(self, x: Tensor, k: Tensor) -> Tensor:
        """What a bit after step k tells of the bit before it, in log-odds."""
        share = self.betas[k - 1]
        return (2 * x - 1) * self._beside(torch.log(2 - share) - torch.log(share))

    def _beside(self, value: Tensor) -> Tensor:
        return value.reshape(*value.shape, *[1] * len(self.event_shape))

    def _joined(self, law: TorchDistribution) -> TorchDistribution:
        joined: TorchDistribution = law.to_event(len(self.event_shape))
        return joined
