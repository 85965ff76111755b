"""The joint energy-based model against a mixture of Gaussians, which it can be exactly."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyrogen.guides import Empty
from pyrogen.kernels import HMC, MALA, ShortRun
from pyrogen.losses import Compiled, ContrastiveDivergence, ScoreMatching
from pyrogen.models import JointEnergyModel
from tests.statistics import assert_mean_close

MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def mixture(scale=1.0):
    """A linear classifier on a standard normal base is a mixture of unit Gaussians.

    log p0(x) + m.x - m²/2 + log w = log w N(x; m, I).
    """
    classifier = nn.Linear(2, 3).double()
    with torch.no_grad():
        classifier.weight.copy_(MEANS)
        classifier.bias.copy_(WEIGHTS.log() - MEANS.square().sum(-1) / 2)
    return JointEnergyModel(
        classifier,
        torch.distributions.Independent(dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1),
    )


def parts(x):
    """log of w_y N(x; m_y, I) for all classes, ``[n, 3]``."""
    normal = -(x.unsqueeze(-2) - MEANS).square().sum(-1) / 2 - math.log(2 * math.pi)
    return normal + WEIGHTS.log()


def test_marginal_conditional_and_joint_are_those_of_the_mixture():
    model, x = mixture(), torch.randn(7, 2).double()
    torch.testing.assert_close(
        model.distribution().unnormalized_log_prob(x), parts(x).logsumexp(-1)
    )
    torch.testing.assert_close(model.classify(x).logits, parts(x).log_softmax(-1))
    labels = torch.arange(7) % 3
    expected = parts(x).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(model.given(labels).unnormalized_log_prob(x), expected)
    joint = model.distribution().unnormalized_log_prob(x) + model.classify(x).log_prob(labels)
    torch.testing.assert_close(joint, expected)


def test_the_loss_is_that_of_the_energy_and_cross_entropy():
    """With the labels that there are: score matching of x, plus minus log p(y | x)."""
    model, x = mixture(), torch.randn(6, 2).double()
    labels = torch.tensor([0, 1, 2, -1, 0, -1])
    loss = ScoreMatching("exact")
    alone = loss.loss(model, Empty(), x)
    nothing = loss.loss(model, Empty(), x, torch.full((6,), -1))
    known = labels >= 0
    entropy = -model.classify(x[known]).log_prob(labels[known]).sum().item()
    assert alone == nothing
    assert loss.loss(model, Empty(), x, labels) == pytest.approx(alone + entropy, rel=1e-12)
    model.density_weight.fill_(0.25)
    assert loss.loss(model, Empty(), x, labels) == pytest.approx(alone / 4 + entropy, rel=1e-12)
    model.density_weight.fill_(1.0)
    compiled = Compiled(loss, compile=False)
    assert compiled.loss(model, Empty(), x, labels) == pytest.approx(alone + entropy, rel=1e-12)


def test_draws_follow_the_mixture():
    model = mixture()
    model.sampler = ShortRun(MALA(step_size=1.5), num_steps=60)
    x, y = model(None, num_samples=10_000)
    assert_mean_close(x, (WEIGHTS.unsqueeze(-1) * MEANS).sum(0))
    assert_mean_close(nn.functional.one_hot(y, 3).double(), WEIGHTS)
    model.sampler = ShortRun(MALA(step_size=1.5), num_steps=30)
    of_one = model.given(torch.full((4_000,), 2)).sample()
    assert_mean_close(of_one, MEANS[2])


def test_contrastive_divergence_is_unbiased_at_the_truth():
    """Chains at draws of the model: the gradient in the weights vanishes with data of the model.

    The chains start at independent exact draws and stay there.
    """
    model = mixture()

    def draw(n):
        y = dist.Categorical(WEIGHTS).sample((n,))
        return MEANS[y] + torch.randn(n, 2).double(), y

    gradients = []
    for _ in range(100):
        x, y = draw(200)
        contrast = ContrastiveDivergence(
            HMC(step_size=0.5), num_steps=0, sampler=lambda count: draw(count)[0]
        )
        model.zero_grad()
        contrast.loss_and_grads(model, Empty(), x, y)
        gradients.append(model.classifier.weight.grad.clone() / 200)
    assert_mean_close(torch.stack(gradients), 0.0)


def test_images_outer_plates_copies_and_pickles():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model = JointEnergyModel(network, (3, 4))
    assert model.num_classes == 5
    x, labels = torch.randn(2, 6, 3, 4), torch.randint(5, (2, 6))
    with pyro.plate("outer", 2, dim=-2):
        trace = poutine.trace(poutine.block(model, hide=["x"])).get_trace(x, labels)
    trace.compute_log_prob()
    expected = nn.functional.cross_entropy(network(x.reshape(12, 3, 4)), labels.flatten())
    torch.testing.assert_close(-trace.nodes["y"]["log_prob_sum"], 12 * expected)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(
            clone.distribution().unnormalized_log_prob(x),
            model.distribution().unnormalized_log_prob(x),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 3),), r"data: expected shape \[\*, 2\]"),
        ((torch.zeros(4, 2), torch.zeros(3).long()), r"labels: expected shape \[4\]"),
        ((torch.zeros(4, 2), torch.zeros(4)), "of torch.int64"),
        ((torch.zeros(4, 2), torch.full((4,), 3)), r"classes 0..2, or -1"),
        ((torch.zeros(4, 2), torch.full((4,), -2)), r"classes 0..2, or -1"),
        ((None, torch.zeros(4).long()), "labels: expected None without data"),
        ((torch.zeros(4, 2), None, 5), "num_samples: expected None with data"),
        ((None, None, 0), "num_samples: expected a positive integer"),
    ],
)
def test_wrong_calls_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        JointEnergyModel(nn.Linear(2, 3), 2)(*arguments)


def test_wrong_classifiers_are_refused():
    with pytest.raises(TypeError, match=r"classifier: expected a torch\.nn\.Module"):
        JointEnergyModel(lambda x: x, 2)
    with pytest.raises(ValueError, match="density_weight: expected a positive finite number"):
        JointEnergyModel(nn.Linear(2, 3), 2, density_weight=0.0)
    with pytest.raises(ValueError, match="classifier: expected a network for input"):
        JointEnergyModel(nn.Linear(3, 2), 2)
    with pytest.raises(ValueError, match=r"classifier: expected output \[2, num_classes\]"):
        JointEnergyModel(nn.Unflatten(-1, (1, 2)), 2)
