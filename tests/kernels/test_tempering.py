from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.kernels import HMC, MALA, MCMC, NUTS, SGLD, ParallelTempering
from pyrogen.kernels.tempering import _sources
from tests.kernels.minibatch import assert_variance_close
from tests.statistics import assert_mean_close

CENTRE, WEIGHT = 5.0, 0.3
LADDER = (1.0, 2.0, 4.0, 8.0, 16.0)


def mixture(x):
    """Standard normals in the plane, of weight 0.3 at (5, 5) and 0.7 at (-5, -5)."""
    right = math.log(WEIGHT) - 0.5 * (x - CENTRE).square().sum(-1)
    left = math.log(1 - WEIGHT) - 0.5 * (x + CENTRE).square().sum(-1)
    return -torch.logaddexp(right, left)


def inner(**options):
    return HMC(energy=mixture, event_shape=(2,), num_steps=5, compile=False, **options)


def run(kernel, num_samples, warmup_steps, num_chains, start):
    mcmc = MCMC(
        kernel,
        num_samples,
        warmup_steps,
        num_chains=num_chains,
        initial_params={"x": start},
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc


def exact_draws(num_chains):
    right = torch.rand(num_chains, 1) < WEIGHT
    return torch.where(right, CENTRE, -CENTRE) + torch.randn(num_chains, 2)


INNER = {
    "HMC": inner(),
    "HMC chees": inner(trajectory="chees"),
    "MALA": MALA(energy=mixture, event_shape=(2,), compile=False),
    "NUTS": NUTS(energy=mixture, event_shape=(2,), max_tree_depth=3, compile=False),
}


def test_plain_hmc_stays_in_one_mode():
    kernel = inner(step_size=0.5, adapt_step_size=False, mass_matrix=None)
    plain = run(kernel, 200, 0, 200, torch.full((200, 2), -CENTRE))
    assert (plain.get_samples()["x"] < 0).all()


@pytest.mark.parametrize("name", INNER)
def test_weights_of_a_mixture_from_a_start_in_one_mode(name):
    num_chains = 60 if name == "NUTS" else 200
    start = torch.full((num_chains, 2), -CENTRE)
    mcmc = run(ParallelTempering(INNER[name], LADDER), 400, 200, num_chains, start)
    right = (mcmc.get_samples(group_by_chain=True)["x"][..., 0] > 0).double().mean(1)
    assert_mean_close(right, WEIGHT)
    # the chains themselves move between the modes: independent draws would give .3 * .7 / 400
    assert right.std() < 0.5 * (WEIGHT * (1 - WEIGHT)) ** 0.5


def test_a_step_leaves_every_replica_its_own_law():
    """From exact draws at two temperatures of a Gaussian, steps and swaps keep both laws."""

    def energy(x):
        return 0.5 * (x - 3).square().sum(-1)

    gaussian = HMC(energy=energy, event_shape=(1,), num_steps=3, step_size=0.5, compile=False)
    kernel = ParallelTempering(gaussian, [1.0, 4.0])
    chains = kernel.start(20000, 0, initial_params={"x": 3 + torch.randn(20000, 1)})
    state = chains.state
    cold, hot = state.position, 3 + 2 * torch.randn(20000, 1)
    rows = torch.cat([cold, hot / 2])  # in the coordinates sqrt(beta) x
    energies = torch.cat([energy(cold), energy(hot) / 4])
    gradient = torch.cat([cold - 3, (hot - 3) / 2])
    chains.state = state._replace(replicas=type(state.replicas)(rows, energies, gradient))
    swaps = []
    for _ in range(4):
        swaps.append(chains.advance().swap_accept_prob)
    replicas = chains.state.replicas
    x = replicas.position.view(2, 20000) * torch.tensor([[1.0], [2.0]])
    assert_mean_close(x.T, torch.tensor([3.0, 3.0]))
    assert_variance_close(x[0], 1.0)
    assert_variance_close(x[1], 4.0)
    # what is carried over in a swap is what the kernel would compute
    u = energy(x.reshape(-1, 1))
    beta = torch.tensor([1.0, 0.25]).repeat_interleave(20000)
    assert torch.allclose(replicas.potential_energy, beta * u, atol=1e-4)
    assert torch.allclose(replicas.gradient[:, 0], beta.sqrt() * (x.flatten() - 3), atol=1e-4)
    # E min(1, e^{(1 - 1/4)(U1 - U2)}) for U1 ~ chi2/2, U2 ~ 4 chi2/2; both chi2 with one degree
    chi = torch.randn(2, 10**6).square() / 2
    expected = float(torch.exp((0.75 * (chi[0] - 4 * chi[1])).clamp(max=0)).mean())
    assert_mean_close(torch.stack(swaps).mean(0)[:, 0], expected, 1e-6)


def test_even_and_odd_pairs_take_turns():
    flat = HMC(energy=lambda x: 0 * x.sum(-1), event_shape=(1,), step_size=1e-6, compile=False)
    kernel = ParallelTempering(flat, [1.0, 2.0, 4.0, 8.0])
    chains = kernel.start(1, 0, initial_params={"x": torch.ones(1, 1)})
    state = chains.state
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    rows = state.replicas._replace(position=x * state.beta.sqrt().unsqueeze(-1))
    chains.state = state._replace(replicas=rows, position=x[:1])
    orders = []
    for _ in range(4):  # all swaps are accepted
        info = chains.advance()
        assert (info.swap_accept_prob == 1).all()
        place = chains.state.replicas.position / chains.state.beta.sqrt().unsqueeze(-1)
        orders.append(place.flatten().round().int().tolist())
        assert chains.position.round().int().tolist() == [orders[-1][:1]]
    assert orders == [[2, 1, 4, 3], [2, 4, 1, 3], [4, 2, 3, 1], [4, 3, 2, 1]]


def test_sources_of_a_swap():
    swapped = torch.tensor([[True, False], [False, False], [True, True]])
    expected = [[2, 1], [0, 3], [6, 7], [4, 5]]
    assert _sources(swapped).tolist() == expected


def test_compiled_and_constrained():
    """A Gamma posterior through its bijection, tempered; the cold chain is the posterior."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    x = torch.tensor([0.5, 1.0, 2.5])
    kernel = ParallelTempering(HMC(model, num_steps=4), [1.0, 2.0])
    mcmc = MCMC(kernel, 60, 100, num_chains=500, disable_progbar=True)
    mcmc.run(x)
    rate = mcmc.get_samples(group_by_chain=True)["rate"]
    assert_mean_close(rate.mean(1), 5 / 5)  # Gamma(2 + 3, 1 + 4)
    assert_mean_close(rate.square().mean(1), 5 * 6 / 25)
    assert mcmc.info["swap_accept_prob"].shape == (500, 60, 1)


def test_under_pyros_driver():
    kernel = ParallelTempering(inner(), [1.0, 4.0])
    mcmc = pyro.infer.MCMC(
        kernel, 20, 200, initial_params={"x": torch.zeros(2)}, disable_progbar=True
    )
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (20, 2)
    assert mcmc.diagnostics()["acceptance rate"]["chain 0"] > 0.3


@pytest.mark.parametrize("ladder", [(1.0,), (2.0, 4.0), (1.0, 3.0, 2.0), (1.0, math.inf), ()])
def test_temperatures_out_of_order(ladder):
    with pytest.raises(ValueError, match="temperatures: expected two or more rising numbers"):
        ParallelTempering(inner(), ladder)


def test_inner_kernels_that_cannot_be_tempered():
    with pytest.raises(ValueError, match="expected a kernel of exact energies, got SGLD"):
        ParallelTempering(SGLD(energy=mixture, event_shape=(2,)))
    with pytest.raises(TypeError, match=r"expected a kernel of pyrogen\.kernels, got NUTS"):
        ParallelTempering(pyro.infer.NUTS(mixture))
