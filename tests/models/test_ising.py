"""Lattice models against closed forms."""

from __future__ import annotations

import pytest
import torch

from pyrogen.guides import Empty
from pyrogen.kernels import Gibbs
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.models import Ising, Potts

LOG_Z = {
    (4, 0.4406868): 15.521915,
    (6, 0.4406868): 34.111541,
    (8, 0.4406868): 60.141781,
    (4, 0.2): 11.771470,
    (6, 0.2): 26.444949,
    (8, 0.2): 47.010147,
}


@pytest.mark.parametrize(("size", "coupling"), LOG_Z)
def test_log_z_is_what_is_known(size, coupling):
    model = Ising((size, size), coupling).double()
    assert abs(float(model.exact_log_z()) - LOG_Z[size, coupling]) < 1e-6


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("coupling", [0.0, 0.1, 0.4406868, 0.9])
def test_log_z_by_enumeration(shape, coupling):
    model = Ising(shape, coupling).double()
    enumerated = model.distribution().exact_log_z().detach()
    torch.testing.assert_close(model.exact_log_z(), enumerated, rtol=1e-12, atol=0)


def test_where_there_is_no_closed_form():
    for model in (
        Ising((3, 3), periodic=False),
        Ising((3, 3), field=0.1),
        Ising((3, 3), coupling=-0.1),
        Ising((3, 3, 3)),
    ):
        with pytest.raises(ValueError, match=r"diagnostics\.ais"):
            model.exact_log_z()


def test_potts_of_two_states_is_ising():
    potts, ising = Potts((3, 4), 2, coupling=0.7).double(), Ising((3, 4), coupling=0.35).double()
    states = torch.randint(2, (5, 12))
    difference = potts.distribution().unnormalized_log_prob(
        states
    ) - ising.distribution().unnormalized_log_prob(2.0 * states.double() - 1)
    torch.testing.assert_close(difference, torch.full((5,), 24 * 0.35, dtype=torch.float64))


def test_coupling_and_field_are_learned_from_configurations():
    """The inverse problem: the estimate is within 5 standard errors, by the Fisher information."""
    truth = Ising((4, 4), coupling=0.3, field=0.1).double()
    data = truth.distribution().exact_sample((5000,)).detach()
    model = Ising((4, 4), coupling=0.0).double()
    loss = Compiled(ContrastiveDivergence(Gibbs(), persistent=True, num_chains=2000), compile=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 / len(data))
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    guide = Empty()
    for _ in range(300):
        optimizer.zero_grad()
        loss.loss_and_grads(model, guide, data)
        optimizer.step()
        decay.step()
    bonds = truth.distribution().graph.edges
    statistics = torch.stack(
        [(data[:, bonds[:, 0]] * data[:, bonds[:, 1]]).sum(-1), data.sum(-1)], -1
    )
    error = torch.linalg.inv(torch.cov(statistics.T) * len(data)).diagonal().sqrt()
    found = torch.stack([model.coupling, model.field]).detach()
    wanted = torch.tensor([0.3, 0.1], dtype=torch.float64)
    # the stochastic optimum has about the error of the data once more
    assert ((found - wanted).abs() < 5 * 2**0.5 * error).all()
