"""Diffusions of discrete states against enumeration of all states, data and steps."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import one_hot

from pyrogen.checks import check_pair
from pyrogen.guides import ForwardNoising
from pyrogen.models import BinomialDiffusion, CategoricalDiffusion
from pyrogen.models._state_laws import Binary, FixedBinary, FixedLevels, Levels
from pyrogen.nn import ModulatedMLP
from tests.models.test_denoising_diffusion import bounds
from tests.statistics import assert_frequencies, assert_mean_close

STEPS = 4
LEAKY = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.5, 0.5]]).repeat(STEPS, 1, 1)


def network(in_shape):
    made = ModulatedMLP(in_shape, width=16, num_blocks=1)
    nn.init.normal_(made.last.weight, std=0.7)
    return made


def binomial(net=None, dim=2, steps=STEPS, **options):
    return BinomialDiffusion(net or network(dim), dim, steps, **options).double()


def categorical(net=None, dim=2, steps=STEPS, levels=3, states=3, **options):
    net = net or network((dim, states))
    return CategoricalDiffusion(net, dim, levels, steps, **options).double()


MODELS = {
    "binomial": binomial,
    "binomial_shares": lambda **o: binomial(betas=torch.tensor([0.1, 0.4, 0.2, 0.6]), **o),
    "absorbing": lambda **o: categorical(levels=2, **o),
    "uniform": lambda **o: categorical(transitions="uniform", **o),
    "gaussian": lambda **o: categorical(transitions="gaussian", **o),
    "matrices": lambda **o: categorical(transitions=LEAKY, levels=2, **o),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def tables(model, dim=2):
    """All states ``[S^dim, dim]``, and which of them are data."""
    states = getattr(model, "num_states", 2)
    table = torch.tensor(list(itertools.product(range(states), repeat=dim)))
    data = (table < getattr(model, "levels", 2)).all(-1)
    return (table if hasattr(model, "levels") else table.double()), data


def table_of(law, table):
    """``[from, to]``: log-probabilities of all states under each of a batch of laws."""
    return torch.stack([law.log_prob(row.expand(law.batch_shape + row.shape)) for row in table], -1)


@torch.no_grad()
def enumerated(model, dim=2):
    """log p(x_0) and the bound, for each datum, by sums over all states."""
    table, data = tables(model, dim)
    x0 = table[data]
    k = torch.tensor
    log_p = model.terminal().log_prob(table)
    end = table_of(model.noised(x0, k(model.num_timesteps)), table)
    bound = -torch.where(end.isfinite(), end.exp() * (end - log_p), 0.0).sum(-1)
    for step in range(model.num_timesteps, 0, -1):
        back = table_of(model.reverse(table, k(step))[int(step == 1)], table)  # [x_k, x_{k-1}]
        seen = table_of(model.noised(x0, k(step)), table).exp()  # [x_0, x_k]
        if step > 1:
            law = model.posterior(table, x0[:, None], k(step))
            true = table_of(law, table)  # [x_0, x_k, x_{k-1}]
            ratio = torch.where(true.isfinite(), true - back, 0.0)
            # a state that the datum cannot have reached has no posterior, and weight 0
            divergence = torch.where(seen > 0, (true.exp() * ratio).sum(-1), 0.0)
            bound = bound - (seen * divergence).sum(-1)
        else:
            bound = bound + (seen * back[:, data].T).sum(-1)
        log_p = (log_p[:, None] + back).logsumexp(0)
    return log_p[data], bound


@models
def test_posteriors_by_bayes(make):
    """q(x_{k-1}|x_k, x_0) q(x_k|x_0) = q(x_{k-1}|x_0) q(x_k|x_{k-1}), for one element."""
    model = make(dim=1)
    table, data = tables(model, 1)
    x0, states = table[data], len(table)
    for step in range(2, STEPS + 1):
        k = torch.tensor(step)
        if hasattr(model, "levels"):
            matrix = model.one_step[step - 1]
        else:
            share = model.betas[step - 1]
            matrix = (1 - share) * torch.eye(2).double() + share / 2
        before, now = (table_of(model.noised(x0, j), table).exp() for j in (k - 1, k))
        torch.testing.assert_close(before @ matrix, now)
        posterior = table_of(model.posterior(table, x0[:, None], k), table).exp()
        joint = before[:, None, :] * matrix.T  # [x_0, x_k, x_{k-1}]
        found = torch.where(now[..., None] > 0, now[..., None] * posterior, 0.0)
        torch.testing.assert_close(found, joint, rtol=1e-6, atol=1e-7)
        assert joint.shape == (len(x0), states, states)


@models
def test_the_model_is_a_law_of_data_and_the_bound_is_below_it(make):
    log_p, bound = enumerated(make())
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-6)
    assert (bound < log_p).all()
    assert (log_p - bound).min() > 1e-4  # of a random network it is not tight


@models
def test_every_elbo_estimates_the_enumerated_bound(make):
    model = make()
    guide, (table, data) = ForwardNoising(model), tables(model)
    row = table[data][1]
    expected = enumerated(model)[1][1]
    copies = row.expand(6000, 2)
    for size in (None, 1, 3, STEPS):
        model.subsample_size = size
        for closed_form in (True, False):
            with torch.no_grad():
                assert_mean_close(bounds(model, guide, copies, closed_form), expected)
            elbo = TraceMeanField_ELBO() if closed_form else Trace_ELBO()
            pyro.set_rng_seed(1)
            loss = elbo.loss(model, guide, copies[:5])
            pyro.set_rng_seed(1)
            by_hand = -bounds(model, guide, copies[:5], closed_form).sum().item()
            assert loss == pytest.approx(by_hand, rel=1e-9)
    check_pair(model, guide, (copies,))


@models
def test_draws_follow_the_model(make):
    model = make()
    table, data = tables(model)
    with torch.no_grad():
        draws = model(None, num_samples=8000)
    assert_frequencies(draws, table[data], enumerated(model)[0].exp())
    trace = poutine.trace(model).get_trace(None, num_samples=3)
    assert trace.stochastic_nodes == ["data", "x_4", "x_3", "x_2", "x_1", "x"]


class Fixed(nn.Module):
    """The same log-odds or logits whatever it sees: the best for data of a single element."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x, t):
        return self.logits.expand(x.shape)


@pytest.mark.parametrize("kind", ["binomial", "absorbing", "uniform"])
def test_the_bound_of_one_element_is_its_entropy(kind):
    """With the data's own law as the guess, the model is the noising read backwards."""
    if kind == "binomial":
        law = torch.tensor([0.7, 0.3]).double()
        model = binomial(Fixed((law[1] / law[0]).log()), dim=1)
    else:
        law = torch.tensor([0.5, 0.2, 0.3]).double()
        logits = torch.cat([law.log(), torch.zeros(1)])[: 4 if kind == "absorbing" else 3]
        model = categorical(Fixed(logits), dim=1, transitions=kind)
    log_p, bound = enumerated(model, dim=1)
    torch.testing.assert_close(log_p, law.log(), rtol=0, atol=1e-6)
    torch.testing.assert_close(bound, law.log(), rtol=0, atol=1e-6)


class Twins(nn.Module):
    """The best guess of two bits that are equal: each is what the other tells."""

    def __init__(self, absorbing):
        super().__init__()
        self.absorbing = absorbing

    def forward(self, x, t):
        if self.absorbing:  # a bit that is not masked tells all
            told = 40 * (x[..., 1] - x[..., 0]).flip(-1)
            return torch.stack([-told, told, torch.zeros_like(told)], -1) / 2
        left = 1 - t[:, None]
        return (2 * x.flip(-1) - 1) * (torch.log1p(left) - torch.log1p(-left))


@pytest.mark.parametrize("absorbing", [False, True])
def test_the_bound_of_dependent_elements_is_tight_in_the_number_of_steps(absorbing):
    """Elements change one at a time if steps are small: what is lost falls like 1/T."""
    lost = []
    for steps in (50, 100, 200):
        net = Twins(absorbing)
        model = categorical(net, levels=2, steps=steps) if absorbing else binomial(net, steps=steps)
        bound = enumerated(model)[1]
        lost.append(-torch.tensor(2.0).log() - bound[[0, 3]].mean())
    orders = -torch.stack(lost).log2().diff()
    assert ((orders > 0.8) & (orders < 1.1)).all()
    assert 0 < lost[-1] < 0.05


@models
def test_denoising_by_bayes(make):
    """The guess and what the element itself tells, together."""
    model = make(dim=1)
    table, data = tables(model, 1)
    x0, k = table[data], torch.tensor(3)
    told = table_of(model.noised(x0, k), table).exp().T  # [x_k, x_0]
    with torch.no_grad():
        found = model.denoise(table, k)
        if hasattr(model, "levels"):
            weights = model._guess(table, k.expand(len(table)), None)[:, 0]
            found = found[:, 0]
        else:
            one = model.called(table, k.expand(len(table)), None).sigmoid()
            weights = torch.cat([1 - one, one], -1)
            found = torch.cat([1 - found, found], -1)
    joint = weights * told
    torch.testing.assert_close(found, joint / joint.sum(-1, keepdim=True))


def test_divergences_stay_finite():
    logits = torch.tensor([-30.0, -2.0, 0.0, 25.0])
    p, q = FixedBinary(logits=logits), Binary(logits=logits.flip(0))
    found = torch.distributions.kl_divergence(p, q)
    double = logits.double()
    one = double.sigmoid() * (
        nn.functional.logsigmoid(double) - nn.functional.logsigmoid(double.flip(0))
    )
    zero = (-double).sigmoid() * (
        nn.functional.logsigmoid(-double) - nn.functional.logsigmoid(-double.flip(0))
    )
    torch.testing.assert_close(found.double(), one + zero, rtol=1e-5, atol=1e-5)
    plain = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=logits[1:3]),
        torch.distributions.Bernoulli(logits=logits[1:3].flip(0)),
    )
    middle = torch.distributions.kl_divergence(
        FixedBinary(logits=logits[1:3]), Binary(logits=logits[1:3].flip(0))
    )
    torch.testing.assert_close(middle, plain)
    probs = torch.tensor([[0.0, 0.3, 0.7], [1.0, 0.0, 0.0]])
    other = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]).log().requires_grad_()
    levels = torch.distributions.kl_divergence(
        FixedLevels(logits=probs.log()), Levels(logits=other)
    )
    expected = torch.special.xlogy(probs, probs).sum(-1) - (probs * other.detach()).sum(-1)
    torch.testing.assert_close(levels.detach(), expected)
    levels.sum().backward()
    torch.testing.assert_close(other.grad, other.detach().exp() - probs)


def test_fixed_laws_draw_by_their_probabilities():
    probs = torch.tensor([0.0, 0.2, 0.5, 0.3])
    draws = FixedLevels(logits=probs.log())((8000,))
    assert_frequencies(draws.reshape(-1, 1), torch.arange(1, 4).reshape(-1, 1), probs[1:])
    bits = FixedBinary(logits=torch.tensor([-1.0, 2.0]))((8000,))
    assert_mean_close(bits, torch.tensor([-1.0, 2.0]).sigmoid())


@models
def test_gradients_reach_every_parameter(make):
    model = make()
    model.subsample_size = STEPS
    table, data = tables(model)
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        model.zero_grad()
        elbo.loss_and_grads(model, ForwardNoising(model), table[data])
        for name, parameter in model.named_parameters():
            assert parameter.grad.any(), name
            assert parameter.grad.isfinite().all(), name


@models
def test_vectorised_particles(make):
    model, size = make(), 400
    guide, (table, data) = ForwardNoising(model), tables(model)
    expected = enumerated(model)[1][1]
    copies = table[data][1].expand(size, 2)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2)
    for steps in (None, 2):
        model.subsample_size = steps
        with torch.no_grad():
            estimates = [-elbo.loss(model, guide, copies) / size for _ in range(20)]
        assert_mean_close(torch.tensor(estimates), expected)


def test_images_and_contexts():
    seen = []

    def net(x, t, context):
        seen.append((x.shape, t.shape, context.shape))
        return one_hot(torch.zeros(x.shape[:-1], dtype=torch.int64), x.shape[-1]).float()

    model = CategoricalDiffusion(net, (2, 3), 4, 6, "uniform", subsample_size=2)
    x, context = torch.randint(4, (5, 2, 3)), torch.randn(5, 7)
    TraceMeanField_ELBO().loss(model, ForwardNoising(model), x, context)
    assert seen[-1] == ((10, 2, 3, 4), (10,), (10, 7))
    assert model(None, context).shape == (5, 2, 3)
    scalar = BinomialDiffusion(lambda x, t: x, (), 6)
    assert scalar(None, num_samples=3).shape == (3,)
    single = CategoricalDiffusion(ModulatedMLP(3), levels=2, num_timesteps=4)
    assert single.event_shape == ()
    assert single(None, num_samples=5).shape == (5,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: categorical(transitions="normal"), "transitions: expected one of absorbing, gau"),
        (lambda: categorical(transitions=torch.ones(4, 3, 3)), "transitions: expected 4 square"),
        (lambda: categorical(transitions=LEAKY[:3]), "transitions: expected 4 square matrices"),
        (lambda: categorical(levels=1), "levels: expected an integer above 1"),
        (lambda: binomial(betas=torch.ones(4)), "betas: expected 4 numbers above 0 and below 1"),
        (lambda: binomial(betas=torch.ones(3) / 2), "betas: expected 4 numbers"),
        (lambda: binomial()(torch.full((3, 2), 0.5)), "data: expected values 0 or 1, got values"),
        (lambda: categorical()(torch.full((3, 2), 3)), r"expected levels 0\.\.2"),
        (lambda: binomial(lambda x, t: x[:, :1])(None), r"denoiser: expected shape \['n', 2\]"),
        (lambda: categorical(lambda x, t: x[:, :1])(None), r"expected shape \['n', 2, 4\]"),
        (lambda: categorical(transitions="gaussian", levels=5, steps=1000), "betas: expec"),
        (lambda: CategoricalDiffusion(nn.Identity()), "event_shape: expected the shape of one"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
