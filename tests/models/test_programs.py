"""What every pair of model and guide must do; runs over the registry."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from pyrogen.checks import check_pair
from pyrogen.guides import AmortizedFlow
from pyrogen.losses import Compiled
from tests.registry_programs import LATENT, NUM_DATA, PROGRAMS

# Relative rounding error of a sum of a few thousand double-precision terms.
ROUNDING = 1e-12

VECTORIZED = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}

programs = pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS.keys())


@pytest.fixture(params=[False, True], ids=["param_store", "module_local_params"])
def local_params(request):
    with pyro.settings.context(module_local_params=request.param):
        yield request.param


def hand_written_parts(program):
    """Draws z as the next loss will; returns log p(x|z), log p(z), log q(z|x), KL, all ``[n]``.

    The KL of a flow has no closed form: every ELBO takes it at the draw.
    """
    state = torch.get_rng_state()
    with torch.no_grad():
        posterior = program.guide.posterior(program.data)
        z = poutine.trace(program.guide).get_trace(program.data).nodes["z"]["value"]
        parameters = program.model.decoder(z)
        torch.set_rng_state(state)
        log_2pi = torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        log_prior = -(z**2 + log_2pi).sum(-1) / 2
        if isinstance(program.guide, AmortizedFlow):
            same, log_posterior = posterior.rsample_with_log_prob()
            assert torch.equal(same, z)
            kl = log_posterior - log_prior
        else:
            loc, scale = posterior.base_dist.loc, posterior.base_dist.scale
            log_posterior = -(((z - loc) / scale) ** 2 + 2 * scale.log() + log_2pi).sum(-1) / 2
            kl = (scale**2 + loc**2 - 1 - 2 * scale.log()).sum(-1) / 2
        log_likelihood = program.log_likelihood(program.model, parameters, program.data)
    torch.set_rng_state(state)
    return log_likelihood, log_prior, log_posterior, kl


@programs
@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
def test_losses_are_distortion_plus_beta_times_rate(make, beta):
    program = make(beta=beta).double()
    log_likelihood, log_prior, log_posterior, kl = hand_written_parts(program)
    pair = program.model, program.guide, program.data
    state = torch.get_rng_state()
    closed_form = TraceMeanField_ELBO().loss(*pair)
    torch.set_rng_state(state)
    sampled = Trace_ELBO().loss(*pair)
    torch.set_rng_state(state)
    one_particle_bound = RenyiELBO(num_particles=1).loss(*pair)

    rate = log_posterior - log_prior
    expected = (-log_likelihood + beta * rate).sum().item()
    assert closed_form == pytest.approx((-log_likelihood + beta * kl).sum().item(), rel=ROUNDING)
    assert sampled == pytest.approx(expected, rel=ROUNDING)
    assert one_particle_bound == pytest.approx(expected, rel=ROUNDING)


@programs
def test_beta_one_is_the_plain_elbo_to_the_last_bit(make):
    program = make()
    unscaled = [poutine.trace(p) for p in (program.model, program.guide)]
    guide_trace = unscaled[1].get_trace(program.data)
    model_trace = poutine.trace(poutine.replay(program.model, trace=guide_trace)).get_trace(
        program.data
    )
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
        site = trace.nodes["z"]
        assert torch.equal(site["log_prob"], site["unscaled_log_prob"])
        assert torch.equal(site["fn"].log_prob(site["value"]), site["unscaled_log_prob"])


@programs
def test_beta_is_annealed_in_place(make):
    program, annealed = make(beta=0.5), make(beta=1.0)
    annealed.model.load_state_dict(program.model.state_dict())
    annealed.guide.load_state_dict(program.guide.state_dict())
    for part in (annealed.model, annealed.guide):
        assert part.beta == 0.5  # the weight is part of the state
        part.beta.fill_(1.0)
    plain = make()
    plain.model.load_state_dict(program.model.state_dict() | {"beta": torch.tensor(1.0)})
    plain.guide.load_state_dict(program.guide.state_dict() | {"beta": torch.tensor(1.0)})
    losses = []
    for pair in (annealed, plain):
        pyro.set_rng_seed(1)
        pyro.clear_param_store()
        losses.append(TraceMeanField_ELBO().loss(pair.model, pair.guide, program.data))
    assert losses[0] == losses[1]


@programs
@pytest.mark.parametrize(
    "make_elbo",
    [
        Trace_ELBO,
        TraceMeanField_ELBO,
        partial(RenyiELBO, num_particles=2),
        partial(Trace_ELBO, **VECTORIZED),
        partial(TraceMeanField_ELBO, **VECTORIZED),
    ],
    ids=["trace", "mean_field", "renyi", "vectorized", "mean_field_vectorized"],
)
def test_gradients_reach_every_parameter(make, make_elbo, local_params):
    program = make()
    make_elbo().loss_and_grads(program.model, program.guide, program.data)
    for part in (program.model, program.guide):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            assert parameter.grad.isfinite().all(), name


@programs
def test_captured_losses_equal_pyros_under_the_same_noise(make):
    program = make(beta=0.5).double()
    parts = program.model, program.guide
    elbo = TraceMeanField_ELBO()
    results = {}
    captured = Compiled(elbo, compile=False)
    for beta in (0.5, 2.0):  # changed in place: the graph reads it at every call
        for part in parts:
            part.beta.fill_(beta)
        for name, loss in {"pyro": elbo, "captured": captured}.items():
            pyro.set_rng_seed(1)
            for part in parts:
                part.zero_grad()
            value = loss.loss_and_grads(*parts, program.data)
            gradient = torch.cat([p.grad.flatten() for part in parts for p in part.parameters()])
            results[name, beta] = value, gradient
        torch.testing.assert_close(results["captured", beta], results["pyro", beta])
    assert results["pyro", 0.5][0] != results["pyro", 2.0][0]


@programs
def test_svi_lowers_the_loss(make):
    program = make()
    svi = SVI(program.model, program.guide, Adam({"lr": 2e-2}), loss=TraceMeanField_ELBO())
    losses = torch.tensor([svi.step(program.data) for _ in range(40)])
    # A fit of 6 data by hundreds of weights: the fall is far above the noise of one draw.
    assert losses[-10:].mean() < losses[:10].mean() - 3 * losses[-10:].std()


@programs
def test_vectorised_particles_are_scored_one_by_one(make):
    program = make().double()
    z = torch.randn(5, NUM_DATA, LATENT, dtype=torch.float64)
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(poutine.condition(program.model, {"z": z})).get_trace(program.data)
    trace.compute_log_prob()
    together = trace.nodes["x"]["log_prob"]
    one_by_one = torch.stack(
        [program.model.decode(particle).log_prob(program.data) for particle in z]
    )
    assert together.shape == (5, NUM_DATA)
    torch.testing.assert_close(together, one_by_one, rtol=ROUNDING, atol=1e-10)


@programs
def test_an_outer_plate_groups_the_data(make):
    program = make().double()
    groups = torch.stack([program.data, program.data.flip(0)])
    losses = {}
    for name, data in {"grouped": groups, "flat": groups.flatten(0, 1)}.items():

        def grouped(program, data=data):
            with pyro.plate("groups", 2, dim=-2):
                return program(data)

        run = grouped if name == "grouped" else (lambda program, data=data: program(data))
        pyro.set_rng_seed(3)
        model, guide = partial(run, program.model), partial(run, program.guide)
        losses[name] = TraceMeanField_ELBO().loss(model, guide)
        z = poutine.trace(guide).get_trace().nodes["z"]["value"]
        assert z.shape == ((2, NUM_DATA, LATENT) if name == "grouped" else (2 * NUM_DATA, LATENT))
    assert losses["grouped"] == pytest.approx(losses["flat"], rel=ROUNDING)


@programs
def test_data_are_independent_given_their_latents(make):
    program = make().double()
    z = torch.randn(NUM_DATA, LATENT, dtype=torch.float64)

    def log_joint(rows):
        conditioned = poutine.condition(program.model, {"z": z[rows]})
        return poutine.trace(conditioned).get_trace(program.data[rows]).log_prob_sum()

    parts = log_joint(slice(0, 2)) + log_joint(slice(2, None))
    torch.testing.assert_close(log_joint(slice(None)), parts, rtol=ROUNDING, atol=0)


@programs
def test_forward_without_data_draws_usable_data(make):
    program = make()
    draws = program.model(None, num_samples=64)
    assert draws.shape == (64, *program.data.shape[1:])
    assert draws.dtype == program.data.dtype
    assert torch.equal(program.model(draws), draws)  # what is drawn can be scored
    assert (draws.double() - draws[:1].double()).any()
    assert program.model().shape == (1, *program.data.shape[1:])


@programs
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_latents_and_events(make, parallel):
    program = make()
    predictive = Predictive(program.model, num_samples=4, parallel=parallel)
    prior = predictive(None, num_samples=NUM_DATA)
    assert prior["z"].shape == (4, NUM_DATA, LATENT)
    assert prior["x"].shape == (4, *program.data.shape)
    assert not torch.equal(prior["z"][0], prior["z"][1])
    posterior = Predictive(
        poutine.uncondition(program.model), guide=program.guide, num_samples=4, parallel=parallel
    )(program.data)
    assert posterior["x"].shape == (4, *program.data.shape)
    assert posterior["x"].dtype == program.data.dtype


@programs
def test_condition_and_do(make):
    program = make()
    z = torch.randn(NUM_DATA, LATENT)
    for handled in (
        poutine.condition(program.model, {"z": z, "x": program.data}),
        pyro.do(poutine.condition(program.model, {"x": program.data}), {"z": z}),
    ):
        trace = poutine.trace(handled).get_trace(None, num_samples=NUM_DATA)
        trace.compute_log_prob()
        x = trace.nodes["x"]
        assert torch.equal(x["value"], program.data)
        torch.testing.assert_close(x["log_prob"], program.model.decode(z).log_prob(program.data))


@programs
@pytest.mark.parametrize("copy_of", ["deepcopy", "pickle", "state_dict"])
def test_copies_have_the_same_loss_and_their_own_parameters(make, copy_of, local_params):
    program = make(beta=0.5)
    pair = program.model, program.guide
    TraceMeanField_ELBO()(*pair)(program.data).backward()  # copied after use, as users do
    if copy_of == "deepcopy":
        clone = copy.deepcopy(pair)
    elif copy_of == "pickle":
        clone = pickle.loads(pickle.dumps(pair))
    else:
        pyro.set_rng_seed(5)
        other = make(beta=2.0)
        clone = other.model, other.guide
        for source, target in zip(pair, clone, strict=True):
            file = io.BytesIO()
            torch.save(source.state_dict(), file)
            file.seek(0)
            target.load_state_dict(torch.load(file, weights_only=True))
    losses = []
    for model, guide in (pair, clone):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        losses.append(TraceMeanField_ELBO().loss(model, guide, program.data))
    assert losses[0] == losses[1]
    shared = {id(p) for part in pair for p in part.parameters()}
    assert not any(id(p) in shared for part in clone for p in part.parameters())


@programs
def test_instances_share_nothing_when_parameters_are_local(make):
    with pyro.settings.context(module_local_params=True):
        one, other = make(), make()
        before = copy.deepcopy(other.model.state_dict()), copy.deepcopy(other.guide.state_dict())
        loss = TraceMeanField_ELBO()(one.model, one.guide)
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        loss(one.data).backward()
        optimizer.step()
        TraceMeanField_ELBO()(other.model, other.guide)(other.data)
    for part, state in zip((other.model, other.guide), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
    for name, value in one.model.named_parameters():
        assert not torch.equal(value, other.model.get_parameter(name))


@programs
def test_double_precision_is_kept(make):
    program = make().double()
    model_trace, guide_trace = check_pair(program.model, program.guide, (program.data,))
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
        assert trace.nodes["z"]["value"].dtype == torch.float64
        assert trace.log_prob_sum().dtype == torch.float64
    expected = program.data.dtype
    assert program.model(None, num_samples=2).dtype == expected


@programs
def test_sites_match_and_another_beta_is_caught(make):
    program = make(beta=0.5)
    model_trace, guide_trace = check_pair(program.model, program.guide, (program.data,))
    assert model_trace.stochastic_nodes == ["data", "z"]
    assert guide_trace.stochastic_nodes == ["data", "z"]
    assert model_trace.observation_nodes == ["x"]
    with pytest.raises(ValueError, match=r"'z': expected scale .*0\.5.* got .*1\.0"):
        check_pair(program.model, make(beta=1.0).guide, (program.data,))


@programs
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_cuda(make):
    program = make()
    model, guide, data = (part.to("cuda") for part in (program.model, program.guide, program.data))
    loss = TraceMeanField_ELBO()(model, guide)(data)
    loss.backward()
    assert loss.is_cuda
    assert model(None, num_samples=3).is_cuda
