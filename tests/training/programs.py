"""Small programs, and runs of ``fit`` on them, that the tests and their subprocesses share."""

from __future__ import annotations

import os
import signal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyrogen.training import fit

FULL_SIZE = 21


def data(num_data=FULL_SIZE, dim=3, dtype=torch.float32):
    """Fixed data, not drawn from the global generator."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_data, dim, generator=generator, dtype=dtype) + 1.0


class GlobalModel(PyroModule):
    """One latent mean for all data; the plate stands for ``FULL_SIZE`` data."""

    def forward(self, x):
        prior = dist.Normal(x.new_zeros(x.shape[-1]), 2.0).to_event(1)
        mean = pyro.sample("mean", prior)
        with pyro.plate("data", FULL_SIZE, subsample_size=len(x), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


class PointGuide(PyroModule):
    """The mean at a point: maximum a posteriori, without noise."""

    def __init__(self, dim=3, dtype=torch.float32):
        super().__init__()
        self.point = PyroParam(torch.zeros(dim, dtype=dtype))

    def forward(self, x):
        pyro.sample("mean", dist.Delta(self.point).to_event(1))


class NormalGuide(PyroModule):
    """The mean as a Gaussian; records its draws."""

    def __init__(self, dim=3, dtype=torch.float32):
        super().__init__()
        self.loc = PyroParam(torch.zeros(dim, dtype=dtype))
        self.scale = PyroParam(torch.ones(dim, dtype=dtype), constraint=constraints.positive)
        self.draws = []

    def forward(self, x):
        draw = pyro.sample("mean", dist.Normal(self.loc, self.scale).to_event(1))
        self.draws.append(draw.detach().clone())


class LocalModel(PyroModule):
    """A latent per datum, decoded linearly, with a learned scale."""

    def __init__(self, dim=3, dtype=torch.float32):
        super().__init__()
        self.decoder = nn.Linear(2, dim, dtype=dtype)
        self.scale = PyroParam(torch.ones((), dtype=dtype), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)


class LocalGuide(PyroModule):
    """Encodes each datum, with noise or (``scale=0``) without; can fail or die at a given call."""

    def __init__(self, dim=3, dtype=torch.float32, scale=0.5):
        super().__init__()
        self.encoder = nn.Linear(dim, 2, dtype=dtype)
        self.scale = scale
        self.calls = 0
        self.before_call = lambda call: None

    def forward(self, x):
        self.before_call(self.calls)
        self.calls += 1
        loc = self.encoder(x)
        with pyro.plate("data", len(x), dim=-1):
            value = dist.Normal(loc, self.scale) if self.scale else dist.Delta(loc)
            pyro.sample("z", value.to_event(1))


def local_pair(dtype=torch.float32, scale=0.5):
    """A model and a guide with fixed initial parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return LocalModel(dtype=dtype), LocalGuide(dtype=dtype, scale=scale)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def everything(checkpoint_dir=None, before_call=None, max_epochs=6, **options):
    """A run in which all that a checkpoint holds matters."""
    pyro.set_rng_seed(3)
    model, guide = local_pair()
    if before_call is not None:
        guide.before_call = before_call
    x = data(32)
    arguments = {
        "loss": Trace_ELBO(),
        "batch_size": 5,
        "max_epochs": max_epochs,
        "validation_data": x[:8],
        "validate_every": 2,
        "patience": 100,
        "clip_norm": 1.0,
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 9, gamma=0.5),
        "scheduler_interval": "step",
        "ema_decay": 0.9,
        "checkpoint_dir": checkpoint_dir,
        "checkpoint_interval": 0.0,
        "progress": False,
    }
    return fit(model, guide, x, **{**arguments, **options})


def die(at_call):
    """Kills this process, as the system does when memory runs out."""

    def before_call(call):
        if call == at_call:
            os.kill(os.getpid(), signal.SIGKILL)

    return before_call
