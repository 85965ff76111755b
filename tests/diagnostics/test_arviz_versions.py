"""What differs between ArviZ 0.x and 1.x, on whichever is installed.

The module is loaded from its file, without its package: it must work where torch is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "pyrogen" / "diagnostics" / "_arviz.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("_arviz_alone", PATH)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules[spec.name]


@pytest.fixture
def result(module):
    rng = np.random.default_rng(0)
    sample = ("chain", "draw")
    mu = rng.normal(size=(2, 200)) / 5
    log_likelihood = -((mu[..., None] - np.arange(3)) ** 2) / 2
    groups = {
        "posterior": module.Group({"mu": (sample, mu)}),
        "log_likelihood": module.Group(
            {"x": ((*sample, "data"), log_likelihood)}, {"data": (("data",), [4, 7, 9])}
        ),
        "observed_data": module.Group({"x": (("data",), np.array([4, 5, 6]))}),
        "sample_stats": module.Group({"rate": (("chain",), np.array([0.5, 0.6]))}),
        "prior": module.Group(),
    }
    return module.to_arviz(groups, {"inference": "svi"})


def test_groups_labels_and_attributes(result):
    assert result.posterior["mu"].dims == ("chain", "draw")
    assert result.posterior["draw"].to_numpy().tolist() == list(range(200))
    assert result.log_likelihood["data"].to_numpy().tolist() == [4, 7, 9]
    assert result.observed_data["x"].dtype == np.int64
    assert result.attrs["inference"] == result.posterior.attrs["inference"] == "svi"
    assert not hasattr(result, "prior")


def test_arviz_reads_the_result(module, result):
    arviz = module._arviz()
    assert arviz.summary(result)["mean"].index.tolist() == ["mu"]
    loo = arviz.loo(result, pointwise=True)
    elpd = getattr(loo, "elpd_loo", None) if hasattr(loo, "elpd_loo") else loo.elpd
    # With a posterior this narrow nothing is learned from one datum: elpd is close to the
    # log of the mean likelihood. The difference is of the order of the posterior variance, 1/25,
    # times the squared residuals, 0 + 1 + 4.
    likelihood = np.exp(result.log_likelihood["x"].to_numpy()).mean((0, 1))
    assert np.log(likelihood).sum() - 0.5 < elpd < np.log(likelihood).sum()


def test_netcdf_round_trip(module, result, tmp_path):
    path = str(tmp_path / "result.nc")
    result.to_netcdf(path)
    again = module._arviz().from_netcdf(path)
    assert np.array_equal(again.posterior["mu"], result.posterior["mu"])
    assert again.log_likelihood["data"].to_numpy().tolist() == [4, 7, 9]


def test_pareto_shape_of_an_exact_pareto_tail(module):
    # log w = k * Exponential(1) is exactly Pareto with shape k.
    k = np.array([0.2, 0.5, 1.0])
    exponential = np.random.default_rng(0).exponential(size=(3, 40, 2000))
    shapes = module.pareto_shape(k[:, None, None] * exponential)
    assert shapes.shape == (3, 40)
    # ArviZ regularises towards 1/2 by 10 pseudo-draws beside its 3 sqrt(2000) = 135 tail draws.
    expected = (135 * k + 10 * 0.5) / 145
    # Its likelihood estimator has standard deviation about (1 + k) / sqrt(135), here of 40 means.
    error = (1 + k) / 135**0.5 / 40**0.5
    assert (abs(shapes.mean(1) - expected) < 5 * error).all()


def test_the_input_is_not_changed(module):
    weights = np.random.default_rng(0).normal(size=(2, 100))
    before = weights.copy()
    module.pareto_shape(weights)
    assert np.array_equal(weights, before)
