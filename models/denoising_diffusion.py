r"""Denoising diffusion: a chain of normal laws from noise to data, as a model with a true guide.

The guide noises data by a linear process at the times :math:`t_k = k / T`,
:math:`x_k \mid x_0 \sim N(\alpha_k x_0, \sigma_k^2)`, and the model goes back by

.. math:: p(x_{k-1} \mid x_k) = N\big(\mu_k(x_k, \hat x_0),\, s_k^2\big), \qquad
   p(x_0 \mid x_1) = N(\hat x_0, s_1^2),

where :math:`\mu_k(x_k, x_0)` is the mean of :math:`q(x_{k-1} \mid x_k, x_0)`, a mixture of the two
states by the coefficients of Bayes' rule, and the network puts its guess :math:`\hat x_0(x_k, t_k)`
of the data in the place of the data. Its variances are one of

============== ===========================================================================
``"small"``    :math:`\tilde\beta_k`, that of :math:`q(x_{k-1} \mid x_k, x_0)`: right if the
               datum is known
``"large"``    :math:`\beta_k`, that of :math:`q(x_k \mid x_{k-1})` (of :math:`q(x_1 \mid x_0)` for
               the first step): right for standard normal data
``"learned"``  :math:`\exp(v_k \log \beta_k + (1 - v_k) \log \tilde\beta_k)` with a parameter
               :math:`v_k` for each step
``"network"``  the same with a :math:`v` for each element, which the network returns beside its
               prediction
============== ===========================================================================

The small variance of the first step, which is zero, is put in the same ratio to the large one as
that of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrogen.checks import check_data
from pyrogen.distributions import DiscretizedNormal, ScoreBased
from pyrogen.models._discrete_time import DiscreteTimeDiffusion
from pyrogen.models.flow import check_levels, checked_levels
from pyrogen.processes import DiscreteVariancePreserving, LinearProcess, convert

__all__ = ["DenoisingDiffusion"]

_VARIANCES = ("small", "large", "learned", "network")


class DenoisingDiffusion(DiscreteTimeDiffusion):
    r"""Denoising diffusion model in T steps, as a Pyro model with a site for each step.

    Its guide is :class:`pyrogen.guides.ForwardNoising`; with it, ``Trace_ELBO`` and
    ``TraceMeanField_ELBO`` are the variational bound, the latter with the divergence of each step
    in closed form. ``model(None)`` runs the chain from noise to data, each state a site ``x_k``.

    With data, ``subsample_size`` says how:

    * ``None``: sites ``x_T``, ..., ``x_1`` and ``"x"`` in plate ``"data"``, all steps;
    * ``m``: the plate ``"time"`` (``dim=-2``) of T steps is subsampled. Each datum looks at m of
      them, with sites ``"x_t"`` and ``"x_s"`` for the states at a step and before it, and ``"x"``
      where that is the datum. ``m = T`` is the bound in full. It may be changed at any time.

    Args:
        denoiser: ``([n, *event_shape], [n]) -> [n, *event_shape]`` of a state and its time
            :math:`k / T`, or with a third argument, the context ``[n, features]``. With
            ``variance="network"`` it returns ``[n, 2, *event_shape]``, or, where that is the same,
            twice as many channels.
        event_shape: shape of one datum; an integer ``n`` means ``(n,)``, ``None`` takes
            ``denoiser.in_shape``.
        num_timesteps: T.
        process: how data become noise; ``None`` means
            :meth:`~pyrogen.processes.DiscreteVariancePreserving.linear` in T steps, and any other
            linear process is looked at T times.
        prediction: what the network predicts; see :func:`pyrogen.processes.convert`.
        variance: of the model's steps: ``"small"``, ``"large"``, ``"learned"`` or ``"network"``.
        clip: guesses of the data are cut to ``[-clip, clip]``; ``None`` leaves them.
        levels: the number K of levels of discrete data ``0..K-1``, for which the chain runs
            between -1 and 1, and its last step is rounded to a level; ``None`` for real data.
        subsample_size: m, or ``None``.

    Attributes:
        process: as given, or made.
        event_shape: shape of one datum.

    Raises:
        TypeError: if the denoiser cannot be called or the process is not linear.
        ValueError: if a size is none, or ``prediction`` or ``variance`` is unknown; on call, if
            data do not fit or the network returns another shape.

    References:
        J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020,
        arXiv:2006.11239. A. Nichol, P. Dhariwal, *Improved denoising diffusion probabilistic
        models*, 2021, arXiv:2102.09672. F. Bao, C. Li, J. Zhu, B. Zhang, *Analytic-DPM*, 2022,
        arXiv:2201.06503 (the best variance of each step).

    Example:
        >>> import torch
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrogen.guides import ForwardNoising
        >>> from pyrogen.nn import ModulatedMLP
        >>> model = DenoisingDiffusion(ModulatedMLP(2), num_timesteps=50)
        >>> bound = TraceMeanField_ELBO().loss(model, ForwardNoising(model), torch.randn(100, 2))
        >>> model(None, num_samples=3).shape
        torch.Size([3, 2])
        >>> model.distribution().event_shape  # the same network as a score-based site
        torch.Size([2])
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        event_shape: int | Sequence[int] | None = None,
        num_timesteps: int = 1000,
        process: LinearProcess | None = None,
        prediction: str = "noise",
        variance: str = "small",
        clip: float | None = None,
        levels: int | None = None,
        subsample_size: int | None = 1,
    ) -> None:
        super().__init__(denoiser, event_shape, num_timesteps, subsample_size)
        if variance not in _VARIANCES:
            raise ValueError(f"variance: expected one of {', '.join(_VARIANCES)}, got {variance!r}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip: expected a positive number or None, got {clip!r}")
        made = DiscreteVariancePreserving.linear(num_timesteps) if process is None else process
        self.process = made
        self.prediction = prediction
        self.variance = variance
        self.clip = clip
        self.levels = checked_levels(levels)
        if variance == "learned":
            self.mix = nn.Parameter(torch.zeros(num_timesteps))
        _check_signal(self.distribution())  # which refuses the rest that does not fit
        self._table = _fixed_coefficients(self)

    def distribution(
        self, context: Tensor | None = None, guidance_scale: float = 1.0
    ) -> ScoreBased:
        """The law that the network has learned, in continuous time between the steps 1 and T.

        It has draws and densities of its own, and is what kernels sample from. Of data in levels,
        it is the law of the states between -1 and 1.

        Args:
            context: ``[*batch, features]``, what it is conditional on.
            guidance_scale: of classifier-free guidance.
        """
        denoiser = _Prediction(self.denoiser) if self.variance == "network" else self.denoiser
        return ScoreBased(
            self.process,
            denoiser,
            self.event_shape,
            self.prediction,
            context=context,
            guidance_scale=guidance_scale,
            min_time=1 / self.num_timesteps,
        )

    def terminal(self) -> TorchDistribution:
        """``p(x_T)``, normal with mean 0 and the variance of the noise."""
        return self.distribution().terminal()

    def check(self, data: Tensor) -> None:
        """Raises ValueError if data cannot be scored."""
        if self.levels is None:
            check_data(data, self.event_shape)
        else:
            check_levels(data, self.event_shape, self.levels)

    def noised(self, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_k | x_0)``.

        Args:
            data: ``[*batch, *event_shape]``.
            k: integers ``1..T``, broadcasting against ``[*batch]``.
        """
        k, x0 = self.together(k, self._as_state(data))
        at = self._at(k, x0)
        return self._joined(at["mean_scale"] * x0, at["std"])

    def posterior(self, x: Tensor, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_{k-1} | x_k, x_0)`` for ``k > 1``; arguments as for :meth:`noised`."""
        k, x, x0 = self.together(k, x, self._as_state(data))
        at = self._at(k, x)
        std = (0.5 * at["log_small"]).exp()
        return self._joined(at["of_data"] * x0 + at["of_state"] * x, std)

    def reverse(
        self, x: Tensor, k: Tensor, context: Tensor | None = None
    ) -> tuple[TorchDistribution, TorchDistribution]:
        """``p(x_{k-1} | x_k)``, meant for ``k > 1``, and ``p(x_0 | x_1)``, meant for ``k = 1``.

        Args:
            x: ``[*batch, *event_shape]``.
            k: integers ``1..T``, broadcasting against ``[*batch]``.
            context: ``[features]`` or broadcasting against ``[*batch, features]``.
        """
        k, x = self.together(k, x)
        at = self._at(k, x)
        guess, mix = self._guess(x, k, at, context)
        std = (0.5 * (at["log_small"].lerp(at["log_large"], mix))).exp()
        step = self._joined(at["of_data"] * guess + at["of_state"] * x, std, _Drawn)
        if self.levels is None:
            return step, self._joined(guess, std, _Drawn)
        data = DiscretizedNormal(guess, std.expand_as(guess), self.levels)
        return step, data.to_event(len(self.event_shape))

    def guess(self, x: Tensor, k: Tensor, context: Tensor | None = None) -> Tensor:
        """The mean of the data given a state; arguments as for :meth:`reverse`."""
        k, x = self.together(k, x)
        return self._guess(x, k, self._at(k, x), context)[0]

    def _guess(
        self, x: Tensor, k: Tensor, at: dict[str, Tensor], context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The guess of the data, and how to mix small (0) and large (1) variances."""
        result = self.called(x, k, context)
        expected = x.shape if self.variance != "network" else (*k.shape, 2, *self.event_shape)
        if result.shape[: k.dim()] != k.shape or result.numel() != torch.Size(expected).numel():
            raise ValueError(
                f"denoiser: expected shape {['n', *expected[k.dim() :]]}, got "
                f"{['n', *result.shape[k.dim() :]]}"
            )
        mix = at["mix"]
        if self.variance == "network":
            result, mix = result.reshape(expected).unbind(k.dim())
        data = at["guess_of_state"] * x + at["guess_of_result"] * result
        return data if self.clip is None else data.clamp(-self.clip, self.clip), mix

    def _at(self, k: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The coefficients of steps, beside events."""
        table = self._table if self._table is not None else _coefficients(self)
        rows = table[:, k - 1].to(x.dtype).reshape(-1, *k.shape, *[1] * len(self.event_shape))
        at = dict(zip(_ROWS, rows.unbind(), strict=True))
        if self.variance == "learned":
            at["mix"] = self.mix[k - 1].reshape(at["mix"].shape)
        return at

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the table with the rest, in double precision whatever the module is in."""
        super()._apply(fn, recurse)
        if self._table is not None:
            self._table = self._table.to(self.distribution().like.device)
        return self

    def _as_state(self, data: Tensor) -> Tensor:
        if self.levels is None:
            return data
        return data.to(self.distribution().like.dtype) * (2 / (self.levels - 1)) - 1

    def _joined(self, mean: Tensor, std: Tensor, kind: type = dist.Normal) -> TorchDistribution:
        joined: TorchDistribution = kind(mean, std.expand_as(mean)).to_event(len(self.event_shape))
        return joined


_ROWS = (
    "mean_scale", "std", "of_data", "of_state", "log_small", "log_large", "mix",
    "guess_of_state", "guess_of_result",
)  # fmt: skip


@torch.no_grad()
def _fixed_coefficients(model: DenoisingDiffusion) -> Tensor | None:
    """The table, unless the process has parameters, to be learned or loaded."""
    process = model.process
    changes = isinstance(process, nn.Module) and any(True for _ in process.parameters())
    return None if changes else _coefficients(model)


def _check_signal(fn: ScoreBased) -> None:
    if fn.prediction in ("noise", "score") and not bool(fn.process.mean_scale(1.0) > 0):  # type: ignore[arg-type]
        raise ValueError(
            f"prediction: expected 'data', 'velocity' or 'v' for {type(fn.process).__name__}, of "
            f"which no signal is left at time 1, got {fn.prediction!r}"
        )


def _coefficients(model: DenoisingDiffusion) -> Tensor:
    """What the laws of all steps are made of, ``[rows, T]``, in double precision."""
    process, steps = model.process, model.num_timesteps
    own = [*process.parameters(), *process.buffers()] if isinstance(process, nn.Module) else []
    device = own[0].device if own else None
    t = torch.arange(1, steps + 1, dtype=torch.float64, device=device) / steps
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    # At step 1, where the state before is the datum itself, the bridge is that of step 2.
    now = torch.cat([t[1:2], t[1:]])
    before = now - 1 / steps
    bridge = process.bridge(one, zero, before, now)
    large = process.transition(one, before, now).variance
    log_ratio = bridge.variance.log() - large.log()
    log_large = torch.cat([process.variance(t[:1]), large[1:]]).log()
    mix = one if model.variance == "large" else zero
    kind = model.prediction
    rows = {
        "mean_scale": process.mean_scale(t),
        "std": process.std(t),
        "of_data": bridge.mean,
        "of_state": process.bridge(zero, one, before, now).mean,
        "log_small": log_large + log_ratio,
        "log_large": log_large,
        "mix": mix,
        "guess_of_state": convert(process, zero, one, t, kind, "data"),
        "guess_of_result": convert(process, one, zero, t, kind, "data"),
    }
    return torch.stack([rows[name] for name in _ROWS])


class _Drawn(dist.Normal):
    """A normal law whose draws carry no gradient."""

    has_rsample = False


class _Prediction(nn.Module):
    """The first half of what a network returns that predicts variances too."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        return self.denoiser(x, *given).reshape(len(x), 2, *x.shape[1:])[:, 0]
