"""Whose parameters a program runs with, and that nothing is left behind."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from pyrogen import diagnostics, training
from pyrogen.modes import evaluation_mode, local_parameters, trained_parameters, training_mode


class Model(PyroModule):
    """Its scale has the name of the guide's."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.5), constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, self.scale))


def scales(*programs):
    return [program.scale_unconstrained.exp().item() for program in programs]


def test_diagnostics_leave_fitted_parameters_and_the_store_alone():
    """Two pairs in one session, whose parameters all have the same name."""
    x = 3 * torch.randn(64)
    reports, ends = [], []
    for rate in (0.01, 0.1):
        model, guide = Model(), Guide()
        training.fit(
            model,
            guide,
            x,
            loss=Trace_ELBO(),
            optimizer=lambda p, rate=rate: torch.optim.Adam(p, lr=rate),
            max_epochs=30,
            progress=False,
        )
        end = scales(model, guide)
        pyro.set_rng_seed(0)
        reports.append(diagnostics.latent_report(model, guide, x).elbo)
        assert scales(model, guide) == end
        assert not list(pyro.get_param_store().keys())
        ends.append(end)
    assert abs(ends[0][0] - ends[0][1]) > 0.1
    assert abs(ends[0][0] - ends[1][0]) > 0.1
    assert reports[1] > reports[0] + 0.1


def test_diagnostics_of_a_pair_trained_by_svi_read_the_store():
    """A bare parameter inside a module lives in the global store and nowhere else."""

    class Bare(PyroModule):
        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                loc = pyro.param("loc", torch.tensor(0.0))
                pyro.sample("z", dist.Normal(loc, 1.0))

    model, guide = Model(), Bare()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    x = torch.randn(16) + 4
    for _ in range(50):
        svi.step(x)
    store = {n: p.clone() for n, p in pyro.get_param_store().named_parameters()}
    idata = diagnostics.from_svi(model, guide, x, num_samples=200)
    spread = 6 / (200 * 16) ** 0.5
    assert abs(float(idata.posterior["z"].mean()) - store["loc"].item()) < spread
    after = dict(pyro.get_param_store().named_parameters())
    assert after.keys() == store.keys()
    assert all(torch.equal(after[n], p) for n, p in store.items())


@pytest.mark.parametrize("context", [local_parameters, trained_parameters])
def test_settings_and_store_are_put_back_after_an_error(context):
    before = pyro.settings.get()
    pyro.param("kept", torch.tensor(1.0))
    with pytest.raises(KeyError), context(Model()):
        raise KeyError
    assert pyro.settings.get() == before
    assert list(pyro.get_param_store().keys()) == ["kept"]


def test_modes_are_put_back_part_by_part():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    module[1].eval()
    with evaluation_mode(module):
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module] == [True, False]
    with training_mode(module):
        assert [m.training for m in module] == [True, False]
    module.eval()
    with training_mode(module):
        assert all(m.training for m in module.modules())
    assert not any(m.training for m in module.modules())
