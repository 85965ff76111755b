"""Flow densities against closed forms, and the memo of a draw's log-density."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.losses import Compiled
from pyrogen.transforms import ActNorm, AdditiveCoupling, Inverse, InvertibleConvolution
from tests.statistics import assert_follows, assert_mean_close


def standard(*shape):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def affine(size=2):
    """A flow that is a Gaussian, and that Gaussian."""
    layers = [ActNorm(size), InvertibleConvolution(size)]
    with torch.no_grad():
        for parameter in [*layers[0].parameters(), *layers[1].parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    matrix = layers[1].matrix() * layers[0].log_scale.exp()
    loc = layers[1].matrix() @ layers[0].loc
    return FlowDistribution(standard(size), layers), dist.MultivariateNormal(loc, matrix @ matrix.T)


def test_an_affine_flow_is_a_gaussian():
    flow, gaussian = affine(2)
    y = flow.sample((5000,))
    torch.testing.assert_close(flow.log_prob(y), gaussian.log_prob(y), atol=1e-4, rtol=1e-4)
    assert_mean_close(y, gaussian.loc)
    assert_follows(y, gaussian.log_prob(y))


def test_transforms_of_torch_make_the_log_normal():
    flow = FlowDistribution(dist.Normal(torch.zeros(4), 0.5), T.ExpTransform())
    y = flow.sample((10,))
    assert flow.batch_shape == (4,)
    torch.testing.assert_close(flow.log_prob(y), dist.LogNormal(torch.zeros(4), 0.5).log_prob(y))


def test_event_dimensions_of_base_and_transforms_are_reconciled():
    """A base over scalars, a transform over vectors, a transform over scalars."""
    transforms = [T.affine_coupling(4, [8]), T.ExpTransform()]
    ours = FlowDistribution(dist.Normal(torch.zeros(3, 4), 1.0), transforms)
    pyros = dist.TransformedDistribution(dist.Normal(torch.zeros(3, 4), 1.0), transforms)
    y, log_prob = ours.rsample_with_log_prob((5,))
    assert ours.batch_shape == pyros.batch_shape == (3,)
    assert ours.event_shape == pyros.event_shape == (4,)
    torch.testing.assert_close(ours.log_prob(y), pyros.log_prob(y), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_prob, pyros.log_prob(y), atol=1e-4, rtol=1e-4)


def test_the_draw_and_its_log_density_have_the_gradient_of_the_gaussian():
    """Reparametrised gradients of E log q(y), twice over the same noise."""
    flow, _ = affine()
    torch.manual_seed(3)
    _, log_prob = flow.rsample_with_log_prob((50,))
    parameters = [p for t in flow.transforms for p in t.parameters()]
    ours = torch.autograd.grad(log_prob.sum(), parameters, materialize_grads=True)
    torch.manual_seed(3)
    again = flow.rsample((50,)).clone()  # a copy, which is scored by the inverse pass
    expected = torch.autograd.grad(flow.log_prob(again).sum(), parameters)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def counted(transform):
    calls = []
    transform.network.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_last_draw_is_not_scored_again():
    layer = AdditiveCoupling(4)
    flow, calls = FlowDistribution(standard(4), [layer]), counted(layer)
    y = flow.rsample((3,))
    log_prob = flow.log_prob(y)
    assert len(calls) == 1
    assert flow.log_prob(y) is log_prob
    torch.testing.assert_close(flow.log_prob(y.clone()), log_prob)
    assert len(calls) == 2


def step_parameter(flow, y):
    with torch.no_grad():
        next(flow.transforms[0].parameters()).add_(0.5)


def replace_parameter(flow, y):
    layer = flow.transforms[0].network.layers[-1]
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def step_base(flow, y):
    flow.base_dist.base_dist.loc.add_(1.0)


def step_value(flow, y):
    with torch.no_grad():
        y.add_(1.0)


def evaluation(flow, y):
    flow.transforms[0].eval()


@pytest.mark.parametrize(
    "change", [step_parameter, replace_parameter, step_base, step_value, evaluation]
)
def test_what_has_changed_is_scored_anew(change):
    flow = FlowDistribution(standard(4), [AdditiveCoupling(4)])
    y = flow.rsample((3,))
    assert flow._memo.holds(y, flow)
    change(flow, y)
    assert not flow._memo.holds(y, flow)
    torch.testing.assert_close(flow.log_prob(y), copy.deepcopy(flow).log_prob(y.detach()))


def test_a_context_and_a_wrapped_network_are_watched_too():
    """Pyro conditions by ``functools.partial``, ours by an object that holds the context."""
    for make in (T.conditional_affine_coupling, lambda *a: AdditiveCoupling(4, context_dim=2)):
        context = torch.randn(3, 2)
        flow = FlowDistribution(standard(4).expand((3,)), [make(4, 2).condition(context)])
        y = flow.rsample()
        assert flow._memo.holds(y, flow)
        context.add_(1.0)
        assert not flow._memo.holds(y, flow)


def test_gradient_mode_is_part_of_the_memo():
    flow = FlowDistribution(standard(4), [AdditiveCoupling(4)])
    with torch.no_grad():
        y = flow.rsample((3,))
        assert flow._memo.holds(y, flow)
    assert flow.log_prob(y).requires_grad
    with torch.inference_mode():
        y = flow.rsample((3,))
        flow.log_prob(y)
    assert flow._memo is None


def test_a_draw_made_a_leaf_has_the_gradient_of_its_density():
    """Nothing of this flow wants a gradient, so that its draws are leaves."""
    flow = FlowDistribution(standard(2), [T.AffineTransform(1.0, 2.0)])
    y = flow.rsample((5,)).requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(y).sum(), y)
    torch.testing.assert_close(gradient, (1.0 - y.detach()) / 4)


def test_the_memo_keeps_no_draw_alive():
    flow = FlowDistribution(standard(4), [T.ExpTransform()])
    y = flow.rsample((3,))
    reference = weakref.ref(y)
    del y
    gc.collect()
    assert reference() is None


def test_a_planar_guide_needs_no_inverse():
    """Its draws are scored in the pass they were made in; others cannot be."""
    flow = FlowDistribution(standard(3), [T.Planar(3), T.Planar(3)])
    torch.manual_seed(3)
    x = flow.base_dist.rsample((5,))
    torch.manual_seed(3)
    y = flow.rsample((5,))

    def image(x):
        for transform in flow.transforms:
            x = transform(x)
        return x

    torch.testing.assert_close(y, image(x))
    jacobians = torch.stack([torch.autograd.functional.jacobian(image, one) for one in x])
    expected = flow.base_dist.log_prob(x) - torch.linalg.slogdet(jacobians)[1]
    torch.testing.assert_close(flow.log_prob(y), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(KeyError, match="intermediates cache"):
        flow.log_prob(y.clone())


class Guide(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([AdditiveCoupling(2, hidden=(8,)), ActNorm(2)])

    def forward(self):
        return pyro.sample("z", FlowDistribution(standard(2), list(self.layers)))


def model():
    pyro.sample("z", dist.Normal(torch.tensor([1.0, -2.0]), 0.5).to_event(1))


@pytest.mark.parametrize("wrap", [lambda elbo: elbo, lambda elbo: Compiled(elbo, compile=False)])
def test_as_a_guide_it_reaches_an_exact_posterior(wrap):
    """The posterior is within the family, and log Z = 0: at the optimum every draw says so."""
    guide = Guide()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=wrap(Trace_ELBO()))
    for _ in range(400):
        svi.step()
    norm = guide.layers[1]
    with torch.no_grad():
        trained = sum(Trace_ELBO().loss(model, guide) for _ in range(100)) / 100
        norm.loc.copy_(torch.tensor([1.0, -2.0]))
        norm.log_scale.fill_(-0.6931472)
        guide.layers[0].network.layers[-1].weight.zero_()
        guide.layers[0].network.layers[-1].bias.zero_()
        assert abs(Trace_ELBO().loss(model, guide)) < 1e-5
    assert abs(trained) < 0.05


def test_expand_gives_independent_draws_of_the_same_density():
    flow, gaussian = affine()
    wide = flow.expand((4, 3))
    y = wide.rsample((2,))
    assert wide.batch_shape == (4, 3)
    assert y.shape == (2, 4, 3, 2)
    assert len(y.flatten(0, 2).unique(dim=0)) == 24
    torch.testing.assert_close(wide.log_prob(y), gaussian.log_prob(y), atol=1e-4, rtol=1e-4)
    assert wide.expand((5, 4, 3)).log_prob(y[0]).shape == (5, 4, 3)


def test_the_support_is_that_of_the_last_transform():
    flow = FlowDistribution(standard(3), [AdditiveCoupling(3, split=1), T.SigmoidTransform()])
    assert flow.support.check(torch.tensor([0.2, 0.3, 0.4]))
    assert not flow.support.check(torch.tensor([0.2, 1.3, 0.4]))
    with pytest.raises(ValueError, match="within the support"):
        flow.log_prob(torch.tensor([0.2, 1.3, 0.4]))
    assert FlowDistribution(standard(3), []).log_prob(torch.zeros(3)) == standard(3).log_prob(
        torch.zeros(3)
    )


def test_copies_carry_no_memo():
    flow = FlowDistribution(standard(4), [AdditiveCoupling(4)])
    y = flow.rsample()
    for other in (pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow)):
        assert other._memo is None
        torch.testing.assert_close(other.log_prob(y), flow.log_prob(y))


def test_the_divergence_of_flows_that_share_their_layers_is_that_of_their_bases():
    layers = [AdditiveCoupling(2), ActNorm(2)]
    bases = [dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Normal(1.0, 2.0).expand([2])]
    one, other = (FlowDistribution(base, layers) for base in bases)
    divergence = torch.distributions.kl_divergence(one, other)
    expected = torch.distributions.kl_divergence(bases[0].base_dist, bases[1]).sum()
    torch.testing.assert_close(divergence, expected)
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(one, FlowDistribution(bases[0], layers[:1]))


def test_in_a_plate_with_particles_each_draw_has_a_log_density():
    layers = nn.ModuleList([T.Planar(2), ActNorm(2)])

    def program():
        with pyro.plate("particles", 3, dim=-2), pyro.plate("data", 5, dim=-1):
            return pyro.sample("z", FlowDistribution(standard(2), list(layers)))

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (3, 5, 2)
    assert trace.nodes["z"]["unscaled_log_prob"].shape == (3, 5)


def test_a_new_process_reads_a_pickle(tmp_path):
    layers = [AdditiveCoupling(4), Inverse(T.affine_coupling(4)), T.ExpTransform()]
    flow, y = FlowDistribution(standard(4), layers), torch.ones(4)
    flow.rsample()
    (tmp_path / "flow.pickle").write_bytes(pickle.dumps((flow, y)))
    script = (
        "import pickle, sys, pyro\n"
        "flow, y = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(flow.log_prob(y).item())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "flow.pickle")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output) == pytest.approx(flow.log_prob(y).item(), abs=1e-5)


def test_what_is_no_flow_is_refused():
    with pytest.raises(TypeError, match=r"expected torch\.distributions\.Transform, got Linear"):
        FlowDistribution(standard(4), [nn.Linear(4, 4)])
    with pytest.raises(TypeError, match=r"transform\.condition\(context\)"):
        FlowDistribution(standard(4), [T.conditional_affine_coupling(4, 2)])
    with pytest.raises(ValueError, match="expected a context of size 2, got none"):
        FlowDistribution(standard(4), [Inverse(AdditiveCoupling(4, context_dim=2))])
    with pytest.raises(ValueError, match="expected bijections, got SoftmaxTransform"):
        FlowDistribution(standard(4), [T.SoftmaxTransform()])
