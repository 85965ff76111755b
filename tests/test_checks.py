"""The checks, and that every way of passing the wrong thing meets one of them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import nn

from pyrogen.checks import check_data, check_pair, nonfinite_site
from pyrogen.guides import AmortizedNormal
from pyrogen.models import VAE
from pyrogen.nn import MLP

EXPECTED_AND_GOT = r"(?s)expected.*got"
quick = settings(max_examples=40, deadline=None)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
events = st.lists(st.integers(1, 4), max_size=3).map(tuple)
dtypes = st.sampled_from(
    [torch.float16, torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64]
)
junk = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.lists(st.floats()),
    st.builds(object),
    st.just(nn.ReLU()),
)


def programs(event_shape=(4,), latent_dim=2, beta=1.0, guide_beta=None, likelihood="normal"):
    model = VAE(MLP(latent_dim, event_shape, hidden=()), latent_dim, likelihood, beta=beta)
    guide = AmortizedNormal(
        MLP(event_shape, 2 * latent_dim, hidden=()),
        latent_dim,
        beta=beta if guide_beta is None else guide_beta,
    )
    return model, guide


MODEL, GUIDE = programs()
TAKES_DATA = {
    "check_data": lambda data: check_data(data, (4,), dtype=torch.float32),
    "model": MODEL,
    "guide": GUIDE,
    "posterior": GUIDE.posterior,
    "check_pair": lambda data: check_pair(MODEL, GUIDE, (data,)),
    "elbo": lambda data: pyro.infer.TraceMeanField_ELBO().loss(MODEL, GUIDE, data),
}
takes_data = pytest.mark.parametrize("call", TAKES_DATA.values(), ids=TAKES_DATA.keys())


@quick
@given(event_shape=events, batch=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_usable_data_come_back_as_they_are(event_shape, batch):
    data = torch.randn(*batch, *event_shape)
    assert check_data(data, event_shape) is data
    assert check_data(data, list(event_shape), dtype=torch.float32) is data


@takes_data
@quick
@given(shape=shapes)
def test_wrong_event_shape_is_refused(call, shape):
    assume(len(shape) < 2 or shape[-1] != 4)
    with pytest.raises(ValueError, match=r"expected shape \[\*, 4\].*got \["):
        call(torch.zeros(shape))


@takes_data
@quick
@given(batch=st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(lambda sizes: 0 in sizes))
def test_empty_data_are_refused(call, batch):
    with pytest.raises(ValueError, match=r"expected at least one datum, got shape \["):
        call(torch.zeros(*batch, 4))


@takes_data
@quick
@given(dtype=dtypes)
def test_wrong_dtype_is_refused(call, dtype):
    with pytest.raises(ValueError, match=rf"{EXPECTED_AND_GOT}.*{dtype}"):
        call(torch.ones(3, 4).to(dtype))


@takes_data
@quick
@given(
    place=st.tuples(st.integers(0, 2), st.integers(0, 3)),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)
def test_values_that_are_not_finite_are_refused(call, place, value):
    data = torch.zeros(3, 4)
    data[place] = value
    with pytest.raises(ValueError, match=r"expected finite values, got 1 NaN or infinite among 12"):
        call(data)


@takes_data
@quick
@given(data=junk)
def test_what_is_no_tensor_is_refused(call, data):
    if data is None and call is MODEL:
        return  # the model draws
    with pytest.raises(ValueError, match=EXPECTED_AND_GOT):
        call(data)


def test_values_are_not_read_without_validation():
    data = torch.full((3, 4), torch.nan)
    with pyro.validation_enabled(False):
        assert check_data(data, (4,)) is data


def test_complex_data_are_read_too():
    data = torch.full((3, 4), complex(0, float("nan")))
    with pytest.raises(ValueError, match="expected finite values, got 12"):
        check_data(data, (4,))


@quick
@given(
    betas=st.tuples(*[st.floats(0.01, 100)] * 2),
)
def test_pair_matches_exactly_if_beta_does(betas):
    one, other = betas
    model, guide = programs(beta=one, guide_beta=other)
    data = torch.randn(3, 4)
    if abs(one - other) <= 1e-7 * other:
        check_pair(model, guide, (data,))
    else:
        assume(abs(one - other) > 1e-5 * other)
        with pytest.raises(ValueError, match=r"site 'z': expected scale .*got .*same beta"):
            check_pair(model, guide, (data,))


@quick
@given(sizes=st.tuples(*[st.integers(1, 6)] * 2).filter(lambda sizes: sizes[0] != sizes[1]))
def test_another_latent_size_is_refused(sizes):
    model, _ = programs(latent_dim=sizes[0])
    _, guide = programs(latent_dim=sizes[1])
    with pytest.raises(ValueError, match=EXPECTED_AND_GOT):
        check_pair(model, guide, (torch.randn(3, 4),))


names = st.sets(st.sampled_from("abcd"), min_size=1)


def sampler(sites, event=()):
    def program():
        for name in sorted(sites):
            pyro.sample(name, dist.Normal(torch.zeros(event), 1.0).to_event(len(event)))

    return program


@quick
@given(in_model=names, in_guide=names)
def test_site_names_must_be_the_same(in_model, in_guide):
    if in_model == in_guide:
        model_trace, guide_trace = check_pair(sampler(in_model), sampler(in_guide))
        assert set(model_trace.stochastic_nodes) == set(guide_trace.stochastic_nodes) == in_model
        return
    with pytest.raises(ValueError, match=EXPECTED_AND_GOT) as caught:
        check_pair(sampler(in_model), sampler(in_guide))
    assert f"only in the model: {sorted(in_model - in_guide)}" in str(caught.value)
    assert f"only in the guide: {sorted(in_guide - in_model)}" in str(caught.value)


def test_a_scale_may_be_a_number_on_one_side_and_a_tensor_on_the_other():
    model, guide = sampler("a"), sampler("a")
    tenth = torch.tensor(0.1)  # differs from 0.1 in double precision
    check_pair(poutine.scale(model, 0.1), poutine.scale(guide, tenth))
    check_pair(poutine.scale(model, tenth.double()), poutine.scale(guide, 0.1))
    with pytest.raises(ValueError, match=r"site 'a': expected scale 0.1 .*got 1.0"):
        check_pair(poutine.scale(model, 0.1), guide)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 5), r"expected shape \[\*, 4\].*got \[3, 5\]"),
        (torch.zeros(3, 4, dtype=torch.int64), r"expected dtype torch.float32, got torch.int64"),
    ],
)
def test_the_model_explains_what_a_plain_encoder_chokes_on(data, message):
    with pytest.raises(ValueError, match=message):
        check_pair(MODEL, AmortizedNormal(nn.Linear(4, 4), 2), (data,))


def test_a_fault_of_the_guides_network_is_passed_on():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_pair(MODEL, AmortizedNormal(nn.Linear(5, 4), 2), (torch.zeros(3, 4),))


def test_event_shapes_must_be_the_same():
    with pytest.raises(ValueError, match=r"site 'a': expected event shape \[2\].*got \[3\]"):
        check_pair(sampler("a", (2,)), sampler("a", (3,)))


def test_auxiliary_and_enumerated_sites_may_stand_alone():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    def guide():
        pyro.sample("b", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Normal(0.0, 1.0))

    check_pair(model, guide)


def test_nonfinite_site_names_the_first_one():
    def model(x):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0), obs=x)
        pyro.sample("c", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        pyro.sample("a", dist.Normal(0.0, 1.0))

    assert nonfinite_site(model, guide, (torch.tensor(torch.nan),)) == "b"
    assert nonfinite_site(model, guide, (torch.tensor(0.0),)) is None


@pytest.mark.parametrize(("broken", "site"), [("encoder", "z"), ("decoder", "x")])
def test_nonfinite_site_finds_the_network_that_broke(broken, site):
    model, guide = programs()
    network = guide.encoder if broken == "encoder" else model.decoder
    network.layers[0].weight.data.fill_(torch.nan)
    assert nonfinite_site(model, guide, (torch.ones(3, 4),)) == site
    assert pyro.settings.get("validate_poutine")
