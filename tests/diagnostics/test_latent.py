from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyrogen.diagnostics import PosteriorCollapseWarning, latent_report
from tests.diagnostics.programs import conjugate, conjugate_posterior
from tests.statistics import assert_mean_close

WEIGHTS = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]], dtype=torch.float64)  # [D, units]
NOISE = 0.5
torch_rows = torch.tensor([[0.4, -2.0, 0.1], [1.0, 1.5, -0.3], [-1.2, 0.2, 0.9], [0.0, 3.0, 0.5]])
X = torch_rows.double()


def linear_model(x):
    """z ~ N(0, I_2), x ~ N(W z, NOISE^2 I_3)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS.to(x).T, NOISE).to_event(1), obs=x)


def linear_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], 0.3).to_event(1))


def prior_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def test_kl_per_unit_variance_and_rate_by_hand():
    report = latent_report(linear_model, linear_guide, X, num_samples=3)
    kl = (0.09 + X[:, :2] ** 2 - 1) / 2 - math.log(0.3)
    assert np.allclose(report.sites["z"].kl, kl.mean(0), rtol=1e-12)
    assert np.allclose(report.sites["z"].variance, X[:, :2].var(0), rtol=1e-9)
    assert report.rate == pytest.approx(float(kl.sum(1).mean()), rel=1e-12)
    assert (report.active_units, report.num_units, report.num_data) == (2, 2, 4)


def test_distortion_of_a_linear_decoder():
    # E |x - W z|^2 = |x - W m|^2 + 0.09 |W|^2 under z ~ N(m, 0.09 I).
    reports = [latent_report(linear_model, linear_guide, X, num_samples=2) for _ in range(200)]
    residual = (X - X[:, :2] @ WEIGHTS.T).square().sum(1) + 0.09 * WEIGHTS.square().sum()
    expected = residual / (2 * NOISE**2) + 1.5 * math.log(2 * math.pi * NOISE**2)
    assert_mean_close(torch.tensor([r.distortion for r in reports]), float(expected.mean()))


def test_nats_and_bits():
    report = latent_report(linear_model, linear_guide, X)
    assert report.elbo == pytest.approx(-report.rate - report.distortion, rel=1e-12)
    assert report.num_dims == 3
    assert report.bits_per_dim == pytest.approx(-report.elbo / (3 * math.log(2)), rel=1e-12)


def test_beta_does_not_enter():
    pyro.set_rng_seed(1)
    plain = latent_report(linear_model, linear_guide, X)
    pyro.set_rng_seed(1)
    scaled = [poutine.scale(program, scale=4.0) for program in (linear_model, linear_guide)]
    assert latent_report(*scaled, X).to_dict() == plain.to_dict()


def test_a_guide_equal_to_the_prior_warns_of_collapse():
    with pytest.warns(PosteriorCollapseWarning, match="0 of 2 latent units depend on the data"):
        report = latent_report(linear_model, prior_guide, X)
    assert report.collapsed
    assert report.rate == 0
    assert "collapsed" in str(report)
    assert not latent_report(linear_model, linear_guide, X).collapsed


def test_units_whose_mean_is_not_known_are_measured_by_draws():
    x = torch.randn(200, 3, dtype=torch.float64)
    shift = dist.transforms.AffineTransform(0.0, 1.0, event_dim=1)

    def guide(x):
        base = dist.Normal(torch.stack([x[:, 0], torch.zeros(len(x))], -1), x.new_tensor([0.2, 1]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base.to_event(1), [shift]))

    report = latent_report(linear_model, guide, x, num_samples=64)
    # The average draw of the second unit varies by 1/64, above 0.01, which must be taken off; what
    # is left has a standard error of sqrt(2 / 200) / 64 = 0.0016.
    assert report.sites["z"].active.tolist() == [True, False]
    assert report.sites["z"].kl is None
    expected = float(x[:, 0].var())
    error = 2 * expected**0.5 * 0.2 / 64**0.5 / 200**0.5  # of twice the covariance with the noise
    assert abs(report.sites["z"].variance[0] - expected) < 5 * error


def test_rate_without_a_closed_form_is_that_of_the_draws():
    x = X[:, :2]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = AutoNormal(model, init_loc_fn=lambda site: x.clone(), init_scale=0.4)
    guide(x)
    reports = [latent_report(model, guide, x, num_samples=2) for _ in range(200)]
    kl = (0.16 + x**2 - 1) / 2 - math.log(0.4)
    assert_mean_close(torch.tensor([r.rate for r in reports]), float(kl.sum(1).mean()))
    assert reports[0].sites["z"].kl is None


def test_hierarchy_and_global_sites_count_in_the_rate():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(mu, 1.0))
            low = pyro.sample("low", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(low, 1.0), obs=x)

    def guide(x):
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 0.1))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(mu + x, 1.0))
            pyro.sample("low", dist.Normal(top + x, 1.0))

    x = X[:, 0]
    report = latent_report(model, guide, x)
    # KL(mu) / N, then x^2 / 2 for each of the two local sites, whatever was drawn.
    kl_mu = (0.01 - 1) / 2 - math.log(0.1)
    assert report.rate == pytest.approx(kl_mu / 4 + float(x.square().mean()), rel=1e-12)
    assert list(report.sites) == ["top", "low"]
    assert report.sites["low"].kl == pytest.approx([float(x.square().mean()) / 2], rel=1e-12)


def test_masked_data_are_not_counted():
    mask = torch.tensor([True, True, False, True])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z @ WEIGHTS.T, NOISE).to_event(1), obs=x)

    assert latent_report(model, linear_guide, X).num_dims == 9 / 4


def test_other_plates_and_event_axes_are_units():
    def model(x):
        with pyro.plate("parts", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, :2])

    def guide(x):
        with pyro.plate("parts", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x[:, :2, None].expand(-1, -1, 3), 1.0).to_event(1))

    report = latent_report(model, guide, X)
    means = (X[:, :2].square() / 2).mean(0)
    assert np.allclose(report.sites["z"].kl, means.repeat_interleave(3), rtol=1e-12)
    assert report.num_dims == 2


def test_discrete_units_have_no_variance_and_do_not_count_as_collapsed():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(3)))
            pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(probs=x.new_tensor([1.0, 1.0, 2.0]) / 4))

    report = latent_report(model, guide, X[:, 0])
    entropy = 1.5 * math.log(2)  # of (1/4, 1/4, 1/2)
    assert report.sites["k"].kl == pytest.approx([math.log(3) - entropy], rel=1e-9)
    assert np.isnan(report.sites["k"].variance).all()
    assert not report.collapsed


def test_tables():
    report = latent_report(linear_model, linear_guide, X)
    kl = sorted(report.sites["z"].kl.tolist(), reverse=True)
    text, markdown = str(report), report.to_markdown()
    for shown in (f"{report.elbo:.3f}", f"{report.distortion:.3f}", "2 of 2 units active"):
        assert shown in text
        assert shown in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| z[")]
    assert [f"{value:.4f}" for value in kl] == [row.split(" | ")[1] for row in rows]
    assert json.loads(json.dumps(report.to_dict()))["active_units"] == 2


@pytest.mark.parametrize(
    ("model", "guide", "x", "num_samples", "message"),
    [
        (linear_model, linear_guide, X, 1, "num_samples: expected an integer of at least 2"),
        (linear_model, linear_guide, X[:1], 4, "at least 2 data"),
        (conjugate, conjugate_posterior, X[:, 0], 4, "a latent site inside the plate 'data'"),
        (linear_model, conjugate_posterior, X, 4, "only in the model"),
    ],
)
def test_bad_input_says_expected_and_got(model, guide, x, num_samples, message):
    with pytest.raises(ValueError, match=message):
        latent_report(model, guide, x, num_samples=num_samples)
