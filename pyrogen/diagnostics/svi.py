"""The result of variational inference, for ArviZ.

The guide's draws form *one* chain. They are independent, and they come from ``q``, not from the
posterior: no R-hat or effective sample size says anything about them. What does is how far
``log p(x, z) - log q(z)`` varies (:func:`pyrogen.diagnostics.psis_khat`), so both terms are kept
with every draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrogen.diagnostics._arviz import ArvizData, to_arviz
from pyrogen.diagnostics._draws import check_num_samples, evaluating, predict, prepare
from pyrogen.diagnostics._record import Recorder
from pyrogen.diagnostics._sites import total_log_prob

__all__ = ["from_svi"]


def from_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 200,
    **kwargs: Any,
) -> ArvizData:
    r"""Draws from a guide and gathers what ArviZ needs to read the fit.

    The groups are

    * ``posterior``: latent and deterministic sites, ``z ~ q(z)``;
    * ``posterior_predictive``: the observed sites drawn anew, ``x' ~ p(x' | z)``;
    * ``log_likelihood``: ``log p(x | z)`` for every element of every observed site;
    * ``observed_data``;
    * ``sample_stats``: ``lp`` :math:`= \log p(x, z)`, ``log_q`` :math:`= \log q(z)` and
      ``log_weight``, their difference.

    Dimensions are ``chain`` (one), ``draw``, the plates by their names, with the indices of a
    subsampled plate as coordinates (one subsample for all draws), then ``<site>_dim_0``, ... for
    event axes. The result carries the attribute ``inference="svi"``.

    Points masked by ``poutine.mask`` or ``obs_mask=`` are NaN in ``observed_data`` (which makes
    integers floating) and absent from ``log_likelihood``: the site then has one axis
    ``<site>_point`` of the points that count, with coordinates ``<site>_<plate>`` that say which.
    Scales (``beta``, ``poutine.scale``, subsampling) enter none of the numbers. Modules are run in
    evaluation mode.

    ``arviz.loo`` takes the draws for posterior draws. With a latent site per datum, leaving
    :math:`x_i` out means estimating :math:`1/p(x_i)` by the mean of :math:`1/p(x_i|z_i)`, a
    harmonic mean that its Pareto shape usually flags; it is informative for global latents.

    Args:
        model: a program with at least one latent and one observed site.
        guide: a program with the model's latent sites.
        *args: passed to both.
        num_samples: number of draws.
        **kwargs: passed to both.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.

    Raises:
        ValueError: if ``num_samples < 1``, the sites of model and guide do not match, the model
            has no latent or no observed site, or its structure differs between draws.

    References:
        Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Vehtari,
        Gelman and Gabry, 2017, doi:10.1007/s11222-016-9696-4.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("mu", dist.Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5))
        >>> result = from_svi(model, guide, torch.tensor([0.5, 1.5]), num_samples=10)
        >>> dict(result.log_likelihood["x"].sizes)
        {'chain': 1, 'draw': 10, 'data': 2}
    """
    check_num_samples(num_samples)
    recorder = Recorder()
    with evaluating(model, guide):
        pair = prepare(model, guide, args, kwargs)
        for _ in range(num_samples):
            model_trace, guide_trace = pair.draw()
            recorder.draw(model_trace)
            recorder.predictive(predict(model, model_trace, args, kwargs), model_trace)
            log_joint, log_q = total_log_prob(model_trace), total_log_prob(guide_trace)
            recorder.statistic("lp", log_joint)
            recorder.statistic("log_q", log_q)
            recorder.statistic("log_weight", log_joint - log_q)
    attrs = {"inference_library": "pyro", "inference": "svi"}
    return to_arviz(recorder.groups(), attrs)
