"""The network of infinite depth: bounds by hand, shapes, and what its noise does to predictions."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyrogen.errors import NonFiniteError
from pyrogen.guides import PathDrift
from pyrogen.losses import Compiled, PathELBO
from pyrogen.models import SDEBNN, Normal
from pyrogen.processes import Brownian, OrnsteinUhlenbeck
from tests.statistics import assert_mean_close

STEPS, STATE, WIDTH = 8, 3, 5
SCALE = 0.2


def network(classify=True, **options):
    kind = {"num_classes": 3} if classify else {"out_features": 2, "likelihood": Normal(0.7)}
    options = {"num_steps": STEPS, "state_dim": STATE, "hidden": (WIDTH,), **kind, **options}
    return SDEBNN(2, **options).double()


def data(classify=True, n=6):
    y = torch.randint(3, (n,)) if classify else torch.randn(n, 2, dtype=torch.float64)
    return torch.randn(n, 2, dtype=torch.float64), y


def trained(model):
    """A guide whose drift is none of the model's."""
    guide = PathDrift(model).double()
    with torch.no_grad():
        guide.drift.layers[-1].weight.normal_(std=0.3)
    return guide


def by_hand(model, x, path):
    """The network's output at the end, one datum after the other, by the midpoint rule."""

    def field(h, w):
        first, second = w.split([(STATE + 1) * WIDTH, (WIDTH + 1) * STATE])
        first, second = first.reshape(STATE + 1, WIDTH), second.reshape(WIDTH + 1, STATE)
        inner = torch.tanh(h @ first[:-1] + first[-1])
        return inner @ second[:-1] + second[-1]

    outputs = []
    for datum in x:
        h = model.into.weight @ datum + model.into.bias
        for k in range(STEPS):
            middle = h + 0.5 / STEPS * field(h, path[k])
            h = h + field(middle, (path[k] + path[k + 1]) / 2) / STEPS
        outputs.append(model.out.weight @ h + model.out.bias)
    return torch.stack(outputs)


def log_likelihood(model, out, y):
    if not y.is_floating_point():
        return out.log_softmax(-1).gather(-1, y.unsqueeze(-1)).sum()
    scale = model.outputs.likelihood.scale
    return (-0.5 * ((y - out) / scale).square() - (scale * math.sqrt(2 * math.pi)).log()).sum()


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
@pytest.mark.parametrize("classify", [False, True])
def test_bound_by_hand_where_parts_of_the_data_count_for_all(classify, kl_weight):
    model = network(classify, num_data=30)
    guide = trained(model)
    x, y = data(classify)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        path = guide(x)
    pyro.set_rng_seed(1)
    loss = PathELBO(kl_weight=kl_weight).loss(model, guide, x, y)
    times = torch.linspace(0, 1, STEPS + 1).double()
    control = torch.stack([guide.drift(path[k], times[k]) for k in range(STEPS)])
    divergence = (control / SCALE).square().sum() / 2 / STEPS
    likelihood = log_likelihood(model, by_hand(model, x, path), y)
    expected = kl_weight * divergence - 30 / 6 * likelihood
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    assert divergence > 1  # so that a divergence left out, or scaled, would be seen


def test_divergence_is_zero_at_first():
    model = network()
    guide = PathDrift(model).double()
    path = guide.law().sample((5,))
    assert (guide.law().log_ratio(path, model.prior()) == 0).all()
    # and the loss is the likelihood alone, whatever the weight
    x, y = data()
    losses = []
    for weight in (0.0, 1.0, 100.0):
        pyro.set_rng_seed(1)
        losses.append(PathELBO(kl_weight=weight).loss(model, guide, x, y))
    assert losses[0] == losses[1] == losses[2]


def test_plain_elbo_agrees_in_the_mean():
    model = network()
    guide, (x, y) = trained(model), data()

    def losses(elbo):
        return torch.tensor([elbo.loss(model, guide, x, y) for _ in range(100)])

    assert_mean_close(losses(Trace_ELBO()) - losses(PathELBO()), 0.0)


def test_guide_gives_the_weights_their_law():
    """Under the prior the weights decay from where they start, with a variance that is known."""
    model = network(num_steps=100)
    with torch.no_grad(), pyro.plate("particles", 1000, dim=-2):
        draws = poutine.trace(model).get_trace(torch.randn(1, 2).double()).nodes["w"]["value"]
    assert draws.shape == (1000, 1, 101, model.initial.numel())
    end = draws[:, 0, -1] - model.initial.detach() * (1 - 1 / 100) ** 100
    shrink = (1 - 1 / 100) ** 2
    variance = SCALE**2 / 100 * (1 - shrink**100) / (1 - shrink)  # of Euler's steps
    assert_mean_close(end, torch.zeros(end.shape[-1]))
    assert_mean_close(end.square(), torch.full((end.shape[-1],), variance))


def test_network_follows_its_ordinary_differential_equation():
    """Halving the steps of smooth weights divides the error by 2 and by 4."""
    errors = {}
    for solver in ("euler", "midpoint"):
        found = []
        for steps in (10, 20, 640):
            pyro.set_rng_seed(0)
            model = network(num_steps=steps, solver=solver)
            bend = torch.randn(model.initial.numel(), dtype=torch.float64)
            t = model.times.unsqueeze(-1)
            w = model.initial + torch.sin(3 * t) * bend
            found.append(model.states(torch.ones(4, 2).double(), w)[:, -1].detach())
        errors[solver] = [(each - found[-1]).norm() for each in found[:2]]
    for solver, order in {"euler": 1, "midpoint": 2}.items():
        fitted = math.log2(errors[solver][0] / errors[solver][1])
        assert fitted == pytest.approx(order, abs=0.15)


def test_vectorised_particles_are_scored_one_by_one():
    model = network()
    x, y = data()
    paths = model.prior().sample((5, 1))
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(poutine.condition(model, {"w": paths})).get_trace(x, y)
    trace.compute_log_prob()
    assert trace.nodes["y"]["log_prob"].shape == (5, 6)
    assert trace.nodes["w"]["log_prob"].shape == (5, 1)
    for i in range(5):
        single = poutine.trace(poutine.condition(model, {"w": paths[i, 0]})).get_trace(x, y)
        single.compute_log_prob()
        for name in ("y", "w"):
            together = trace.nodes[name]["log_prob"][i].squeeze()
            torch.testing.assert_close(together, single.nodes[name]["log_prob"])


def test_vectorised_particles_have_the_mean_of_single_ones():
    model = network()
    guide, (x, y) = trained(model), data()
    together = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    losses = {
        name: torch.tensor([PathELBO(elbo=elbo).loss(model, guide, x, y) for _ in range(n)])
        for name, elbo, n in (("one", Trace_ELBO(), 100), ("many", together, 20))
    }
    # The difference of two sample means, with the error of both.
    error = sum(each.var() / len(each) for each in losses.values()).sqrt()
    assert abs(losses["one"].mean() - losses["many"].mean()) < 5 * error


@pytest.mark.parametrize("classify", [False, True])
def test_predictive_draws_targets_of_any_number_of_inputs(classify):
    model = network(classify, num_data=6)
    guide = trained(model)
    x, _ = data(n=20)
    draws = Predictive(model, guide=guide, num_samples=4)(x)
    assert draws["y"].shape == ((4, 20) if classify else (4, 20, 2))
    law = model.predict(x, draws["w"])
    assert law.batch_shape == (4, 20)
    one = model.predict(x, draws["w"][2, 0])
    torch.testing.assert_close(law.mean[2], one.mean, equal_nan=True)
    with pytest.raises(ValueError, match=r"batch shape \[\.\.\., 1\].* parallel=False"):
        Predictive(model, guide=guide, num_samples=20, parallel=True)(x)


def test_without_noise_all_draws_are_one_network():
    x, _ = data()
    spread = {}
    for scale in (1e-6, 0.5):
        pyro.set_rng_seed(0)
        model = network(prior=OrnsteinUhlenbeck(1.0, scale))
        w = PathDrift(model).double()(x)
        others = model.prior().sample((50, 1))
        logits = model.predict(x, torch.cat([w.expand(1, 1, *w.shape), others])).logits
        spread[scale] = logits.std(0).max()
    assert spread[1e-6] < 1e-4
    assert spread[0.5] > 0.1


def test_gradients_reach_every_parameter():
    model = network()
    guide = trained(model)
    PathELBO().loss_and_grads(model, guide, *data())
    for part in (model, guide):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_svi_moves_every_parameter_and_lowers_the_loss():
    model = network().float()
    guide = PathDrift(model)
    before = [p.detach().clone() for part in (model, guide) for p in part.parameters()]
    x, y = torch.randn(40, 2), torch.randint(3, (40,))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=PathELBO())
    losses = torch.tensor([svi.step(x, y) for _ in range(60)])
    assert losses[-10:].mean() < losses[:10].mean() - 3 * losses[-10:].std()
    after = [p for part in (model, guide) for p in part.parameters()]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_captured_loss_equals_the_plain_one_under_the_same_noise():
    model = network(num_steps=2)
    guide, (x, y) = trained(model), data()
    results = []
    for loss in (PathELBO(), Compiled(PathELBO(), compile=False)):
        for part in (model, guide):
            part.zero_grad()
        pyro.set_rng_seed(1)
        value = torch.tensor(loss.loss_and_grads(model, guide, x, y))
        results.append(
            (value, [p.grad.clone() for part in (model, guide) for p in part.parameters()])
        )
    torch.testing.assert_close(*results)


def test_another_prior():
    model = network(prior=Brownian(0.3))
    assert isinstance(model.prior().process, Brownian)
    assert PathELBO().loss(model, PathDrift(model).double(), *data()) > 0


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")  # Pyro's own words, before ours
def test_what_is_not_finite_is_named():
    model = network()
    with torch.no_grad():
        model.initial[0] = math.nan
    off = pyro.validation_enabled(False)  # as inside of a graph
    with off, pytest.raises(NonFiniteError, match=r"step 0.* at site 'w'"):
        PathELBO().loss_and_grads(model, PathDrift(model).double(), *data())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SDEBNN(2), "expected one of them"),
        (lambda: SDEBNN(2, 3, solver="rk4"), "solver: expected one of"),
        (lambda: SDEBNN(2, 3, num_steps=0), "num_steps: expected a positive"),
        (lambda: SDEBNN(2, 3, state_dim=0), "state_dim: expected a positive"),
        (lambda: network()(torch.zeros(4, 3)), r"x: expected shape \[\*, 2\]"),
        (lambda: network()(torch.zeros(4, 2).double(), torch.zeros(4)), "y: expected dtype"),
        (lambda: network(num_data=3)(*data()), "at most num_data=3"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_what_is_no_process():
    with pytest.raises(TypeError, match="process"):
        SDEBNN(2, 3, prior=dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("copy_of", ["deepcopy", "pickle", "state_dict"])
def test_copies_have_the_same_loss_and_their_own_parameters(copy_of):
    model = network(num_data=30)
    guide, (x, y) = trained(model), data()
    PathELBO().loss(model, guide, x, y)  # copied after use, as users do
    if copy_of == "deepcopy":
        clone = copy.deepcopy((model, guide))
    elif copy_of == "pickle":
        clone = pickle.loads(pickle.dumps((model, guide)))
    else:
        other = network(num_data=30)
        clone = other, PathDrift(other).double()
        for source, target in zip((model, guide), clone, strict=True):
            target.load_state_dict(source.state_dict())
    losses = []
    for pair in ((model, guide), clone):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        losses.append(PathELBO().loss(*pair, x, y))
    assert losses[0] == losses[1]
    own = {id(p) for part in (model, guide) for p in part.parameters()}
    assert not any(id(p) in own for part in clone for p in part.parameters())
    assert clone[1].law().initial is clone[0].initial  # the guide's model is the copied one
