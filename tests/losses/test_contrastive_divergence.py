"""Contrastive divergence: its gradient, its chains, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrogen import diagnostics, guides, kernels, models, training
from pyrogen.distributions import EnergyBased, unnormalized
from pyrogen.errors import NonFiniteError
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.modes import up_to_a_constant

BASE = dist.Normal(0.0, 1.0).expand([1]).to_event(1)


class Precision(nn.Module):
    """Adds to the precision of the base."""

    def __init__(self, precision: float = 1.0) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(precision))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.precision * x.square().sum(-1)


class Slope(nn.Module):
    """Moves the mean of the base to ``weight * context``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return -self.weight * (context * x).sum(-1)


def captured(elbo: Any) -> Compiled:
    """As a graph that runs operation by operation: the same numbers, without a compiler's time."""
    return Compiled(elbo, compile=False)


class Exact:
    """Draws of ``Precision``."""

    def __init__(self, energy: Precision) -> None:
        self.energy = energy

    def __call__(self, count: int) -> Tensor:
        return torch.randn(count, 1) / (1 + self.energy.precision.detach()).sqrt()


def gradient_of(
    loss: ContrastiveDivergence, model: Any, guide: Any, parameter: Tensor, *args: Any
) -> float:
    parameter.grad = None
    loss.loss_and_grads(model, guide, *args)
    assert parameter.grad is not None
    return float(parameter.grad)


def assert_mean(values: list[float], expected: float) -> None:
    """Within 5 Monte Carlo standard errors, which are small enough to tell."""
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std()) / len(values) ** 0.5
    assert abs(float(found.mean()) - expected) < 5 * error
    assert error < 0.1 * abs(expected)


def test_gradient_is_unbiased_with_exact_negatives() -> None:
    model = models.EnergyModel(Precision(), BASE)
    data = torch.randn(20, 1)
    loss = ContrastiveDivergence(kernels.MALA(), 0, sampler=Exact(model.energy), num_chains=50)
    gradients = [
        gradient_of(loss, model, guides.Empty(), model.energy.precision, data) for _ in range(400)
    ]
    # log p = log N(x; 0, 1 / (1 + a)); its derivative in a
    exact = -float((0.5 / 2.0 - 0.5 * data.square()).sum())
    assert_mean(gradients, exact)


def test_chains_that_leave_the_law_unchanged_leave_the_gradient_unbiased() -> None:
    model = models.EnergyModel(Precision(), BASE)
    data = torch.randn(20, 1)
    sampler = Exact(model.energy)
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.8), 3, sampler=sampler, num_chains=50)
    gradients = [
        gradient_of(loss, model, guides.Empty(), model.energy.precision, data) for _ in range(300)
    ]
    exact = -float((0.5 / 2.0 - 0.5 * data.square()).sum())
    assert_mean(gradients, exact)


def test_plates_scales_and_masks_weight_the_contrast() -> None:
    """A minibatch of 4 of 20 with half of it masked counts as 10."""
    energy = Precision()
    data = torch.randn(4, 1)

    def model() -> None:
        pyro.module("energy", energy)
        with (
            pyro.plate("data", 20, subsample=torch.arange(4), dim=-1),
            pyro.poutine.mask(mask=torch.tensor([True, False, True, False])),
        ):
            pyro.sample("x", EnergyBased(energy, BASE), obs=data)

    loss = ContrastiveDivergence(kernels.MALA(), 0, sampler=Exact(energy), num_chains=100)
    gradients = [gradient_of(loss, model, lambda: None, energy.precision) for _ in range(400)]
    exact = -5 * float((0.5 / 2.0 - 0.5 * data[::2].square()).sum())
    assert_mean(gradients, exact)


@pytest.mark.parametrize("wrap", [lambda elbo: elbo, captured], ids=["eager", "captured"])
def test_energies_with_a_context(wrap: Callable[[Any], Any]) -> None:
    """``N(w c, 1)`` by chains that start at the data."""
    energy = Slope()
    context = torch.randn(400, 1)
    data = 2.0 * context + torch.randn(400, 1)

    def model(context: Tensor, data: Tensor) -> None:
        pyro.module("energy", energy)
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", EnergyBased(energy, BASE, context), obs=data)

    loss = wrap(ContrastiveDivergence(kernels.MALA(step_size=0.8), num_steps=4))
    svi = SVI(model, lambda *args: None, pyro.optim.Adam({"lr": 0.05}), loss=loss)
    weights = []
    for _ in range(250):
        svi.step(context, data)
        weights.append(float(energy.weight.detach()))
    estimate = float((context * data).sum() / context.square().sum())
    # maximum likelihood is the least-squares slope; what is left is the noise of the chains
    assert abs(sum(weights[150:]) / 100 - estimate) < 0.05
    assert abs(estimate - 2.0) < 0.25


def measured(energy: Precision) -> Callable[[Tensor], None]:
    """A latent energy, measured with unit noise."""

    def model(x: Tensor) -> None:
        pyro.module("energy", energy)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", EnergyBased(energy, BASE))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return model


def test_a_latent_energy_is_trained_with_the_guide() -> None:
    """Prior ``N(0, 1/(1+a))``, ``x ~ N(z, 1)``, the guide at a fixed law: the gradient of the ELBO
    in ``a``, for which the expectation under the guide is known."""
    energy = Precision()
    data = torch.randn(10, 1)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 3, 0.5).to_event(1))

    sampler = Exact(energy)
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True)):
        loss = ContrastiveDivergence(kernels.MALA(), 0, sampler=sampler, num_chains=50, elbo=elbo)
        gradients = [
            gradient_of(loss, measured(energy), guide, energy.precision, data) for _ in range(300)
        ]
        second_moments = (data / 3).square() + 0.25
        assert_mean(gradients, -float((0.5 / 2.0 - 0.5 * second_moments).sum()))


def test_graphs_of_dependencies_lead_through_a_latent_energy() -> None:
    """Where all draws are pathwise, the gradient of ``TraceGraph_ELBO`` is that of ``Trace_ELBO``,
    though its tensors remember which sites they came from."""
    energy, data = Precision(), torch.randn(10, 1)
    slope = torch.nn.Parameter(torch.tensor(0.3))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(slope * x, 0.5).to_event(1))

    gradients = []
    for elbo in (Trace_ELBO(), TraceGraph_ELBO()):
        pyro.set_rng_seed(0)
        loss = ContrastiveDivergence(kernels.MALA(), 0, sampler=Exact(energy), elbo=elbo)
        loss = Compiled(loss, compile=False)
        gradients.append(gradient_of(loss, measured(energy), guide, slope, data))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "cd": {"num_steps": 2},
    "long": {"num_steps": 23},
    "persistent": {"num_steps": 1, "persistent": True, "num_chains": 30},
    "buffer": {"num_steps": 2, "buffer_size": 64, "num_chains": 16, "restart_prob": 0.2},
    "penalty": {"num_steps": 2, "persistent": True, "energy_penalty": 0.1},
}


def assert_equals_eager(options: dict[str, Any], other: Callable[[Any], Any]) -> None:
    """Losses, parameters and chains over some steps."""
    data = torch.randn(40, 1)
    runs = []
    for wrap in (lambda elbo: elbo, other):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model = models.EnergyModel(
            Precision().double(), dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1)
        )
        loss = ContrastiveDivergence(kernels.Langevin(step_size=0.1), **options)
        svi = SVI(model, guides.Empty(), pyro.optim.Adam({"lr": 0.05}), loss=wrap(loss))
        losses = [svi.step(data.double()) for _ in range(4)]
        losses.append(svi.evaluate_loss(data.double()))
        runs.append((losses, model.energy.precision.detach(), loss.carried))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_captured_equals_eager(options: dict[str, Any]) -> None:
    assert_equals_eager(options, captured)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_compiled_equals_eager(options: dict[str, Any]) -> None:
    assert_equals_eager(options, Compiled)


def test_persistent_chains_go_on_and_evaluation_leaves_them() -> None:
    model = models.EnergyModel(Precision(), BASE)
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.5), persistent=True, num_chains=7)
    data = torch.randn(5, 1)
    loss.loss_and_grads(model, guides.Empty(), data)
    first = loss.carried["x"]
    loss.loss(model, guides.Empty(), data)
    assert loss.carried["x"] is first
    assert first.shape == (7, 1)
    loss.loss_and_grads(model, guides.Empty(), torch.randn(9, 1))  # another batch size
    assert loss.carried["x"].shape == (7, 1)
    assert not torch.equal(loss.carried["x"], first)


def test_chains_are_in_the_checkpoint(tmp_path: Any) -> None:
    """A run in two parts ends where a run in one part ends, bit for bit."""

    def run(epochs: int, **options: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        model = models.EnergyModel(Precision(), BASE)
        loss = ContrastiveDivergence(kernels.MALA(step_size=0.5), persistent=True)
        training.fit(
            model,
            guides.Empty(),
            DATA,
            loss=loss,
            max_epochs=epochs,
            batch_size=16,
            progress=False,
            **options,
        )
        return model.energy.precision.detach(), loss.carried["x"]

    whole = run(4)
    run(2, checkpoint_dir=tmp_path)
    assert all(map(torch.equal, run(4, checkpoint_dir=tmp_path), whole))


DATA = torch.linspace(-1, 1, 32).unsqueeze(-1)


class Cliff(nn.Module):
    """Not finite beyond 2."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() < 2, self.height * x.square(), torch.nan).sum(-1)


@pytest.mark.parametrize("wrap", [lambda elbo: elbo, captured], ids=["eager", "captured"])
def test_chains_that_diverge_are_counted_and_start_anew(wrap: Callable[[Any], Any]) -> None:
    model = models.EnergyModel(Cliff(), BASE)
    loss = ContrastiveDivergence(
        kernels.Langevin(step_size=0.3), num_steps=3, persistent=True, num_chains=64
    )
    with pytest.warns(RuntimeWarning, match="chains diverged and start anew"):
        wrap(loss).loss_and_grads(model, guides.Empty(), DATA)
    assert 0 < loss.num_restarts <= 64
    assert bool(loss.carried["x"].isfinite().all())


@pytest.mark.parametrize("wrap", [lambda elbo: elbo, captured], ids=["eager", "captured"])
def test_an_energy_that_is_not_finite_raises(wrap: Callable[[Any], Any]) -> None:
    model = models.EnergyModel(Cliff(), BASE)
    loss = wrap(ContrastiveDivergence(kernels.Langevin(step_size=1e-4)))
    loss.loss_and_grads(model, guides.Empty(), DATA)
    data = torch.cat([DATA[1:], torch.tensor([[3.0]])])
    warnings.simplefilter("ignore")  # Pyro's, and that the chain at this datum diverged
    with pytest.raises(NonFiniteError, match=r"step 1: .* site 'x'") as caught:
        loss.loss_and_grads(model, guides.Empty(), data)
    assert (caught.value.site, caught.value.step) == ("x", 1)


def test_the_objective_can_be_copied_and_pickled() -> None:
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.5), persistent=True)
    model = models.EnergyModel(Precision(), BASE)
    loss.loss_and_grads(model, guides.Empty(), DATA)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin.carried["x"], loss.carried["x"])


def test_nothing_takes_an_energy_for_a_normalised_density() -> None:
    model, guide = models.EnergyModel(Precision(), BASE), guides.Empty()

    def latent(*args: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    def energy_guide() -> None:
        sampler = kernels.ShortRun(kernels.MALA(step_size=0.5), 2)
        pyro.sample("z", EnergyBased(Precision(), BASE, sampler=sampler))

    for elbo in (Trace_ELBO(), TraceMeanField_ELBO(), Compiled(Trace_ELBO(), compile=False)):
        with pytest.raises(ValueError, match=r"(?s)site 'x'.*a normalised density"):
            elbo.loss(model, guide, DATA)
        with pytest.raises(ValueError, match=r"(?s)site 'z'.*a normalised density"):
            elbo.loss(latent, energy_guide)

    def with_latent(x: Tensor) -> None:
        latent()
        pyro.sample("x", EnergyBased(Precision(), BASE), obs=x)

    with pytest.raises(ValueError, match="a normalised density"):
        diagnostics.from_svi(with_latent, latent, DATA[:1], num_samples=2)


PRECISION = Precision(3.0)


def posterior(x: Tensor) -> None:
    z = pyro.sample("z", EnergyBased(PRECISION, BASE))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_an_energy_is_an_ordinary_latent_of_kernels() -> None:
    """Prior ``N(0, 1/4)`` and one datum of unit noise: posterior ``N(x/5, 1/5)``."""
    mcmc = kernels.MCMC(
        kernels.HMC(posterior, num_steps=4), 200, 100, num_chains=50, disable_progbar=True
    )
    mcmc.run(torch.tensor([2.0]))
    draws = mcmc.get_samples()["z"]
    assert abs(float(draws.mean()) - 0.4) < 0.03
    assert abs(float(draws.var()) - 0.2) < 0.02


def test_an_energy_is_an_ordinary_latent_of_pyros_kernels() -> None:
    mcmc = pyro.infer.MCMC(pyro.infer.NUTS(unnormalized(posterior)), 300, 100, disable_progbar=True)
    mcmc.run(torch.tensor([2.0]))
    assert abs(float(mcmc.get_samples()["z"].mean()) - 0.4) < 0.2


def test_an_energy_that_depends_on_latent_sites_is_refused() -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", EnergyBased(lambda x: scale * x.square().sum(-1), BASE), obs=torch.ones(1))

    mcmc = kernels.MCMC(kernels.HMC(model), 5, 5, disable_progbar=True)
    with pytest.raises(ValueError, match="site 'x': expected an energy that is fixed"):
        mcmc.run()


def test_bad_input() -> None:
    kernel = kernels.MALA(step_size=0.5)
    with pytest.raises(
        ValueError, match=r"one place for chains to start from, got .'persistent', "
    ):
        ContrastiveDivergence(kernel, persistent=True, buffer_size=10)
    with pytest.raises(ValueError, match="expected persistent=True or a buffer_size"):
        ContrastiveDivergence(kernel, num_chains=10)
    with pytest.raises(ValueError, match="at least num_chains = 10, got 5"):
        ContrastiveDivergence(kernel, num_chains=10, buffer_size=5)
    with pytest.raises(ValueError, match="num_steps: expected a whole number of at least 1"):
        ContrastiveDivergence(kernel, num_steps=0)
    with pytest.raises(TypeError, match=r"kernel: expected one of pyrogen.kernels, got float"):
        ContrastiveDivergence(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="restart_prob: expected a probability below 1"):
        ContrastiveDivergence(kernel, persistent=True, restart_prob=1.0)
    with pytest.raises(ValueError, match="MALA: expected something to sample"):
        kernels.MCMC(kernel, 10)
    loss = ContrastiveDivergence(kernel)
    with pytest.raises(ValueError, match="a model with a site of EnergyBased, got none"):
        loss.loss(lambda: None, lambda: None)
    model = models.EnergyModel(lambda x: x, 2)
    with pytest.raises(ValueError, match="energy: expected one number for each of 3 points"):
        loss.loss(model, guides.Empty(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="expected a sampler, got none"):
        models.EnergyModel(Precision(), BASE)(None)

    def conditional() -> None:
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("x", EnergyBased(Slope(), BASE, torch.zeros(3, 1)), obs=torch.zeros(3, 1))

    with pytest.raises(ValueError, match="chains that start at the data"):
        ContrastiveDivergence(kernel, persistent=True).loss(conditional, lambda: None)

    def wrapped() -> None:
        fn = EnergyBased(Precision(), BASE).expand([3]).to_event(1)
        pyro.sample("x", fn, obs=torch.zeros(3, 1))

    with pytest.raises(ValueError, match="expected EnergyBased itself, got Independent"):
        loss.loss(wrapped, lambda: None)


@pytest.mark.parametrize("normal", [dist.Normal, NonreparameterizedNormal])
def test_the_guide_of_a_latent_energy_does_not_see_the_chains(normal: Any) -> None:
    """Chains that start at the guide's draws, in vectorised particles: the gradient of the ELBO in
    the guide's location, for which the expectation is known."""
    energy, data = Precision(), torch.randn(10, 1)
    location = nn.Parameter(torch.tensor(0.7))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", EnergyBased(energy, BASE))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.param("location", location)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(location.expand(len(x), 1), 0.5).to_event(1))

    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.5), 8, elbo=elbo)
    gradients = [gradient_of(loss, model, guide, location, data) for _ in range(40)]
    assert_mean(gradients, -float((data - location - 2 * location).sum().detach()))


@pytest.mark.parametrize("num_steps", [9, 23])
def test_chains_stay_in_the_context_of_their_minibatch(num_steps: int) -> None:
    """Contexts far from each other: a chain in that of another datum would be thousands off."""
    means = 10.0 * torch.arange(20.0).unsqueeze(-1)
    flat = dist.Normal(torch.zeros(1), 1000.0).to_event(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 20, subsample_size=4, dim=-1) as index:
            fn = EnergyBased(lambda x, c: 0.5 * (x - c).square().sum(-1), flat, means[index])
            pyro.sample("x", fn, obs=x[index])

    loss = ContrastiveDivergence(kernels.MALA(step_size=0.3), num_steps)
    # 5 times a difference of sums of 4 halves of squared standard normals, each below 20
    assert abs(loss.loss(model, lambda x: None, means + torch.randn(20, 1))) < 5 * 4 * 20


def test_contexts_of_an_enumerated_site() -> None:
    means = torch.tensor([-2.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            which = pyro.sample(
                "which", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
            )
            fn = EnergyBased(lambda x, c: -(c * x).sum(-1), BASE, means[which].unsqueeze(-1))
            pyro.sample("x", fn, obs=x)

    losses = []
    for wrap in (lambda elbo: elbo, captured):
        pyro.set_rng_seed(0)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = ContrastiveDivergence(kernels.MALA(step_size=0.3), 23, elbo=elbo)
        losses.append(wrap(loss).loss(model, lambda x: None, torch.zeros(5, 1)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_every_particle_has_the_whole_chain_and_options_may_change() -> None:
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum(-1)

    model = models.EnergyModel(energy, BASE)
    for num_particles in (1, 2):
        elbo = Trace_ELBO(num_particles=num_particles)
        loss = ContrastiveDivergence(kernels.Langevin(step_size=0.1), 23, elbo=elbo)
        for num_steps in (23, 5):
            loss.num_steps = num_steps
            loss.loss(model, guides.Empty(), DATA)
            # each step, once where a piece begins, and the two terms of the contrast
            pieces = {(1, 23): 3, (2, 23): 4}.get((num_particles, num_steps), num_particles)
            assert len(calls) == num_particles * (num_steps + 2) + pieces
            calls.clear()


def test_what_an_objective_carries_belongs_to_one_model() -> None:
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.5), persistent=True)
    loss.loss(models.EnergyModel(Precision(), BASE), guides.Empty(), DATA)
    with pytest.raises(ValueError, match="give each model a ContrastiveDivergence of its own"):
        loss.loss(models.EnergyModel(Precision(), 3), guides.Empty(), torch.zeros(2, 3))


def test_warnings_of_divergence_become_rare() -> None:
    model = models.EnergyModel(Cliff(), BASE)
    loss = ContrastiveDivergence(
        kernels.Langevin(step_size=0.3), num_steps=3, persistent=True, num_chains=64
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(40):
            loss.loss_and_grads(model, guides.Empty(), DATA)
    assert 1 <= len(caught) <= 1 + math.log2(loss.num_restarts)


def test_short_runs_on_every_support() -> None:
    sampler = kernels.ShortRun(kernels.MALA(step_size=0.1), 3)
    low = torch.tensor([[0.0], [1.0], [2.0]])
    own = EnergyBased(energy_of_squares, dist.Uniform(low, low + 1).to_event(1), sampler=sampler)
    draws = own.sample((4,))
    assert draws.shape == (4, 3, 1)
    assert bool(((draws > low) & (draws < low + 1)).all())
    simplex = dist.ImproperUniform(dist.constraints.simplex, (), (3,))
    draws = EnergyBased(energy_of_squares, simplex, sampler=sampler).sample((4,))
    torch.testing.assert_close(draws.sum(-1), torch.ones(4))
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.5))
    binary = models.EnergyModel(energy_of_squares, dist.Bernoulli(torch.ones(3) / 2).to_event(1))
    with pytest.raises(ValueError, match=r"(?s)site 'x'.*expected a support with a bijection"):
        loss.loss(binary, guides.Empty(), torch.ones(5, 3))


def test_short_runs_in_inference_mode_follow_the_gradient() -> None:
    fn = EnergyBased(lambda x: 50 * x.square().sum(-1), BASE)
    sampler = kernels.ShortRun(kernels.MALA(step_size=0.1), 100)
    with torch.inference_mode():
        variance = float(sampler(fn, (1000,)).var())
    assert abs(variance * 101 - 1) < 5 * (2 / 1000) ** 0.5


def energy_of_squares(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def test_an_energy_alone_has_the_dtype_of_its_module() -> None:
    improper = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
    model = models.EnergyModel(nn.Linear(2, 1).double(), improper)
    loss = ContrastiveDivergence(kernels.MALA(step_size=0.1), persistent=True)
    loss.loss(model, guides.Empty(), torch.randn(5, 2, dtype=torch.float64))
    assert loss.carried["x"].dtype == torch.float64


def test_a_density_has_the_batch_shape_of_its_plates() -> None:
    fn = EnergyBased(Precision(), BASE).expand([3, 10])
    with up_to_a_constant():
        assert fn.log_prob(torch.randn(10, 1)).shape == (3, 10)
    with pytest.raises(ValueError, match=r"value: expected events of shape \[1\], got shape"):
        fn.energy_at(torch.randn(10, 3))


def test_an_energy_that_depends_on_latent_sites_is_refused_in_minibatches() -> None:
    data = torch.randn(20, 1)

    def model(moving: bool) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5, dim=-1) as index:
            factor = scale if moving else 1.0
            energy = EnergyBased(lambda x: factor * x.square().sum(-1), BASE)
            pyro.sample("x", energy, obs=data[index])

    kernel = kernels.SGLD(model, step_size=0.01, compile=False)
    with pytest.raises(ValueError, match="site 'x': expected an energy that is fixed"):
        kernels.MCMC(kernel, 2, 2, disable_progbar=True).run(True)
    kernels.MCMC(kernel, 2, 2, disable_progbar=True).run(False)


def test_samplers_are_checked() -> None:
    loss = ContrastiveDivergence(kernels.MALA(), sampler=torch.zeros)
    model = models.EnergyModel(Precision(), BASE)
    with pytest.raises(ValueError, match=r"(?s)sampler: expected 32 points, shape \[32, 1\]"):
        loss.loss(model, guides.Empty(), DATA)
