from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.errors import GraphError
from pyrogen.kernels import HMC, MALA, MCMC, RandomWalk
from tests.kernels.targets import GAUSSIAN

ENERGY = {"energy": GAUSSIAN.energy, "event_shape": (2,), "compile": False}


def sampler(num_samples=6, warmup_steps=4, kernel=None, **arguments):
    kernel = kernel or MALA(**ENERGY)
    return MCMC(
        kernel, num_samples, warmup_steps, **{"num_chains": 5, "disable_progbar": True, **arguments}
    )


def test_samples_are_grouped_by_chain_and_flattened_in_that_order():
    mcmc = sampler()
    mcmc.run()
    grouped = mcmc.get_samples(group_by_chain=True)["x"]
    assert grouped.shape == (5, 6, 2)
    assert torch.equal(mcmc.get_samples()["x"], grouped.reshape(30, 2))
    assert mcmc.get_samples(num_samples=7)["x"].shape == (7, 2)
    assert {name: value.shape for name, value in mcmc.info.items()} == dict.fromkeys(
        ("accept_prob", "diverging", "potential_energy", "energy", "num_steps", "step_size"), (5, 6)
    )


def test_info_belongs_to_its_draw():
    mcmc = sampler(20, 0)
    mcmc.run()
    drawn = mcmc.get_samples(group_by_chain=True)["x"]
    torch.testing.assert_close(mcmc.info["potential_energy"], GAUSSIAN.energy(drawn))


def test_an_extended_run_is_a_longer_run():
    drawn = []
    for first, more in ((12, None), (5, 7)):
        pyro.set_rng_seed(1)
        kernel = HMC(**ENERGY, trajectory="chees")
        mcmc = sampler(first, 30, kernel)
        mcmc.run()
        if more:
            mcmc.extend(more)
        drawn.append((mcmc.get_samples()["x"], mcmc.info["accept_prob"]))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


def test_thinning_keeps_every_third_state():
    drawn = []
    for thinning, num_samples in ((1, 12), (3, 4)):
        pyro.set_rng_seed(1)
        mcmc = sampler(num_samples, 4, thinning=thinning)
        mcmc.run()
        drawn.append(mcmc.get_samples(group_by_chain=True)["x"])
    assert torch.equal(drawn[0][:, 2::3], drawn[1])


def test_nothing_adapts_after_warm_up():
    mcmc = sampler(30, 30, HMC(**ENERGY))
    mcmc.run()
    assert len(mcmc.info["step_size"].unique()) == 1
    tuning = mcmc._batches[0].tuning
    mcmc.extend()
    assert mcmc._batches[0].tuning is tuning


def test_batches_of_chains_are_joined():
    mcmc = sampler(chain_batch_size=2)
    mcmc.run()
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (5, 6, 2)
    assert [len(chains.position) for chains in mcmc._batches] == [2, 2, 1]
    mcmc.extend(3)
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (5, 9, 2)


class Interrupting(RandomWalk):
    """Presses Ctrl-C at a given step."""

    def __init__(self, at, **arguments):
        super().__init__(**arguments)
        self.at = at

    def transition(self, run, state, tuning, iteration):
        if iteration == self.at:
            raise KeyboardInterrupt
        return super().transition(run, state, tuning, iteration)


def test_ctrl_c_keeps_the_draws_so_far():
    mcmc = sampler(6, 4, Interrupting(7, **ENERGY))
    with pytest.warns(UserWarning, match="interrupted"):
        mcmc.run()
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (5, 3, 2)
    assert mcmc.info["energy"].shape == (5, 3)


def test_ctrl_c_while_extending_forgets_no_finished_draw():
    """The first of three batches has one draw more than the others then."""
    kernel = Interrupting(4 + 6 + 1, **ENERGY)
    mcmc = sampler(6, 4, kernel, num_chains=6, chain_batch_size=2)
    mcmc.run()
    before = mcmc.get_samples(group_by_chain=True)["x"]
    with pytest.warns(UserWarning, match="interrupted"):
        mcmc.extend(3)
    assert torch.equal(mcmc.get_samples(group_by_chain=True)["x"], before)
    kernel.at = None
    mcmc.extend(3)
    after = mcmc.get_samples(group_by_chain=True)["x"]
    assert after.shape == (6, 9, 2)
    assert torch.equal(after[:, :6], before)


def test_a_run_can_be_copied_but_its_copy_not_extended():
    mcmc = sampler()
    mcmc.run()
    for twin in (copy.deepcopy(mcmc), pickle.loads(pickle.dumps(mcmc))):
        assert torch.equal(twin.get_samples()["x"], mcmc.get_samples()["x"])
        assert twin.info.keys() == mcmc.info.keys()
        with pytest.raises(ValueError, match="a copied or pickled MCMC has none"):
            twin.extend(2)
    mcmc.extend(2)


def test_chains_that_do_not_move_are_counted():
    kernel = RandomWalk(**ENERGY, step_size=1e6)
    start = {"x": torch.zeros(3, 2)}
    mcmc = sampler(50, 0, kernel, num_chains=3, initial_params=start)
    with pytest.warns(UserWarning, match="3 of 3 chains did not move in 50 draws"):
        mcmc.run()


def test_too_few_draws_for_a_summary():
    mcmc = sampler(3)
    mcmc.run()
    for show in (mcmc.summary, mcmc.diagnostics):
        with pytest.raises(ValueError, match=r"at least 4 draws of each chain, got 3.*nested_rhat"):
            show()


def test_ctrl_c_in_warm_up_is_raised():
    mcmc = sampler(6, 4, Interrupting(2, **ENERGY))
    with pytest.raises(KeyboardInterrupt):
        mcmc.run()
    with pytest.raises(ValueError, match="expected a finished run"):
        mcmc.get_samples()


def test_summary_and_diagnostics(capsys):
    mcmc = sampler(20, 20)
    mcmc.run()
    mcmc.summary()
    assert "n_eff" in (printed := capsys.readouterr().out)
    assert "Number of divergences: 0" in printed
    diagnostics = mcmc.diagnostics()
    assert diagnostics["x"]["r_hat"].shape == (2,)
    assert diagnostics["divergences"]["chain 4"] == []
    rate = float(mcmc.info["accept_prob"][4].mean())
    assert diagnostics["acceptance rate"]["chain 4"] == pytest.approx(rate)


def test_the_progress_bar_shows_how_it_goes(capsys, monkeypatch):
    monkeypatch.setattr("pyrogen.kernels._progress._SECONDS", 0.0)
    mcmc = sampler(disable_progbar=False)
    mcmc.run()
    shown = capsys.readouterr().err
    assert all(
        word in shown for word in ("Warmup", "Sample", "accept=", "step size=", "diverging=")
    )
    assert "10/10" in shown


def test_the_result_goes_to_arviz():
    from pyrogen.diagnostics import from_mcmc

    def model(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    mcmc = sampler(4, 4, MALA(model, compile=False))
    mcmc.run(torch.tensor([1.0, 2.0]))
    result = from_mcmc(mcmc)
    assert dict(result.posterior["mean"].sizes) == {"chain": 5, "draw": 4}
    assert dict(result.log_likelihood["x"].sizes) == {"chain": 5, "draw": 4, "data": 2}


@pytest.mark.parametrize(
    "argument", ["num_samples", "num_chains", "thinning", "chain_batch_size", "warmup_steps"]
)
@pytest.mark.parametrize("value", [-1, 1.5])
def test_numbers_out_of_range(argument, value):
    arguments = {"num_samples": 1, "warmup_steps": 0, argument: value}
    with pytest.raises(ValueError, match=f"{argument}: expected a whole number of at least"):
        sampler(**arguments)


def test_no_chains_is_an_error():
    with pytest.raises(ValueError, match="num_chains: expected a whole number of at least 1"):
        sampler(num_chains=0)


def test_kernels_of_pyro_are_refused():
    with pytest.raises(TypeError, match=r"expected a kernel of .*, got HMC"):
        MCMC(pyro.infer.HMC(lambda: None), 1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"x": torch.zeros(4, 2)}, "leading dimension of 5 chains"),
        ({"x": torch.zeros(5, 3)}, r"expected .*'x': \[5, 2\].*got .*'x': \[5, 3\]"),
        ({"y": torch.zeros(5, 2)}, r"expected .*'x': \[5, 2\].*got .*'y': \[5, 2\]"),
        ({"x": torch.tensor(0.0)}, "leading dimension of 5 chains"),
    ],
)
def test_wrong_initial_params(params, message):
    with pytest.raises(ValueError, match=message):
        sampler(initial_params=params).run()


def structure_depends_on_values():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = 1.0 if x > 0 else 2.0
    pyro.sample("y", dist.Normal(0.0, scale))


def test_structure_that_depends_on_values():
    with pytest.raises(GraphError, match=r"site 'x'.*compile=False"):
        sampler(kernel=HMC(structure_depends_on_values)).run()


def test_uncompiled_structure_that_depends_on_values_runs_chain_by_chain():
    kernel = MALA(structure_depends_on_values, compile=False, step_size=0.8)
    mcmc = sampler(150, 50, kernel, num_chains=8)
    with pytest.warns(UserWarning, match="runs without a graph"):
        mcmc.run()
    drawn = mcmc.get_samples()
    right, left = drawn["y"][drawn["x"] > 0], drawn["y"][drawn["x"] <= 0]
    assert 0.5 < right.std() < 1.5 < left.std() < 3


def test_a_support_that_moves_is_refused():
    def model():
        x = pyro.sample("x", dist.Exponential(1.0))
        pyro.sample("y", dist.Uniform(0.0, x))

    with pytest.raises(ValueError, match="'y': expected a support that is fixed"):
        sampler(kernel=MALA(model, compile=False)).run()


def test_an_unsupported_site_is_refused_by_name():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("count", dist.Poisson(3.0))

    with pytest.raises(ValueError, match=r"'count': expected a continuous.*got Poisson"):
        sampler(kernel=MALA(model, compile=False)).run()


def test_the_site_of_a_non_finite_energy_is_named():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("bad", torch.tensor(torch.nan))

    with pytest.raises(ValueError, match=r"not finite at sites \['bad'\]"):
        sampler(kernel=MALA(model, compile=False)).run()


def test_an_energy_of_the_wrong_shape():
    kernel = MALA(energy=lambda x: x.square().sum(), event_shape=(2,), compile=False)
    with pytest.raises(ValueError, match=r"energy: expected one number per chain, shape \[5\]"):
        sampler(kernel=kernel).run()


def test_one_of_model_potential_and_energy():
    with pytest.raises(ValueError, match="one of model, potential_fn and energy, got 2"):
        MALA(lambda: None, energy=GAUSSIAN.energy, event_shape=(2,))
    with pytest.raises(ValueError, match="MALA: expected something to sample"):
        sampler(kernel=MALA(compile=False))
    with pytest.raises(ValueError, match="energy and event_shape together"):
        MALA(energy=GAUSSIAN.energy)
    with pytest.raises(ValueError, match="expected initial_params with potential_fn"):
        sampler(kernel=MALA(potential_fn=lambda x: x["a"], compile=False)).run()


def test_a_potential_of_named_tensors():
    def potential(values):
        assert values["a"].shape == (2,)
        return 0.5 * values["a"].square().sum() + 0.5 * (values["b"] - 3).square() / 4

    start = {"a": torch.zeros(200, 2).double(), "b": torch.zeros(200).double()}
    kernel = HMC(potential_fn=potential, compile=False)
    mcmc = sampler(30, 40, kernel, num_chains=200, initial_params=start)
    mcmc.run()
    drawn = mcmc.get_samples()
    assert drawn["a"].dtype == torch.float64
    assert abs(drawn["b"].mean() - 3) < 0.2
    assert abs(drawn["b"].std() - 2) < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size: expected a finite number above 0"),
        ({"num_steps": 0}, "num_steps: expected a whole number of at least 1"),
        ({"trajectory": "long"}, "trajectory: expected one of"),
        ({"jitter": 1.0}, "jitter: expected a number in"),
        ({"mass_matrix": "full"}, "mass_matrix: expected one of"),
        ({"target_accept_prob": 1.0}, "target_accept_prob: expected a number between 0 and 1"),
    ],
)
def test_options_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        HMC(**ENERGY, **arguments)


def test_minibatches_are_refused_by_a_kernel_that_accepts():
    def model(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=2, dim=-1) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data[index])

    with pytest.raises(ValueError, match=r"MALA accepts by the exact density.*'data'"):
        sampler(kernel=MALA(model, compile=False)).run(torch.zeros(10))
