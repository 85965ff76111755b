from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from pyrogen.diagnostics import from_svi
from tests.diagnostics.programs import (
    conjugate,
    conjugate_log_evidence,
    conjugate_posterior,
    local,
    local_guide,
)
from tests.statistics import TEST_FAILURE_RATE, assert_mean_close

X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1], dtype=torch.float64)
GROUPS = {"posterior", "posterior_predictive", "log_likelihood", "observed_data", "sample_stats"}


def test_under_the_exact_posterior_every_log_weight_is_the_log_evidence():
    result = from_svi(conjugate, conjugate_posterior, X, num_samples=20)
    expected = conjugate_log_evidence(X)
    assert np.allclose(result.sample_stats["log_weight"], expected, rtol=0, atol=1e-12)
    difference = result.sample_stats["lp"] - result.sample_stats["log_q"]
    assert np.allclose(difference, expected, rtol=0, atol=1e-12)


def test_groups_dims_coords_and_attributes():
    result = from_svi(conjugate, conjugate_posterior, X, num_samples=7)
    assert set(result.groups()) == GROUPS
    assert result.attrs["inference"] == result.posterior.attrs["inference"] == "svi"
    assert dict(result.posterior["mu"].sizes) == {"chain": 1, "draw": 7}
    for group in ("log_likelihood", "posterior_predictive"):
        assert result[group]["x"].dims == ("chain", "draw", "data")
        assert result[group]["data"].to_numpy().tolist() == [0, 1, 2, 3, 4]
    assert result.observed_data["x"].dims == ("data",)
    assert np.array_equal(result.observed_data["x"], X)
    assert result.posterior["mu"].dtype == np.float64


def test_log_likelihood_and_lp_follow_from_the_draws():
    result = from_svi(conjugate, conjugate_posterior, X, num_samples=7)
    mu = result.posterior["mu"].to_numpy()[0]
    expected = scipy.stats.norm.logpdf(X.numpy(), mu[:, None])
    assert np.allclose(result.log_likelihood["x"][0], expected, rtol=1e-12)
    lp = scipy.stats.norm.logpdf(mu) + expected.sum(-1)
    assert np.allclose(result.sample_stats["lp"][0], lp, rtol=1e-12)


def test_predictive_draws_have_the_predictive_mean_and_spread():
    result = from_svi(local, local_guide(), X, num_samples=400)
    drawn = torch.as_tensor(result.posterior_predictive["x"].to_numpy()[0])
    assert_mean_close(drawn, X / 2)
    assert_mean_close((drawn - X / 2) ** 2, torch.full_like(X, 1.5))  # 1 + posterior variance 1/2


def test_loo_matches_leave_one_out_in_closed_form():
    torch.manual_seed(1)
    x, draws = torch.randn(20, dtype=torch.float64) + 0.5, 1000
    result = from_svi(conjugate, conjugate_posterior, x, num_samples=draws)
    loo = az.loo(result, pointwise=True)
    held_in = (x.sum() - x) / 20  # posterior mean from 19 points; its variance is 1/20
    expected = scipy.stats.norm.logpdf(x, held_in, (1 + 1 / 20) ** 0.5)
    # -loo_i = log E[1 / p(x_i | mu)]: delta method for the log of a mean.
    inverse = np.exp(-result.log_likelihood["x"].to_numpy()[0])
    error = inverse.std(0) / inverse.mean(0) / draws**0.5
    quantile = scipy.stats.norm.isf(TEST_FAILURE_RATE / 2 / len(x))
    assert float(loo.pareto_k.max()) < 0.5  # the tail whose variance the delta method needs
    assert (abs(loo.loo_i.to_numpy() - expected) <= quantile * error).all()


def test_nested_plates_become_dims_in_order():
    y = torch.arange(12.0).reshape(3, 4)

    def model():
        with pyro.plate("rows", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("cols", 4, dim=-1):
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("rows_too", 3, dim=-2):
                pyro.sample("y", dist.Normal(a + b.sum(-1), 1.0), obs=y)

    def guide():
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("cols", 4, dim=-1):
            pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    result = from_svi(model, guide, num_samples=5)
    assert dict(result.posterior["a"].sizes) == {"chain": 1, "draw": 5, "rows": 3}
    assert dict(result.posterior["b"].sizes) == {"chain": 1, "draw": 5, "cols": 4, "b_dim_0": 2}
    assert result.observed_data["y"].dims == ("rows_too", "cols")
    mean = (
        result.posterior["a"].to_numpy()[..., :, None]
        + result.posterior["b"].sum("b_dim_0").to_numpy()[..., None, :]
    )
    expected = scipy.stats.norm.logpdf(y.numpy(), mean)
    assert np.allclose(result.log_likelihood["y"], expected, atol=1e-5)  # float32 sums


def test_axes_of_size_one_left_of_no_plate_vanish():
    def model(x):
        with pyro.plate("data", 5, dim=-3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, None, None])

    def guide(x):
        with pyro.plate("data", 5, dim=-3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    result = from_svi(model, guide, X, num_samples=3)
    assert result.posterior["z"].shape == result.log_likelihood["x"].shape == (1, 3, 5)
    assert np.array_equal(result.observed_data["x"], X)


@pytest.mark.parametrize("wrap", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_report_the_models_sites_only(wrap):
    y = torch.tensor([28.0, 8.0, -3.0])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 3):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 10.0), obs=y)

    guide = wrap(model, init_scale=0.3)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(y)
    result = from_svi(model, guide, y, num_samples=6)
    assert set(result.posterior.data_vars) == {"mu", "tau", "theta"}
    assert result.posterior["theta"].dims == ("chain", "draw", "schools")


def test_log_q_of_an_autoguide_includes_the_change_of_variables():
    def model(y):
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(0.0, tau), obs=y)

    guide = AutoNormal(model, init_scale=0.3)
    y = torch.tensor([1.0, -2.0])
    guide(y)
    result = from_svi(model, guide, y, num_samples=6)
    location = guide.locs.tau.item()
    expected = scipy.stats.lognorm.logpdf(result.posterior["tau"], 0.3, scale=np.exp(location))
    assert np.allclose(result.sample_stats["log_q"], expected, atol=1e-5)


def masked_model(mask):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return model


def test_masked_points_are_left_out_of_the_log_likelihood():
    mask = torch.tensor([True, False, True, True, False])
    full = from_svi(masked_model(mask), conjugate_posterior, X, num_samples=200)
    log_likelihood = full.log_likelihood["x"]
    assert log_likelihood.dims == ("chain", "draw", "x_point")
    assert log_likelihood["x_data"].to_numpy().tolist() == [0, 2, 3]
    mu = full.posterior["mu"].to_numpy()[..., None]
    assert np.allclose(log_likelihood, scipy.stats.norm.logpdf(X[mask].numpy(), mu), atol=1e-6)
    observed = full.observed_data["x"].to_numpy()
    assert np.array_equal(np.isnan(observed), ~mask)
    assert np.array_equal(observed[mask], X[mask])
    lp = scipy.stats.norm.logpdf(mu[..., 0]) + log_likelihood.to_numpy().sum(-1)
    assert np.allclose(full.sample_stats["lp"], lp, atol=1e-6)
    assert az.loo(full, pointwise=True).n_data_points == 3


def test_a_mask_of_the_distribution_counts_like_one_of_poutine():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).mask(x > 0), obs=x)

    result = from_svi(model, conjugate_posterior, X, num_samples=3)
    assert result.log_likelihood["x_data"].to_numpy().tolist() == [0, 2, 3, 4]


def test_a_mask_over_two_plates_keeps_both_labels():
    mask = torch.tensor([[True, False, True], [False, True, True]])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2, dim=-2), pyro.plate("cols", 3, dim=-1), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    group = from_svi(model, guide, torch.zeros(2, 3), num_samples=2).log_likelihood
    assert group["y_rows"].to_numpy().tolist() == [0, 0, 1, 1]
    assert group["y_cols"].to_numpy().tolist() == [0, 2, 1, 2]


def test_a_site_masked_altogether_has_no_log_likelihood():
    result = from_svi(masked_model(False), conjugate_posterior, X, num_samples=3)
    assert "log_likelihood" not in result.groups()
    assert np.isnan(result.observed_data["x"]).all()


def test_a_mask_that_differs_between_draws_is_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=x > mu):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(ValueError, match="one mask for all draws"):
        from_svi(model, conjugate_posterior, X, num_samples=50)


def test_obs_mask_reports_the_completed_site():
    mask = torch.tensor([True, False, True, True, False])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=mask)

    def guide(x):
        conjugate_posterior(x)
        with pyro.plate("data", len(x)), poutine.mask(mask=~mask):
            pyro.sample("x_unobserved", dist.Normal(torch.zeros_like(x), 1.0))

    result = from_svi(model, guide, X, num_samples=4)
    assert set(result.posterior.data_vars) == {"mu", "x"}
    completed = result.posterior["x"].to_numpy()[0]
    assert np.array_equal(completed[:, mask], X[mask].expand(4, -1))
    assert len(np.unique(completed[:, ~mask])) == 8
    assert result.log_likelihood["x_observed_data"].to_numpy().tolist() == [0, 2, 3]
    assert np.array_equal(np.isnan(result.observed_data["x_observed"]), ~mask)


def test_all_draws_share_one_subsample():
    data = torch.arange(100.0)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            pyro.sample("z", dist.Normal(x[index], 1e-3))

    result = from_svi(model, guide, data, num_samples=30)
    index = result.observed_data["data"].to_numpy()
    assert len(set(index)) == 10
    assert np.array_equal(result.observed_data["x"], index)
    assert np.array_equal(result.posterior["data"], index)
    assert abs(result.posterior["z"] - index).max() < 0.01  # ten standard deviations
    assert result.log_likelihood["x"].shape == (1, 30, 10)


def test_the_subsample_may_be_the_models_alone():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    result = from_svi(model, conjugate_posterior, X, num_samples=20)
    index = result.observed_data["data"].to_numpy()
    expected = scipy.stats.norm.logpdf(
        X.numpy()[index], result.posterior["mu"].to_numpy()[..., None]
    )
    assert np.allclose(result.log_likelihood["x"], expected, atol=1e-6)


def test_scales_enter_no_number():
    def scaled(program):
        return poutine.scale(program, scale=0.3)

    plain = from_svi(conjugate, conjugate_posterior, X, num_samples=4)
    pyro.set_rng_seed(0)
    weighted = from_svi(scaled(conjugate), scaled(conjugate_posterior), X, num_samples=4)
    pyro.set_rng_seed(0)
    plain = from_svi(conjugate, conjugate_posterior, X, num_samples=4)
    for group in ("sample_stats", "log_likelihood"):
        for name in plain[group].data_vars:
            assert np.array_equal(plain[group][name], weighted[group][name])


@pytest.mark.parametrize("event_dim", [None, 0])
def test_deterministic_sites_are_posterior_only(event_dim):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            doubled = pyro.deterministic("doubled", 2 * z, event_dim=event_dim)
            pyro.sample("x", dist.Normal(doubled, 1.0), obs=x)

    result = from_svi(model, local_guide(), X, num_samples=4)
    assert result.posterior["doubled"].dims == ("chain", "draw", "data")
    assert np.allclose(result.posterior["doubled"], 2 * result.posterior["z"])
    for group in ("log_likelihood", "observed_data", "posterior_predictive"):
        assert set(result[group].data_vars) == {"x"}


def test_factors_count_in_lp_and_are_reported_nowhere():
    def model(x):
        conjugate(x)
        pyro.factor("extra", torch.tensor(2.5, dtype=torch.float64))

    result = from_svi(model, conjugate_posterior, X, num_samples=4)
    expected = conjugate_log_evidence(X) + 2.5
    assert np.allclose(result.sample_stats["log_weight"], expected, atol=1e-12)
    assert set(result.observed_data.data_vars) == set(result.log_likelihood.data_vars) == {"x"}


def test_integers_stay_integers():
    def model(x):
        logits = pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(logits=logits), obs=x)

    def guide(x):
        pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    result = from_svi(model, guide, torch.tensor([0, 2, 1]), num_samples=3)
    assert result.observed_data["x"].dtype == result.posterior_predictive["x"].dtype == np.int64


def test_modules_run_in_evaluation_mode_and_return_to_theirs():
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.dropout(x), 1e-6))

    guide = Guide()
    result = from_svi(local, guide, X, num_samples=5)
    assert np.allclose(result.posterior["z"], X, atol=1e-4)
    assert guide.training
    assert guide.dropout.training
    assert not guide.frozen.training


def test_netcdf_round_trip(tmp_path):
    mask = torch.tensor([True, False, True, True, False])
    result = from_svi(masked_model(mask), conjugate_posterior, X, num_samples=4)
    result.to_netcdf(str(tmp_path / "result.nc"))
    again = az.from_netcdf(str(tmp_path / "result.nc"))
    for group in GROUPS:
        assert result[group].drop_attrs().equals(again[group].drop_attrs())
    assert again.posterior.attrs["inference"] == "svi"


def nothing_latent(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def nothing_observed(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def reserved_plate(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("draw", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "num_samples", "message"),
    [
        (conjugate, conjugate_posterior, 0, "num_samples: expected an integer of at least 1"),
        (conjugate, conjugate_posterior, 2.0, "num_samples: expected an integer"),
        (conjugate, local_guide(), 2, "only in the model"),
        (nothing_latent, lambda x: None, 2, "at least one latent sample site"),
        (nothing_observed, conjugate_posterior, 2, "at least one observed sample site"),
        (reserved_plate, conjugate_posterior, 2, "rename the plate"),
    ],
)
def test_bad_input_says_expected_and_got(model, guide, num_samples, message):
    with pytest.raises(ValueError, match=message):
        from_svi(model, guide, X, num_samples=num_samples)


def test_a_latent_site_that_only_the_model_enumerates_is_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + k, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"draws every latent site, got none for \['k'\]"):
        from_svi(model, conjugate_posterior, X, num_samples=2)


def test_structure_that_changes_between_draws_is_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if mu > 0:
            pyro.deterministic("positive", mu)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="structure of the program must be fixed"):
        from_svi(model, guide, X, num_samples=40)
