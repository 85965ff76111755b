from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta

from pyrogen.diagnostics import ParetoDiagnostic, psis_khat
from pyrogen.diagnostics._arviz import pareto_shape
from tests.diagnostics.programs import conjugate, conjugate_posterior, local, local_guide
from tests.statistics import TEST_FAILURE_RATE

X = torch.tensor([0.3, -1.2, 2.0, 0.7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights_have_no_tail(dtype):
    x = torch.linspace(-2, 2, 30, dtype=dtype)
    local_shapes = psis_khat(local, local_guide(), x, num_samples=100)
    assert (local_shapes.values == -np.inf).all()
    assert psis_khat(conjugate, conjugate_posterior, x, num_samples=100).max == -np.inf


@pytest.mark.parametrize(("variance", "unreliable"), [(0.05, True), (1.0, False)])
def test_shapes_of_a_guide_of_the_wrong_width(variance, unreliable):
    # q = N(m, v), posterior N(m, 1/2): log w = const - u^2 (v / (1/2) - 1) / 2 with u ~ N(0, 1).
    size, draws = 60, 300
    result = psis_khat(local, local_guide(variance), torch.zeros(size), num_samples=draws)
    u = np.random.default_rng(0).standard_normal((size, draws))
    reference = pareto_shape(-(u**2) * (variance / 0.5 - 1) / 2)
    error = np.sqrt((result.values.var() + reference.var()) / size)
    quantile = scipy.stats.norm.isf(TEST_FAILURE_RATE / 2)
    assert abs(result.values.mean() - reference.mean()) <= quantile * error
    assert (result.median > 0.7) == unreliable
    assert (result.share_unreliable > 0.5) == unreliable


def test_one_shape_per_element_only_where_everything_is_inside_the_plate():
    assert psis_khat(local, local_guide(1.0), X, num_samples=50).plates == ("data",)

    def wide(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    result = psis_khat(conjugate, wide, X, num_samples=50)
    assert result.plates == ()
    assert result.values.shape == ()
    assert result.max == result.median


def test_scales_do_not_enter():
    pyro.set_rng_seed(3)
    plain = psis_khat(local, local_guide(1.0), X, num_samples=50)
    pyro.set_rng_seed(3)
    scaled = [poutine.scale(program, scale=0.1) for program in (local, local_guide(1.0))]
    assert np.array_equal(psis_khat(*scaled, X, num_samples=50).values, plain.values)


def test_the_table_reads():
    result = ParetoDiagnostic(np.array([0.1, 0.3, 0.9, 0.2]), ("data",), 500)
    assert (result.max, result.median, result.share_unreliable) == (0.9, 0.25, 0.25)
    assert str(result) == (
        "PSIS k-hat per element of data: median 0.25, max 0.90, 25.0% above 0.7 "
        "(4 elements, 500 draws)"
    )
    single = ParetoDiagnostic(np.array(0.9), (), 500)
    assert str(single) == "PSIS k-hat 0.90 (unreliable; 500 draws)"


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])


@pytest.mark.parametrize(
    ("model", "guide", "num_samples", "message"),
    [
        (conjugate, conjugate_posterior, 24, "at least 25"),
        (conjugate, AutoDelta(conjugate), 50, "point estimates only"),
        (subsampled, conjugate_posterior, 50, "all 4 elements"),
        (conjugate, local_guide(), 50, "only in the guide"),
    ],
)
def test_bad_input_says_expected_and_got(model, guide, num_samples, message):
    with pytest.raises(ValueError, match=message):
        psis_khat(model, guide, X, num_samples=num_samples)


def test_a_subsample_that_holds_everything_is_fine():
    def inside(program):
        def run(x):
            with pyro.plate("data", len(x), subsample_size=2) as index:
                program(x[index])

        return run

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 1.0))

    assert psis_khat(inside(model), inside(guide), X, num_samples=50).values.shape == (2,)


def test_weights_that_are_not_finite_are_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("wall", torch.where(z > 0, 0.0, -torch.inf))

    with pytest.raises(ValueError, match="finite importance weights"):
        psis_khat(model, guide, X, num_samples=50)
