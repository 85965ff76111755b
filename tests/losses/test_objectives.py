"""What holds for every objective that scores sites without a density."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyrogen.guides import Empty
from pyrogen.losses import Compiled, PseudoLikelihood, ScoreMatching
from tests.losses.objectives import OBJECTIVES, binary, real

objectives = pytest.mark.parametrize(
    ("objective", "program"), OBJECTIVES.values(), ids=OBJECTIVES.keys()
)


def gradients(loss, model, data):
    model.zero_grad()
    pyro.set_rng_seed(1)
    value = loss.loss_and_grads(model, Empty(), data)
    # The score knows nothing of the constant in the energy.
    parameters = [p for p in model.parameters() if p.grad is not None]
    assert len(parameters) >= 3
    return value, [p.grad.clone() for p in parameters]


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@objectives
def test_compiled_is_uncompiled(objective, program, compile):
    """On the same noise, in double precision, to the rounding of sums in another order."""
    (model, data), loss = program(), objective()
    model, data = model.double(), data.double()
    expected, expected_gradients = gradients(loss, model, data)
    value, got = gradients(Compiled(loss, compile=compile), model, data)
    assert value == pytest.approx(expected, rel=1e-8)
    for one, other in zip(got, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert any(gradient.abs().max() > 1e-3 for gradient in got)


@objectives
def test_evaluation_needs_no_gradient_mode(objective, program):
    """``SVI.evaluate_loss`` runs under no_grad, where scores still need gradients in x."""
    (model, data), loss = program(), objective()
    expected, _ = gradients(loss, model, data)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        value = loss.loss(model, Empty(), data)
    assert value == pytest.approx(expected, rel=1e-5)
    pyro.set_rng_seed(1)
    assert Compiled(loss, compile=False).loss(model, Empty(), data) == pytest.approx(
        expected, rel=1e-4
    )


@objectives
def test_data_weigh_as_their_plate_scale_and_mask_say(objective, program):
    (model, data), loss = program(), objective()
    data = data[:1].expand(4, 3)
    scaled = poutine.scale(model, scale=2.5)
    masked = poutine.mask(model, mask=torch.tensor([True, False, False, False]))

    def run(program):
        pyro.set_rng_seed(1)
        return loss.loss(program, Empty(), data)

    assert run(scaled) == pytest.approx(2.5 * run(model), rel=1e-5)
    trace = poutine.trace(loss._get_trace(model, Empty(), (data,), {})[0].nodes["x"]["fn"].log_prob)
    pyro.set_rng_seed(1)
    per_datum = trace(data)
    assert per_datum.shape == (4,)
    assert run(masked) == pytest.approx(-float(per_datum[0].detach()), rel=1e-5)


@objectives
def test_outer_plates_are_batches(objective, program):
    """One site of shape [2, 3] in two plates, as many data as a plate of 6."""
    (model, data), loss = program(), objective()

    def nested(x):
        with pyro.plate("outer", 2, dim=-2), pyro.plate("data", 3, dim=-1):
            pyro.sample("x", model.site(), obs=x)

    flat, grid = data[:1].expand(6, 3), data[:1].expand(2, 3, 3)
    torch.manual_seed(1)
    one = loss.loss(model, Empty(), flat)
    torch.manual_seed(1)
    other = loss.loss(nested, Empty(), grid)
    assert other == pytest.approx(one, rel=1e-5)


@objectives
def test_it_survives_a_pickle(objective, program):
    """All but the local functions of this test: what an objective holds is data."""
    (model, data), loss = program(), objective()
    expected, _ = gradients(loss, model, data)
    clone = pickle.loads(pickle.dumps(loss))
    assert gradients(clone, model, data)[0] == pytest.approx(expected, rel=1e-6)


def test_a_site_beside_it_is_scored_as_ever():
    """A normal site whose mean is latent beside a score-matched one: the losses add up."""
    energy, data = real()

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        energy(x)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(0.7))

    def guide(x):
        pyro.sample("mean", dist.Delta(torch.tensor(0.2)))

    normal = dist.Normal(0.0, 1.0)
    expected = ScoreMatching("exact").loss(energy, Empty(), data) - float(
        normal.log_prob(torch.tensor(0.2)) + normal.log_prob(torch.tensor(0.5))
    )
    assert ScoreMatching("exact").loss(model, guide, data) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", [ScoreMatching("exact"), PseudoLikelihood()])
def test_svi_reaches_a_lower_loss(objective):
    (model, data) = real() if isinstance(objective, ScoreMatching) else binary()
    svi = SVI(model, Empty(), pyro.optim.Adam({"lr": 0.03}), Compiled(objective, compile=False))
    losses = [svi.step(data) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_a_model_without_an_energy_is_refused():
    def model(x):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="ScoreMatching: expected a model with a site of Energy"):
        ScoreMatching().loss(model, Empty(), torch.tensor(0.0))
    with pytest.raises(TypeError, match="elbo: expected an ELBO"):
        ScoreMatching(elbo="Trace_ELBO")
    assert isinstance(ScoreMatching(elbo=Trace_ELBO(num_particles=2)).elbo, Trace_ELBO)
