from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO

from pyrogen.diagnostics import iwae_bound
from tests.diagnostics.programs import (
    conjugate,
    conjugate_log_evidence,
    conjugate_posterior,
    local,
    local_guide,
    local_log_evidence,
)
from tests.statistics import assert_mean_close

X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)


def test_the_exact_posterior_gives_the_log_evidence():
    assert iwae_bound(local, local_guide(), X, num_particles=3) == pytest.approx(
        local_log_evidence(X), abs=1e-12
    )
    assert iwae_bound(conjugate, conjugate_posterior, X, num_particles=3) == pytest.approx(
        conjugate_log_evidence(X) / len(X), abs=1e-12
    )


def wide_global(x):
    pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))


@pytest.mark.parametrize(("model", "guide"), [(local, local_guide(1.0)), (conjugate, wide_global)])
def test_it_is_pyros_renyi_bound_per_datum_on_the_same_draws(model, guide):
    pyro.set_rng_seed(5)
    bound = iwae_bound(model, guide, X, num_particles=8)
    pyro.set_rng_seed(5)
    guide(X)  # the run that compares the two programs
    loss = RenyiELBO(alpha=0, num_particles=8).loss(model, guide, X)
    assert bound == pytest.approx(-loss / len(X), abs=1e-12)


def test_one_particle_is_the_elbo():
    # ELBO = log p(x) - KL(N(x/2, 1) || N(x/2, 1/2)), with KL = (2 - 1 - log 2) / 2.
    x = torch.zeros(500, dtype=torch.float64)
    bounds = [iwae_bound(local, local_guide(1.0), x, num_particles=1) for _ in range(20)]
    gap = (1 - torch.log(torch.tensor(2.0))) / 2
    assert_mean_close(torch.tensor(bounds), local_log_evidence(x) - gap)


def test_scales_do_not_enter():
    pyro.set_rng_seed(5)
    plain = iwae_bound(local, local_guide(1.0), X)
    pyro.set_rng_seed(5)
    scaled = [poutine.scale(program, scale=4.0) for program in (local, local_guide(1.0))]
    assert iwae_bound(*scaled, X) == plain


def test_too_few_particles():
    with pytest.raises(ValueError, match="num_particles: expected an integer of at least 1, got 0"):
        iwae_bound(local, local_guide(), X, num_particles=0)
