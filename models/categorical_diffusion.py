r"""Diffusion of categorical data: chains of transition matrices, from noise to levels.

Each element of a datum is a level :math:`0 \ldots K-1`; states are the levels and, with absorbing
transitions, one more that stands for a masked element. With the matrix :math:`Q_k` of step k, whose
rows sum to 1, and :math:`\bar Q_k = Q_1 \cdots Q_k`,

.. math:: q(x_k \mid x_0) = \bar Q_k[x_0, x_k], \qquad
   q(x_{k-1} \mid x_k, x_0) \propto Q_k[x_{k-1}, x_k]\, \bar Q_{k-1}[x_0, x_{k-1}] .

The model puts a guess in the place of the datum: the network gives weights
:math:`\pi(x_0; x_k, k / T)` to the levels of each element, *but for* what its own noisy value
tells, and

.. math:: p(x_{k-1} \mid x_k) \propto Q_k[x_{k-1}, x_k]
   \sum_{x_0} \pi(x_0)\, \bar Q_{k-1}[x_0, x_{k-1}] .

============== =============================================================================
``"absorbing"`` an element is masked with probability :math:`\beta_k`, for good
``"uniform"``   an element is drawn anew with probability :math:`\beta_k`
``"gaussian"``  an element moves to a near level, :math:`Q_k[i, j] \propto
                \exp(-4 (i-j)^2 / ((K-1)^2 \beta_k))`, more seldom at the ends
============== =============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import one_hot

from pyrogen.models._discrete_time import DiscreteTimeDiffusion
from pyrogen.models._state_laws import FixedLevels, Levels, remaining
from pyrogen.models.flow import check_levels, checked_levels

__all__ = ["CategoricalDiffusion"]


class CategoricalDiffusion(DiscreteTimeDiffusion):
    r"""Diffusion model of levels (D3PM), as a Pyro model with a site for each step.

    Its guide is :class:`pyrogen.guides.ForwardNoising`; sites, plates and ``subsample_size`` are as
    in :class:`pyrogen.models.DenoisingDiffusion`. Values are int64.

    Args:
        denoiser: ``([n, *event_shape, S], [n]) -> [n, *event_shape, S]``, from indicators of the S
            states and times :math:`k / T` to logits of the levels (that of the mask is not looked
            at); or with a third argument, the context ``[n, features]``.
        event_shape: shape of one datum; an integer ``n`` means ``(n,)``, ``None`` takes
            ``denoiser.in_shape`` without its last dimension.
        levels: K.
        num_timesteps: T.
        transitions: ``"absorbing"``, ``"uniform"``, ``"gaussian"``, or the matrices themselves,
            ``[T, S, S]``, with ``S >= K`` states of which the first K are the levels.
        betas: :math:`\beta_1, \ldots, \beta_T`; ``None`` means ``1 / (T - k + 1)``, by which the
            data are forgotten at a constant pace; for Gaussian transitions, from 0.1 / T linearly
            to 20 / T (at most 0.999), which is too little where levels are few and steps many.
        subsample_size: how many steps are looked at for each datum; ``None`` runs the chain.

    Attributes:
        event_shape: shape of one datum.
        num_states: S.

    Raises:
        TypeError: if the denoiser cannot be called.
        ValueError: if a size is none, the transitions are unknown or no probabilities, or those
            of the default ``betas`` end far from noise; on call, if data are no levels.

    References:
        J. Austin, D. D. Johnson, J. Ho, D. Tarlow, R. van den Berg, *Structured denoising diffusion
        models in discrete state-spaces*, 2021, arXiv:2107.03006.

    Example:
        >>> import torch
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrogen.guides import ForwardNoising
        >>> from pyrogen.nn import ModulatedMLP
        >>> model = CategoricalDiffusion(ModulatedMLP((5, 4)), levels=3, num_timesteps=20)
        >>> data = torch.randint(3, (8, 5))
        >>> bound = TraceMeanField_ELBO().loss(model, ForwardNoising(model), data)
        >>> model(None, num_samples=2).shape
        torch.Size([2, 5])
    """

    one_step: Tensor
    so_far: Tensor

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        event_shape: int | Sequence[int] | None = None,
        levels: int = 2,
        num_timesteps: int = 1000,
        transitions: str | Tensor = "absorbing",
        betas: Tensor | None = None,
        subsample_size: int | None = 1,
    ) -> None:
        if event_shape is None:
            shape = getattr(denoiser, "in_shape", None)
            event_shape = None if shape is None else shape[:-1]
        super().__init__(denoiser, event_shape, num_timesteps, subsample_size)
        checked_levels(levels)
        self.levels = levels
        one_step = _matrices(transitions, betas, levels, num_timesteps)
        self.num_states = one_step.shape[-1]
        so_far = [torch.eye(self.num_states, dtype=torch.float64)]
        for matrix in one_step:
            so_far.append(so_far[-1] @ matrix)
        if betas is None and not isinstance(transitions, Tensor) and transitions == "gaussian":
            _check_forgotten(so_far[-1])
        dtype = torch.get_default_dtype()
        self.register_buffer("one_step", one_step.to(dtype), persistent=False)
        self.register_buffer("so_far", torch.stack(so_far).to(dtype), persistent=False)

    def check(self, data: Tensor) -> None:
        """Raises ValueError if data cannot be scored."""
        check_levels(data, self.event_shape, self.levels)

    def terminal(self) -> TorchDistribution:
        """``p(x_T)``: what is left of levels of equal weights."""
        probs = self.so_far[-1][: self.levels].mean(0)
        return self._joined(Levels, probs.expand(*self.event_shape, self.num_states))

    def noised(self, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_k | x_0)``.

        Args:
            data: ``[*batch, *event_shape]``.
            k: integers ``1..T``, broadcasting against ``[*batch]``.
        """
        k, x0 = self.together(k, data)
        return self._joined(FixedLevels, self.so_far[self._beside(k), x0])

    def posterior(self, x: Tensor, data: Tensor, k: Tensor) -> TorchDistribution:
        """``q(x_{k-1} | x_k, x_0)`` for ``k > 1``; arguments as for :meth:`noised`."""
        k, x, x0 = self.together(k, x, data)
        k = self._beside(k.clamp(min=2))
        return self._joined(FixedLevels, self._told(x, k) * self.so_far[k - 1, x0])

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
        guess = self._guess(x, k, context)
        before = self._mixed(guess, self.so_far[k - 1, : self.levels])
        law = self._joined(Levels, self._told(x, self._beside(k)) * before)
        return law, law

    def denoise(self, x: Tensor, k: Tensor, context: Tensor | None = None) -> Tensor:
        """The probabilities of the levels of each element of the datum, ``[*batch, *event_shape,
        K]``; arguments as for :meth:`reverse`."""
        k, x = self.together(k, x)
        told = self.so_far.mT[self._beside(k), x][..., : self.levels]
        joint = self._guess(x, k, context) * told
        return joint / joint.sum(-1, keepdim=True)

    def _guess(self, x: Tensor, k: Tensor, context: Tensor | None) -> Tensor:
        seen = one_hot(x, self.num_states).to(self.one_step.dtype)
        logits = self.called(seen, k, context)
        if logits.shape != seen.shape:
            raise ValueError(
                f"denoiser: expected shape {['n', *self.event_shape, self.num_states]}, got "
                f"{['n', *logits.shape[k.dim() :]]}"
            )
        return logits[..., : self.levels].softmax(-1)

    def _mixed(self, weights: Tensor, matrices: Tensor) -> Tensor:
        """``[*batch, *event, K]`` by ``[*batch, K, S]``."""
        flat = (
            weights.flatten(matrices.dim() - 2, -2) if self.event_shape else weights[..., None, :]
        )
        return (flat @ matrices).reshape(*weights.shape[:-1], self.num_states)

    def _told(self, x: Tensor, k: Tensor) -> Tensor:
        """``Q_k[., x_k]``: how likely the state after step k is, for each state before it."""
        return self.one_step.mT[k - 1, x]

    def _beside(self, k: Tensor) -> Tensor:
        return k.reshape(*k.shape, *[1] * len(self.event_shape))

    def _joined(self, kind: type, weights: Tensor) -> TorchDistribution:
        if kind is Levels:  # of the model: nothing is impossible
            weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
        else:  # of the guide: a state that the datum cannot have reached has any law
            weights = weights + (weights.sum(-1, keepdim=True) == 0)
        joined: TorchDistribution = kind(logits=weights.log()).to_event(len(self.event_shape))
        return joined


def _matrices(
    transitions: str | Tensor, betas: Tensor | None, levels: int, num_timesteps: int
) -> Tensor:
    """The matrices of all steps, ``[T, S, S]``."""
    if isinstance(transitions, Tensor):
        return _checked(transitions.detach().double(), levels, num_timesteps)
    if transitions not in _KINDS:
        raise ValueError(
            f"transitions: expected one of {', '.join(_KINDS)} or matrices, got {transitions!r}"
        )
    if betas is None and transitions == "gaussian":
        betas = torch.linspace(0.1, 20, num_timesteps, dtype=torch.float64) / num_timesteps
        betas = betas.clamp(max=0.999)
    shares = remaining(betas, num_timesteps)
    return _KINDS[transitions](shares.reshape(-1, 1, 1), levels)


_REMEMBERED = 0.3  # in total variation: how far from their mean the laws of x_T given x_0 may be


def _check_forgotten(so_far: Tensor) -> None:
    far = 0.5 * (so_far - so_far.mean(0)).abs().sum(-1).max()
    if bool(far > _REMEMBERED):
        raise ValueError(
            f"betas: expected transitions that end near noise, got {float(far):.2f} in total "
            f"variation from it by default with {so_far.shape[-1]} levels; give larger betas, as a "
            "step hardly moves where (levels - 1)^2 beta is far below 1"
        )


def _checked(matrices: Tensor, levels: int, num_timesteps: int) -> Tensor:
    sizes = matrices.shape
    fits = len(sizes) == 3 and sizes[0] == num_timesteps and sizes[1] == sizes[2] >= levels
    if not fits or not bool((matrices >= 0).all() & ((matrices.sum(-1) - 1).abs() < 1e-5).all()):
        raise ValueError(
            f"transitions: expected {num_timesteps} square matrices of at least {levels} states "
            f"whose rows are probabilities, got shape {list(sizes)}"
        )
    return matrices


def _absorbing(shares: Tensor, levels: int) -> Tensor:
    mask = one_hot(torch.tensor(levels), levels + 1).double()
    return (1 - shares) * torch.eye(levels + 1, dtype=torch.float64) + shares * mask


def _uniform(shares: Tensor, levels: int) -> Tensor:
    return (1 - shares) * torch.eye(levels, dtype=torch.float64) + shares / levels


def _gaussian(shares: Tensor, levels: int) -> Tensor:
    distance = torch.arange(-(levels - 1), levels, dtype=torch.float64).square()
    total = (-4 * distance / ((levels - 1) ** 2 * shares)).exp().sum(-1, keepdim=True)
    i = torch.arange(levels, dtype=torch.float64)
    apart = (i[:, None] - i).square()
    moved = (-4 * apart / ((levels - 1) ** 2 * shares)).exp() / total
    off = moved * (1 - torch.eye(levels, dtype=torch.float64))
    return off + torch.diag_embed(1 - off.sum(-1))


_KINDS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "absorbing": _absorbing,
    "gaussian": _gaussian,
    "uniform": _uniform,
}
