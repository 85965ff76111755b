r"""Convergence of many short chains.

The usual R-hat compares the variance between chains with that within them, and needs chains long
enough that both are known. With thousands of chains it is cheaper to make them short, but then
R-hat stays large whatever happens, since the mean of a short chain is noisy. Nested R-hat groups
the chains into :math:`K` *superchains* of :math:`M` chains each, that start from one point, and
compares superchains instead:

.. math::
    \hat R = \sqrt{1 + \frac{\hat B}{\hat W}}, \qquad
    \hat B = \operatorname{Var}_k[\bar\theta_k], \qquad
    \hat W = \frac1K \sum_k (\tilde B_k + \tilde W_k),

where :math:`\bar\theta_k` is the mean of a superchain, :math:`\tilde B_k` the variance between the
means of its chains and :math:`\tilde W_k` the mean variance within them. If chains have forgotten
where they started, so have the means of the superchains, and :math:`\hat R` is close to
:math:`\sqrt{1 + 1/(M N)}` for independent draws, however short the chains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["nested_rhat"]


def nested_rhat(samples: Any, num_superchains: int) -> dict[str, Tensor]:
    r"""Nested R-hat of every site, for many short chains.

    Chains :math:`1 \dots M` are the first superchain, the next :math:`M` the second, and so on. All
    chains of one superchain are to start from the same point, and the points are to be
    over-dispersed: repeat each one with ``initial_params={name: x.repeat_interleave(M, 0)}``.
    Chains that start from points of their own hide in :math:`\hat W` what they remember of them.

    A number near 1 says that starting points no longer matter. What is near depends on how precise
    the mean is to be: the squared error of the mean of a superchain is about :math:`\hat R^2 - 1`
    in units of the posterior variance, so 1.01 asks for an effective sample size of 50 in each.

    Args:
        samples: a finished run (:class:`pyrogen.kernels.MCMC` or ``pyro.infer.MCMC``), or its
            draws, name to ``[chains, draws, *event]``.
        num_superchains: :math:`K`.

    Returns:
        Name to R-hat ``[*event]``.

    Raises:
        ValueError: if the chains cannot be divided so, or there is one draw per superchain.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman, *Nested R-hat: Assessing the
        Convergence of Markov Chain Monte Carlo When Running Many Short Chains*, Bayesian Analysis
        2024 (arXiv:2110.13017).

    Example:
        >>> draws = torch.randn(1000, 2)  # 1000 chains of two draws
        >>> bool(nested_rhat({"mu": draws}, num_superchains=10)["mu"] < 1.02)
        True
        >>> remembered = torch.randn(10).repeat_interleave(100).unsqueeze(1)
        >>> bool(nested_rhat({"mu": draws + remembered}, num_superchains=10)["mu"] > 1.1)
        True
    """
    draws = samples if isinstance(samples, Mapping) else samples.get_samples(group_by_chain=True)
    return {name: _nested_rhat(name, value, num_superchains) for name, value in draws.items()}


def _nested_rhat(name: str, value: Tensor, num_superchains: int) -> Tensor:
    chains, draws = value.shape[:2]
    if num_superchains < 2 or chains % num_superchains or chains * draws == num_superchains:
        raise ValueError(
            f"num_superchains: expected at least 2, of equally many chains and more than one draw "
            f"each, got {num_superchains} for {chains} chains of {draws} draws at site {name!r}"
        )
    x = value.double().unflatten(0, (num_superchains, -1))  # [superchain, chain, draw, *event]
    within = _variance(x, 2).mean(1)
    chain_mean = x.mean(2)
    between_chains = _variance(chain_mean, 1)
    between = chain_mean.mean(1).var(0)
    return torch.sqrt(1 + between / (between_chains + within).mean(0))


def _variance(x: Tensor, dim: int) -> Tensor:
    """Zero where there is but one."""
    return x.var(dim) if x.shape[dim] > 1 else torch.zeros_like(x.select(dim, 0))
