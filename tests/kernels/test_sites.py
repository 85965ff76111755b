"""Models that cannot be sampled are refused by the name of what stands in the way."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.kernels import MALA, MCMC, SGLD


def run(model, *args, make=MALA, **arguments):
    kernel = make(model, compile=False, step_size=0.01)
    settings = {"num_chains": 4, "disable_progbar": True, **arguments}
    mcmc = MCMC(kernel, 5, 5, **settings)
    mcmc.run(*args)
    return mcmc


def test_a_discrete_site_beside_a_minibatch():
    def model():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 10, subsample_size=2, dim=-1):
            which = pyro.sample("which", dist.Bernoulli(0.5)).long()
            pyro.sample("x", dist.Normal(mean[which], 1.0), obs=torch.zeros(2))

    with pytest.raises(ValueError, match=r"\['which'\]: expected no discrete sites.*\['data'\]"):
        run(model, make=SGLD)


def test_a_latent_site_of_a_minibatch():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=2, dim=-1):
            pyro.sample("local", dist.Normal(mean, 1.0))

    with pytest.raises(ValueError, match=r"'local': expected latent sites outside.*\['data'\]"):
        run(model, make=SGLD)


def test_a_discrete_site_that_is_to_be_enumerated_in_sequence():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "sequential"})

    with pytest.raises(ValueError, match=r"'z': expected infer=.*'sequential'"):
        run(model)


def test_sites_that_come_and_go():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 0:
            pyro.sample("y", dist.Normal(0.0, 1.0))

    with (
        pytest.warns(UserWarning, match="without a graph"),
        pytest.raises(ValueError, match=r"same latent sites at every run, got one with(out)? .*y"),
    ):
        run(model)


def test_a_density_with_noise_of_its_own():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + torch.randn(()), 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="density without random numbers of its own"):
        run(model)


def test_discrete_sites_that_are_summed_out_are_named():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(x + z, 1.0), obs=torch.tensor(0.0))

    with pytest.warns(UserWarning, match=r"\['z'\] are summed out"):
        assert run(model).get_samples().keys() == {"x"}


def test_data_of_a_wider_type_than_the_priors():
    """Double data under single priors make a double energy of single positions."""

    def model(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    data = torch.zeros(3, dtype=torch.float64)
    assert run(model, data).get_samples()["mean"].dtype == torch.float32


def test_priors_of_two_types_take_the_wider():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))

    drawn = run(model).get_samples()
    assert {value.dtype for value in drawn.values()} == {torch.float64}


@pytest.mark.parametrize(("value", "got"), [(torch.zeros(1), r"\[1\]"), (1.0, "float")])
def test_a_potential_that_is_no_number(value, got):
    kernel = MALA(potential_fn=lambda params: value, compile=False)
    mcmc = MCMC(kernel, 2, 2, initial_params={"x": torch.zeros(1)}, disable_progbar=True)
    with pytest.raises(ValueError, match=f"expected a tensor of shape .*got {got}"):
        mcmc.run()
