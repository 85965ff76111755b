"""The guide without sites makes every ELBO the log-likelihood."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam

from pyrogen.checks import check_pair
from pyrogen.guides import Empty
from pyrogen.losses import Compiled


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.5))

    def forward(self, x, scale=1.0):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.loc, scale), obs=x)


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(num_particles=2),
        Compiled(Trace_ELBO(), compile=False),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
def test_every_elbo_is_the_likelihood(elbo):
    model, guide, x = Model(), Empty(), torch.tensor([0.0, 2.0, -1.0])
    exact = dist.Normal(0.5, 2.0).log_prob(x).sum().item()
    assert elbo.loss(model, guide, x, scale=2.0) == pytest.approx(-exact, rel=1e-6)
    elbo.loss_and_grads(model, guide, x, scale=2.0)
    assert model.loc_unconstrained.grad.item() == pytest.approx(-(x - 0.5).sum().item() / 4)


def test_it_has_no_sites_and_takes_everything():
    guide = Empty()
    assert not poutine.trace(guide).get_trace(1, two=2).nodes.keys() - {"_INPUT", "_RETURN"}
    check_pair(Model(), guide, (torch.zeros(3),))
