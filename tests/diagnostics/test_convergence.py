from __future__ import annotations

import pytest
import torch

from pyrogen.diagnostics import nested_rhat
from pyrogen.kernels import HMC, MCMC


def by_loops(x, num_superchains):
    """Equations of Margossian et al., written out for ``x [chains, draws]``."""
    groups = x.chunk(num_superchains)
    means = torch.stack([group.mean() for group in groups])
    between = ((means - means.mean()) ** 2).sum() / (num_superchains - 1)
    within = 0.0
    for group in groups:
        num_chains, num_draws = group.shape
        own = torch.stack([chain.mean() for chain in group])
        if num_chains > 1:
            within += ((own - own.mean()) ** 2).sum() / (num_chains - 1)
        if num_draws > 1:
            per_chain = [((c - c.mean()) ** 2).sum() / (num_draws - 1) for c in group]
            within += sum(per_chain) / num_chains
    return ((between + within / num_superchains) / (within / num_superchains)) ** 0.5


@pytest.mark.parametrize(("chains", "draws"), [(12, 5), (12, 1), (4, 5)])
def test_equations(chains, draws):
    x = torch.randn(chains, draws, 2, dtype=torch.float64)
    got = nested_rhat({"x": x}, 4)["x"]
    expected = torch.stack([by_loops(x[..., i], 4) for i in range(2)])
    assert torch.allclose(got, expected, rtol=1e-12)


def test_one_chain_each_is_the_usual_rhat():
    """With M = 1 it is sqrt((B/N + W) / W), which Gelman and Rubin write (N - 1)/N W + B/N."""
    x = torch.randn(6, 100, dtype=torch.float64)
    within, between = x.var(1).mean(), x.mean(1).var()
    assert nested_rhat({"x": x}, 6)["x"] == pytest.approx(float((1 + between / within).sqrt()))


def test_chains_that_have_not_forgotten_their_start():
    def energy(x):
        return 0.5 * x.square().sum(-1)

    start = (4 * torch.randn(16, 1)).repeat_interleave(64, 0)
    kernel = HMC(energy=energy, event_shape=(1,), step_size=0.1, num_steps=3, compile=False)
    rhat = []
    for burn_in in (0, 200):
        mcmc = MCMC(kernel, 5, 0, num_chains=1024, initial_params={"x": start}, thinning=1)
        mcmc.disable_progbar = True
        mcmc.run()
        if burn_in:
            mcmc.extend(burn_in)
        last = mcmc.get_samples(group_by_chain=True)["x"][:, -5:]
        rhat.append(float(nested_rhat({"x": last}, 16)["x"]))
    assert rhat[0] > 3
    # B / W is about 1 / (64 chains), times a chi-square of 15 degrees over 15
    assert 1 < rhat[1] < (1 + 3.5 / 64) ** 0.5


def test_takes_a_run():
    kernel = HMC(energy=lambda x: x.square().sum(-1), event_shape=(2,), compile=False)
    mcmc = MCMC(kernel, 5, 5, num_chains=8, disable_progbar=True)
    mcmc.run()
    expected = nested_rhat(mcmc.get_samples(group_by_chain=True), 4)["x"]
    assert torch.equal(nested_rhat(mcmc, 4)["x"], expected)


@pytest.mark.parametrize(("shape", "num_superchains"), [((8, 5), 1), ((8, 5), 3), ((8, 1), 8)])
def test_chains_that_cannot_be_divided(shape, num_superchains):
    with pytest.raises(ValueError, match="num_superchains: expected at least 2"):
        nested_rhat({"x": torch.randn(shape)}, num_superchains)
