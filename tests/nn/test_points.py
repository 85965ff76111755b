"""Networks of points in space: they turn, move and permute with the points."""

from __future__ import annotations

import pytest
import torch

from pyrogen.nn import EGNN, DistanceScore

NETWORKS = {"EGNN": EGNN, "DistanceScore": DistanceScore}
POINTS = 6
every_network = pytest.mark.parametrize("name", NETWORKS)


def chain():
    """Kinds of points, and which are bonded."""
    nodes = torch.nn.functional.one_hot(torch.arange(POINTS) % 3).float()
    return nodes, torch.diag(torch.ones(POINTS - 1), 1).unsqueeze(-1)


def made(name, dims=3, context_dim=0):
    network = NETWORKS[name]((POINTS, dims), *chain(), width=32, context_dim=context_dim)
    for parameter in network.parameters():  # predictions of size 1, so that 1e-5 means something
        parameter.data *= 1.5
    return network


def rotation(dims):
    turned, _ = torch.linalg.qr(torch.randn(dims, dims))
    return turned


@every_network
@pytest.mark.parametrize("dims", [2, 3])
def test_rotations_reflections_and_translations(name, dims):
    network, x, t = made(name, dims), torch.randn(50, POINTS, dims), torch.rand(50)
    before, turned = network(x, t), rotation(dims)
    assert before.std() > 0.01
    mirror = torch.ones(dims)
    mirror[0] = -1
    for move in (turned, turned * mirror):
        shift = torch.randn(50, 1, dims)
        error = network(x @ move + shift, t) - before @ move
        assert error.abs().max() <= 1e-5 * before.abs().max()
    assert before.mean(-2).abs().max() <= 1e-6 * before.abs().max()


@every_network
def test_permutations_with_the_features(name):
    network, x, t = made(name), torch.randn(50, POINTS, 3), torch.rand(50)
    order = torch.randperm(POINTS)
    permuted = made(name)
    permuted.load_state_dict(network.state_dict())
    permuted.nodes = network.nodes[order]
    permuted.pairs = network.pairs[order][:, order]
    error, size = permuted(x[:, order], t) - network(x, t)[:, order], network(x, t).abs().max()
    assert error.abs().max() <= 1e-5 * size
    assert (network(x[:, order], t) - network(x, t)[:, order]).abs().max() > 1e-3  # kinds differ


def test_the_field_on_distances_has_the_derivative_of_distances():
    """It is a combination of the gradients of all distances, and so sees nothing of rotations:
    it is orthogonal to each infinitesimal one."""
    network, x = made("DistanceScore").double(), torch.randn(9, POINTS, 3, dtype=torch.float64)
    field = network(x, torch.tensor(0.3))
    torque = torch.linalg.cross(x, field).sum(-2)
    torch.testing.assert_close(torque, torch.zeros_like(torque))


@every_network
def test_time_and_context_are_heeded(name):
    network, x = made(name, context_dim=2), torch.randn(4, POINTS, 3)
    context = torch.randn(4, 2)
    first = network(x, torch.tensor(0.1), context)
    assert not torch.allclose(first, network(x, torch.tensor(0.9), context))
    assert not torch.allclose(first, network(x, torch.tensor(0.1), 2 * context))
    torch.testing.assert_close(first[:1], network(x[:1], torch.tensor([0.1]), context[:1]))


@every_network
def test_shapes_that_do_not_fit_are_refused(name):
    make = NETWORKS[name]
    with pytest.raises(ValueError, match=r"in_shape: expected \(points, dimensions\)"):
        make((3,))
    with pytest.raises(ValueError, match=r"nodes: expected shape \[3, features\]"):
        make((3, 2), nodes=torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"pairs: expected shape \[3, 3, features\]"):
        make((3, 2), pairs=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="num_layers"):
        make((3, 2), num_layers=0)
    with pytest.raises(ValueError, match="context of size 0, got size 4"):
        make((3, 2))(torch.zeros(5, 3, 2), torch.tensor(0.1), torch.zeros(5, 4))


@every_network
def test_derivatives_keep_their_digits(name):
    """Points do not act on themselves: a quotient that only cancels would swamp the rest."""
    network, x, t = made(name), torch.randn(POINTS, 3), torch.tensor(0.3)
    single = torch.autograd.functional.jacobian(lambda x: network(x, t), x)
    network.double()
    double = torch.autograd.functional.jacobian(lambda x: network(x, t), x.double())
    assert (single - double).abs().max() < 1e-4 * double.abs().max()
