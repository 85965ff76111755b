"""A compiled ELBO is the ELBO: loss, gradient, noise, parameters, errors."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

from pyrogen.errors import GraphError, NonFiniteError
from pyrogen.guides import AmortizedNormal, Empty
from pyrogen.losses import Compiled
from pyrogen.models import VAE
from pyrogen.nn import MLP
from tests.losses.pairs import PAIRS, vae

# Compiled code sums in another order: a few hundred roundings, of numbers of mixed sign.
ROUNDING = {torch.float32: 2e-4, torch.float64: 1e-11}

pairs = pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())


def parameters(model, guide):
    """Every parameter, by name, wherever it lives."""
    found = dict(pyro.get_param_store().named_parameters())
    for role, program in (("model", model), ("guide", guide)):
        if isinstance(program, nn.Module):
            found.update({f"{role}.{name}": p for name, p in program.named_parameters()})
    return found


def gradients(loss, model, guide, args, seed):
    named = parameters(model, guide)
    for parameter in named.values():
        parameter.grad = None
    pyro.set_rng_seed(seed)
    value = loss.loss_and_grads(model, guide, *args)
    named = parameters(model, guide)
    return value, {n: p.grad.clone() for n, p in named.items() if p.grad is not None}


def assert_same(compiled, eager):
    (value, got), (expected_value, expected) = compiled, eager
    tolerance = max(ROUNDING[g.dtype] for g in expected.values())
    torch.testing.assert_close(
        torch.as_tensor(value), torch.as_tensor(expected_value), rtol=tolerance, atol=0
    )
    assert got.keys() == expected.keys()
    assert any(g.abs().max() > 0 for g in expected.values())
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=tolerance * (1 + largest))


@pairs
def test_loss_and_gradient_are_those_of_the_elbo_on_the_same_noise(make):
    elbo, model, guide, args = make()
    compiled = Compiled(elbo)
    for seed in (1, 2):
        eager = gradients(elbo, model, guide, args, seed)
        assert_same(gradients(compiled, model, guide, args, seed), eager)
    fresh = {gradients(compiled, model, guide, args, seed)[0] for seed in (1, 2)}
    assert len(fresh) == (1 if isinstance(guide, (AutoDelta, Empty)) else 2)


@pairs
def test_evaluation_is_that_of_the_elbo_on_the_same_noise(make):
    elbo, model, guide, args = make()
    pyro.set_rng_seed(3)
    with torch.no_grad():
        expected = elbo.loss(model, guide, *args)
    compiled = Compiled(elbo, compile=False)
    pyro.set_rng_seed(3)
    value = compiled.loss(model, guide, *args)
    torch.testing.assert_close(
        torch.as_tensor(value), torch.as_tensor(expected).to(torch.as_tensor(value).dtype)
    )


def test_the_noise_can_be_replaced_by_fixed_draws(monkeypatch):
    """With every standard normal draw fixed, compiled and uncompiled agree whatever the seed."""
    elbo, model, guide, args = vae(TraceMeanField_ELBO())()
    draws = torch.randn(5, 2)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: draws)
    eager = gradients(elbo, model, guide, args, seed=1)
    compiled = Compiled(elbo)
    assert_same(gradients(compiled, model, guide, args, seed=2), eager)
    draws.copy_(torch.randn(5, 2))  # a closed-over tensor is read at every call
    assert_same(
        gradients(compiled, model, guide, args, seed=3),
        gradients(elbo, model, guide, args, seed=4),
    )


def test_svi_takes_the_steps_it_takes_uncompiled():
    elbo, model, guide, args = vae(TraceMeanField_ELBO())()
    start = copy.deepcopy((model, guide))
    ends = []
    for loss in (elbo, Compiled(elbo)):
        pyro.clear_param_store()
        model, guide = copy.deepcopy(start)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        pyro.set_rng_seed(5)
        losses = [svi.step(*args) for _ in range(10)]
        ends.append((torch.tensor([*losses, svi.evaluate_loss(*args)]), parameters(model, guide)))
    torch.testing.assert_close(*(losses for losses, _ in ends), rtol=1e-4, atol=0)
    first = {f"model.{name}": parameter for name, parameter in start[0].named_parameters()}
    for name, parameter in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], parameter, rtol=1e-3, atol=1e-4)
        assert name not in first or not torch.equal(parameter, first[name])


def test_svi_with_module_local_parameters():
    """Pyro's own SVI cannot step plain networks here; through the graph it can."""
    with pyro.settings.context(module_local_params=True):
        _, model, guide, args = vae(Trace_ELBO())()
        before = copy.deepcopy(dict(model.named_parameters()))
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Compiled(TraceMeanField_ELBO()))
        svi.step(*args)
        assert not list(pyro.get_param_store().keys())
        assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_svi_optimises_what_the_store_holds_now():
    elbo, model, guide, args = PAIRS["scaled"]()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Compiled(elbo, compile=False))
    svi.step(*args)
    state = copy.deepcopy(pyro.get_param_store().get_state())
    pyro.get_param_store().set_state(state)  # equal parameters, in new tensors
    before = {name: p.clone() for name, p in pyro.get_param_store().named_parameters()}
    svi.step(*args)
    after = dict(pyro.get_param_store().named_parameters())
    assert all(not torch.equal(after[name], p) for name, p in before.items())


def test_a_module_for_torch_optimisers():
    elbo, model, guide, args = vae(TraceMeanField_ELBO())()
    module = Compiled(elbo)(model, guide)
    expected = gradients(elbo, model, guide, args, seed=6)
    module.zero_grad()
    pyro.set_rng_seed(6)
    loss = module(*args)
    (3 * loss).backward()
    for name, parameter in parameters(model, guide).items():
        torch.testing.assert_close(parameter.grad / 3, expected[1][name], rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="twice"):
        loss.backward()
    pyro.set_rng_seed(6)
    with torch.no_grad():
        value = module(*args)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss.detach())


def test_the_gradient_reaches_an_argument_that_requires_it():
    elbo, model, guide, (x,) = vae(TraceMeanField_ELBO())()
    x.requires_grad_()
    results = []
    for module in (elbo(model, guide), Compiled(elbo)(model, guide)):
        pyro.set_rng_seed(7)
        results.append(torch.autograd.grad(module(x * 1.0), x)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_last_smaller_batch_and_keyword_arguments():
    elbo, model, guide, (x,) = vae(TraceMeanField_ELBO())()
    compiled = Compiled(elbo, compile=False)
    for batch in (x, x[:3], x, x[::2]):
        eager = gradients(elbo, model, guide, (batch,), seed=8)
        assert_same(gradients(compiled, model, guide, (batch,), seed=8), eager)
    pyro.set_rng_seed(9)
    expected = elbo.loss(model, guide, data=x, num_samples=None)
    pyro.set_rng_seed(9)
    assert compiled.loss(model, guide, data=x, num_samples=None) == pytest.approx(expected, 1e-5)


def test_parameters_are_read_at_every_call():
    elbo, model, guide, args = vae(TraceMeanField_ELBO())()
    compiled = Compiled(elbo, compile=False)
    gradients(compiled, model, guide, args, seed=1)
    (pair,) = compiled._pairs.values()
    with torch.no_grad():
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter.mul_(1.1)
    assert_same(gradients(compiled, model, guide, args, 2), gradients(elbo, model, guide, args, 2))
    state = {k: v if k == "beta" else v * 0.9 for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    assert_same(gradients(compiled, model, guide, args, 3), gradients(elbo, model, guide, args, 3))
    assert pair._loss_and_grads.captures == 1
    model.decoder.layers[0].weight = nn.Parameter(torch.randn(8, 2))  # another object
    pyro.clear_param_store()
    assert_same(gradients(compiled, model, guide, args, 4), gradients(elbo, model, guide, args, 4))
    model.decoder.layers[2] = nn.Linear(8, 6)  # another module
    pyro.clear_param_store()
    assert_same(gradients(compiled, model, guide, args, 5), gradients(elbo, model, guide, args, 5))
    model.double()
    guide.double()
    pyro.clear_param_store()
    args = (args[0].double(),)
    assert_same(gradients(compiled, model, guide, args, 6), gradients(elbo, model, guide, args, 6))


def test_a_second_model_in_the_store_does_not_take_the_place_of_the_first():
    elbo, first, guide, args = vae(TraceMeanField_ELBO())()
    compiled = Compiled(elbo, compile=False)
    expected = gradients(compiled, first, guide, args, 1)[0]
    pyro.clear_param_store()
    _, second, other_guide, _ = vae(TraceMeanField_ELBO())()
    assert gradients(compiled, second, other_guide, args, 1)[0] != expected
    assert gradients(compiled, first, guide, args, 1)[0] == pytest.approx(expected, rel=1e-6)


def test_parameters_hidden_from_svi_are_not_optimised():
    elbo, model, guide, args = vae(TraceMeanField_ELBO())()
    frozen = copy.deepcopy(dict(model.named_parameters()))
    hidden = poutine.block(model, hide_types=["param"])
    svi = SVI(hidden, guide, pyro.optim.Adam({"lr": 0.1}), Compiled(elbo, compile=False))
    before = copy.deepcopy(dict(guide.named_parameters()))
    svi.step(*args)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in guide.named_parameters())


class Programs:
    """A model and a guide as methods of a plain object, whose attributes they read."""

    def __init__(self):
        self.noise = 1.0
        self.shifts = [0.0, 1.0]
        self.x = torch.randn(5)

    def model(self):
        mean = pyro.sample("mean", dist.Normal(sum(self.shifts), 1.0))
        with pyro.plate("data", len(self.x), dim=-1):
            pyro.sample("x", dist.Normal(mean, self.noise), obs=self.x)

    def guide(self):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def test_attributes_of_the_owner_of_a_method_are_not_baked_in():
    programs, elbo = Programs(), Trace_ELBO()
    compiled = Compiled(elbo, compile=False)

    def check():
        args = programs.model, programs.guide, (), 2
        assert_same(gradients(compiled, *args), gradients(elbo, *args))

    check()
    programs.noise = 2.0
    check()
    programs.shifts[1] = 5.0  # the same list
    check()
    programs.x = torch.randn(5)
    check()
    programs.noise = torch.tensor(3.0)
    check()
    assert len(compiled._pairs) == 1


noise = 1.0


def test_variables_around_a_function_are_not_baked_in(monkeypatch):
    data, elbo = torch.randn(5), Trace_ELBO()

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", dist.Normal(mean, noise), obs=data)

    guide = AutoNormal(model)
    guide()
    compiled = Compiled(elbo, compile=False)

    def check():
        args = model, guide, (), 2
        assert_same(gradients(compiled, *args), gradients(elbo, *args))

    check()
    monkeypatch.setitem(globals(), "noise", 2.0)
    check()
    data = torch.randn(5)
    check()


def test_options_of_the_elbo_are_not_baked_in():
    elbo, model, guide, args = vae(Trace_ELBO())()
    compiled = Compiled(elbo, compile=False)
    for elbo.num_particles in (1, 3):
        assert_same(
            gradients(compiled, model, guide, args, 1), gradients(elbo, model, guide, args, 1)
        )


def test_switching_back_and_forth_captures_once_each():
    elbo, model, guide, args = PAIRS["vae, batch normalisation"]()
    compiled = Compiled(elbo, compile=False)
    for _ in range(3):
        for mode in (True, False):
            guide.train(mode)
            compiled.loss_and_grads(model, guide, *args)
    (pair,) = compiled._pairs.values()
    assert pair._loss_and_grads.captures == 2


def test_the_gradient_reaches_what_an_argument_was_computed_from():
    elbo, model, guide, (x,) = vae(TraceMeanField_ELBO())()
    results = []
    for loss in (elbo, Compiled(elbo, compile=False)):
        brightness = torch.tensor(1.0, requires_grad=True)
        pyro.set_rng_seed(3)
        with pyro.validation_enabled(False):
            loss.loss_and_grads(model, guide, x * brightness)
        results.append(brightness.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draw", [np.random.rand, random.random])
def test_other_generators_are_refused(draw):
    def model(x):
        mean = pyro.sample("mean", dist.Normal(draw(), 1.0))
        pyro.factor("x", (x * mean).sum())

    guide = AutoNormal(model)
    guide(torch.ones(2))
    with pytest.raises(GraphError, match="Python's or NumPy's generator"):
        Compiled(Trace_ELBO()).loss(model, guide, torch.ones(2))


def test_a_program_that_writes_parameters_is_refused():
    def guide(x):
        baseline = {"baseline": {"use_decaying_avg_baseline": True}}
        logits = pyro.param("logits", torch.zeros(8))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("n", dist.Poisson(1.0))
            pyro.sample("flag", dist.Bernoulli(logits=logits), infer=baseline)

    _, model, _, args = PAIRS["score function, baseline"]()
    TraceGraph_ELBO().loss_and_grads(model, guide, *args)
    before = {n: p.clone() for n, p in pyro.get_param_store().named_parameters()}
    with pytest.raises(GraphError, match="writes the parameters"):
        Compiled(TraceGraph_ELBO()).loss_and_grads(model, guide, *args)
    after = dict(pyro.get_param_store().named_parameters())
    assert after.keys() == before.keys()


def test_a_cleared_parameter_store_is_noticed():
    elbo, model, guide, args = PAIRS["scaled"]()
    compiled = Compiled(elbo, compile=False)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), compiled)
    before = [svi.step(*args) for _ in range(3)]
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    value = compiled.loss_and_grads(model, guide, *args)
    assert pyro.param("loc").item() == pytest.approx(0.1)
    pyro.set_rng_seed(1)
    assert value == pytest.approx(elbo.loss(model, guide, *args), rel=1e-5)
    assert len(before) == 3


def test_attributes_and_training_flags_are_not_baked_in():
    class Tempered(VAE):
        temperature = 1.0

        def forward(self, data=None, num_samples=None):
            with poutine.scale(scale=self.temperature):
                return super().forward(data, num_samples)

    drop = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    guide = AmortizedNormal(drop, 2)
    model = Tempered(MLP(2, 6, hidden=(8,)), 2)
    model.temperature = 1.0
    x = torch.bernoulli(torch.rand(5, 6))
    elbo = Trace_ELBO()
    compiled = Compiled(elbo, compile=False)
    guide.temperature = 1.0
    for mode in (True, False):
        guide.train(mode)
        args = model, guide, (x,), 4
        assert_same(gradients(compiled, *args), gradients(elbo, *args))

    def scaled_guide(data, num_samples=None):
        with poutine.scale(scale=model.temperature):
            return guide(data)

    for model.temperature in (0.5, 2.0):
        args = model, scaled_guide, (x,), 4
        assert_same(gradients(compiled, *args), gradients(elbo, *args))


def test_running_statistics_move_as_they_do_uncompiled():
    elbo, model, guide, args = PAIRS["vae, batch normalisation"]()
    twin = copy.deepcopy(guide)
    compiled = Compiled(elbo)
    for seed in range(3):
        gradients(elbo, model, twin, args, seed)
        gradients(compiled, model, guide, args, seed)
    expected, got = dict(twin.named_buffers()), dict(guide.named_buffers())
    assert got["encoder.1.num_batches_tracked"] == 3
    for name, buffer in expected.items():
        torch.testing.assert_close(got[name], buffer, rtol=1e-5, atol=1e-6)


def test_training_flags_are_seen_through_wrappers():
    elbo, model, guide, args = PAIRS["vae, batch normalisation"]()
    wrapped = poutine.scale(guide, scale=2.0), poutine.scale(model, scale=2.0)
    compiled = Compiled(elbo, compile=False)
    for mode in (True, False):
        guide.train(mode)
        args_ = wrapped[1], wrapped[0], args, 4
        assert_same(gradients(compiled, *args_), gradients(elbo, *args_))


def test_capturing_draws_no_random_numbers():
    elbo, model, guide, args = vae(Trace_ELBO())()
    pyro.set_rng_seed(10)
    before = torch.get_rng_state()
    Compiled(elbo, compile=False)(model, guide)
    compiled = Compiled(elbo, compile=False)
    compiled._pair(model, guide)._loss._capture(False, args, {})
    assert torch.equal(torch.get_rng_state(), before)


def branching(x):
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    if shift > 0:
        scale = scale * 2
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(shift, scale), obs=x)


def selecting(x):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    chosen = x[x > shift]
    pyro.factor("chosen", chosen.sum() * shift)


def reading_a_parameter(x):
    scale = pyro.param("scale", torch.tensor(1.0))
    shift = pyro.sample("shift", dist.Normal(0.0, scale.item()))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(shift, 1.0), obs=x)


def rolling_dice(x):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    if torch.rand(()) < 0.5:
        shift = shift + 1
    pyro.factor("x", (x * shift).sum())


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (branching, "site 'shift'"),
        (selecting, "site 'shift', tensor argument 0"),
        (reading_a_parameter, "a parameter"),
        (rolling_dice, "unnamed random number"),
    ],
)
def test_structure_that_depends_on_values_is_refused_by_name(model, named):
    guide = AutoNormal(model)
    x = torch.ones(4)
    guide(x)
    with pytest.raises(GraphError, match=named) as caught:
        Compiled(Trace_ELBO()).loss_and_grads(model, guide, x)
    assert "'scale'" not in str(caught.value)
    assert __file__ in str(caught.value)
    assert "Compiled" in str(caught.value)
    Trace_ELBO().loss_and_grads(model, guide, x)  # the advice: it runs uncompiled


def test_state_is_restored_when_capturing_fails():
    guide = AutoNormal(branching)
    x = torch.ones(4)
    guide(x)
    before = torch.get_rng_state(), pyro.settings.get()
    with pytest.raises(GraphError):
        Compiled(Trace_ELBO()).loss(branching, guide, x)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pyro.settings.get() == before[1]


@pytest.mark.parametrize("entry", ["svi", "module", "evaluate"])
def test_a_loss_that_is_not_finite_names_site_and_step(entry):
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    guide = AutoNormal(model)
    x = torch.zeros(4)
    guide(x)
    compiled = Compiled(Trace_ELBO(), compile=False)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), compiled)
    call = {"svi": svi.step, "module": compiled(model, guide), "evaluate": svi.evaluate_loss}[entry]
    svi.step(x)
    svi.step(x)
    before = {n: p.clone() for n, p in pyro.get_param_store().named_parameters()}
    with pytest.raises(NonFiniteError, match=r"step 2.*site 'x'") as caught:
        call(torch.tensor([0.0, float("inf"), 0.0, 0.0]))
    assert (caught.value.site, caught.value.step) == ("x", 2)
    assert all(torch.equal(p, before[n]) for n, p in pyro.get_param_store().named_parameters())
    assert pickle.loads(pickle.dumps(caught.value)).site == "x"


def test_mismatched_pairs_and_bad_data_are_refused_at_the_first_call():
    model = VAE(MLP(2, 6, hidden=(8,)), 2)
    x = torch.bernoulli(torch.rand(5, 6))
    wide = AmortizedNormal(MLP(6, 6, hidden=(8,)), 3)
    with pytest.raises(ValueError, match=r"site 'z': expected event shape \[2\].*got \[3\]"):
        Compiled(TraceMeanField_ELBO()).loss(model, wide, x)
    guide = AmortizedNormal(MLP(6, 4, hidden=(8,)), 2, beta=2.0)
    with pytest.raises(ValueError, match=r"expected scale 1.0.*got 2.0"):
        Compiled(TraceMeanField_ELBO()).loss(model, guide, x)
    with pytest.raises(ValueError, match=r"expected .*got"):
        Compiled(TraceMeanField_ELBO()).loss(model, AmortizedNormal(MLP(6, 4), 2), x[:, :5])
    with pytest.raises(TypeError, match="expected an uncompiled ELBO"):
        Compiled(model)
    with pytest.raises(TypeError, match="expected an uncompiled ELBO"):
        Compiled(Compiled(Trace_ELBO()))
    with pytest.raises(TypeError, match="got JitTrace_ELBO"):
        Compiled(JitTrace_ELBO())


def test_an_argument_that_cannot_be_a_key_is_refused():
    elbo, model, guide, _ = PAIRS["scaled"]()
    with pytest.raises(TypeError, match=r"got set, which may change"):
        Compiled(elbo).loss(model, guide, {1, 2})


def test_a_handler_of_the_caller_sees_every_site():
    elbo, model, guide, args = vae(Trace_ELBO())()
    compiled = Compiled(elbo, compile=False)
    compiled.loss(model, guide, *args)

    class Seen(poutine.messenger.Messenger):
        sites = set()

        def _pyro_sample(self, msg):
            self.sites.add(msg["name"])

    with Seen():
        compiled.loss_and_grads(model, guide, *args)
    assert {"z", "x"} <= Seen.sites


def test_copies_and_pickles_start_without_graphs():
    elbo, model, guide, args = vae(TraceMeanField_ELBO())()
    compiled = Compiled(elbo, compile=False)
    compiled.loss(model, guide, *args)
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert not twin._pairs
        pyro.set_rng_seed(2)
        value = twin.loss(model, guide, *args)
        pyro.set_rng_seed(2)
        assert value == compiled.loss(model, guide, *args)


def test_many_captures_are_warned_of():
    elbo, model, guide, (x,) = vae(Trace_ELBO())()
    compiled = Compiled(elbo, compile=False)
    for n in range(1, 16):
        compiled.loss(model, guide, x[:1].expand(n, -1))
    with pytest.warns(RuntimeWarning, match="captured 16 times"):
        compiled.loss(model, guide, x[:1].expand(16, -1))


def test_without_a_compiler_the_graph_runs_uncompiled_with_one_warning():
    script = """
import warnings, torch
from pyrogen.graph import Captured
double = Captured(lambda x: 2 * x)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    results = [double(torch.ones(n)).sum().item() for n in (2, 3)]
print(results, [str(w.message)[:27] for w in caught if "compiler" in str(w.message)])
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={"CXX": "/nonexistent/c++", "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout.strip() == "[4.0, 6.0] ['no C++ compiler was found, ']", ran.stderr
