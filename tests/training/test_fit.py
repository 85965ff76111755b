"""``fit`` does what a loop written by hand does, and each option what it says."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyrogen.losses import Compiled
from pyrogen.training import fit
from tests.training.programs import (
    FULL_SIZE,
    GlobalModel,
    LocalGuide,
    NormalGuide,
    PointGuide,
    data,
    local_pair,
    sgd,
)

QUIET = {"loss": Trace_ELBO(), "progress": False}


def parameters(*programs):
    return [parameter.detach() for program in programs for parameter in program.parameters()]


def assert_same(left, right):
    assert [torch.equal(a, b) for a, b in zip(left, right, strict=True)] == [True] * len(left)


def by_hand(x, batch_size, epochs, after_step=lambda module: None, after_backward=None):
    """The loop that ``fit`` stands for, with its order of the data."""
    model, guide = local_pair()
    with pyro.settings.context(module_local_params=True):
        for program in (model, guide):
            program._pyro_context.param_state = {"params": {}, "constraints": {}}
        module = Trace_ELBO()(model, guide)
        optimizer = sgd(module.parameters())
        seed, losses = int(torch.randint(2**62, ())), []
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + epoch))
            for index in order.split(batch_size):
                optimizer.zero_grad()
                loss = module(x[index]) / len(index)
                losses.append(loss.item())
                loss.backward()
                if after_backward is not None:
                    after_backward(module)
                optimizer.step()
                after_step(module)
    return module, losses


def test_it_is_the_loop_written_by_hand():
    x = data()
    module, losses = by_hand(x, batch_size=8, epochs=2)
    pyro.set_rng_seed(0)
    result = fit(*local_pair(), x, optimizer=sgd, batch_size=8, max_epochs=2, **QUIET)
    assert list(result.history.step_loss) == losses
    assert (result.num_epochs, result.num_steps) == (2, 6)
    trained = parameters(result.model, result.guide)
    assert_same(trained, parameters(module))
    sizes = np.array([8, 8, 5])
    expected = (result.history.step_loss.reshape(2, 3) * sizes).sum(1) / FULL_SIZE
    np.testing.assert_allclose(result.history.train_loss, expected, rtol=1e-15)


def test_validation_and_checks_draw_nothing_from_the_generators():
    x, ends = data(), []
    for validation_data in (None, x[:9]):
        pyro.set_rng_seed(0)
        result = fit(*local_pair(), x, validation_data=validation_data, max_epochs=2, **QUIET)
        ends.append((*parameters(result.model, result.guide), torch.get_rng_state()))
    assert_same(*ends)


@pytest.mark.parametrize("batch_size", [4, 21])
def test_global_latents_are_counted_by_the_full_plate(batch_size):
    """The loss is the negative log joint, the batch scaled to the full plate, over its size."""
    x = data(dtype=torch.float64)
    model, guide = GlobalModel(), PointGuide(dtype=torch.float64)
    precision = FULL_SIZE + 1 / 4
    optimum = x.sum(0) / precision
    with torch.no_grad():
        guide.point_unconstrained.copy_(optimum)
    result = fit(
        model, guide, x, batch_size=batch_size, max_epochs=1, shuffle=False,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **QUIET,
    )  # fmt: skip
    normal, one = torch.distributions.Normal, torch.ones((), dtype=torch.float64)
    prior = normal(0 * one, 2 * one).log_prob(optimum).sum()
    expected = [
        -(prior + normal(optimum, one).log_prob(part).sum() * FULL_SIZE / len(part)) / FULL_SIZE
        for part in x.split(batch_size)
    ]
    # Sums of at most 63 terms, each within 4 rounding errors of its value.
    rounding = 63 * 4 * torch.finfo(torch.float64).eps
    np.testing.assert_allclose(result.history.step_loss, expected, rtol=rounding)


def test_a_plate_of_the_batch_is_counted_by_the_batch():
    x = data()
    model, guide = local_pair(scale=0.0)
    result = fit(
        model, guide, x, batch_size=8, max_epochs=1, shuffle=False, validation_data=x,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **QUIET,
    )  # fmt: skip
    losses = [Trace_ELBO().loss(model, guide, part) / len(part) for part in x.split(8)]
    np.testing.assert_allclose(result.history.step_loss, losses, rtol=1e-6)
    total = Trace_ELBO().loss(model, guide, x) / len(x)
    # float32 sums of 21 data in another order: 21 roundings.
    rounding = FULL_SIZE * torch.finfo(torch.float32).eps
    np.testing.assert_allclose(result.history.validation_loss, [total], rtol=rounding)


def test_parameters_made_on_first_use_are_trained():
    def model(x):
        GlobalModel()(x)

    guide = AutoNormal(model)
    result = fit(model, guide, data(), max_epochs=2, **QUIET)
    assert [name for name, _ in guide.named_parameters()] == [
        "locs.mean_unconstrained",
        "scales.mean_unconstrained",
    ]
    again = AutoNormal(model)
    fit(model, again, data(), max_epochs=1, **QUIET)
    moved = [
        not torch.equal(a, b) for a, b in zip(parameters(guide), parameters(again), strict=True)
    ]
    assert all(moved)
    assert result.num_steps == 2


def test_compiled_and_plain_losses_agree():
    """Without noise, three steps: float32 gradients of a dozen terms differ in the last digits."""
    ends = []
    for loss in (Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)):
        pyro.set_rng_seed(0)
        result = fit(
            *local_pair(scale=0.0), data(), loss=loss, batch_size=8, max_epochs=1, optimizer=sgd,
            progress=False,
        )  # fmt: skip
        ends.append(torch.cat([p.flatten() for p in parameters(result.model, result.guide)]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_gradient():
    norms = []

    def clip(module):
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)))

    module, _ = by_hand(data(), batch_size=8, epochs=1, after_backward=clip)
    pyro.set_rng_seed(0)
    result = fit(
        *local_pair(), data(), optimizer=sgd, batch_size=8, max_epochs=1, clip_norm=0.1, **QUIET
    )
    assert min(norms) > 0.1  # or clipping would do nothing
    assert list(result.history.grad_norm) == norms
    trained = parameters(result.model, result.guide)
    assert_same(trained, parameters(module))


def test_the_moving_average():
    averages = []

    def average(module):
        if not averages:
            averages.append(AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
        averages[0].update_parameters(module)

    by_hand(data(), batch_size=8, epochs=2, after_step=average)
    expected = parameters(averages[0].module)
    pyro.set_rng_seed(0)
    result = fit(
        *local_pair(), data(), optimizer=sgd, batch_size=8, max_epochs=2, ema_decay=0.9,
        validation_data=data(9), **QUIET,
    )  # fmt: skip
    assert_same(result.ema.values(), expected)
    assert list(result.ema)[:2] == ["model.scale_unconstrained", "model.decoder.weight"]
    before = parameters(result.model, result.guide)
    assert not torch.equal(before[1], expected[1])
    result.load_ema()
    assert_same(parameters(result.model, result.guide), expected)


def test_the_moving_average_in_closed_form():
    """Plain gradient steps of constant size on the parameter: a = Σ weights × positions."""
    positions = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            positions.append(self.param_groups[0]["params"][0].detach().clone())

    guide = PointGuide(dtype=torch.float64)
    result = fit(
        GlobalModel(), guide, data(dtype=torch.float64), batch_size=7, max_epochs=2, ema_decay=0.8,
        optimizer=lambda p: Recorder(p, lr=0.1), **QUIET,
    )  # fmt: skip
    steps = len(positions)
    weights = [0.8 ** (steps - 1), *(0.2 * 0.8 ** (steps - 1 - t) for t in range(1, steps))]
    expected = sum(w * p for w, p in zip(weights, positions, strict=True))
    # One rounding per step and term.
    torch.testing.assert_close(
        result.ema["guide.point_unconstrained"],
        expected,
        rtol=2 * steps * 2.3e-16,
        atol=steps * 2.3e-16,
    )


def test_validation_measures_the_averages():
    x = data()
    model, guide = local_pair(scale=0.0)
    result = fit(
        model, guide, x, max_epochs=2, batch_size=8, optimizer=sgd, ema_decay=0.9,
        validation_data=x, **QUIET,
    )  # fmt: skip
    plain = Trace_ELBO().loss(model, guide, x) / len(x)
    result.load_ema()
    averaged = Trace_ELBO().loss(model, guide, x) / len(x)
    assert result.history.validation_loss[-1] == pytest.approx(averaged, rel=1e-5)
    assert abs(plain - averaged) > 1e-3


def test_learning_rate_schedules():
    x, halve = data(), lambda optimizer: StepLR(optimizer, 1, gamma=0.5)
    options = {"batch_size": 8, "max_epochs": 2, "optimizer": sgd, "scheduler": halve, **QUIET}
    result = fit(*local_pair(), x, **options)
    assert list(result.history.learning_rate) == [0.05] * 3 + [0.025] * 3
    result = fit(*local_pair(), x, scheduler_interval="step", **options)
    np.testing.assert_array_equal(result.history.learning_rate, 0.05 * 0.5 ** np.arange(6))


def test_a_plateau_is_judged_by_the_validation_loss():
    """A loss that rises by 1 at each validation: the rate is halved after each but the first."""
    result = fit(
        GlobalModel(), RisingGuide(), data(), validation_data=data(), max_epochs=3, optimizer=sgd,
        scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0), **QUIET,
    )  # fmt: skip
    assert list(result.history.learning_rate) == [0.05, 0.05, 0.025]


class RisingGuide(PointGuide):
    """Moves away from the data each time that it is validated."""

    def forward(self, x):
        if not self.training and torch.is_grad_enabled() is False:
            self.shift = getattr(self, "shift", 0.0) - 1.0
        offset = 0.0 if self.training else self.shift
        pyro.sample("mean", pyro.distributions.Delta(self.point + offset).to_event(1))


def test_early_stopping_puts_the_best_epoch_back():
    kept = []
    guide = RisingGuide()
    result = fit(
        GlobalModel(), guide, data(), validation_data=data(), patience=2, max_epochs=50,
        optimizer=sgd, on_epoch_end=lambda end: kept.append(guide.point.detach().clone()), **QUIET,
    )  # fmt: skip
    assert result.stopped_early
    assert (result.best_epoch, result.num_epochs) == (0, 3)
    assert np.all(np.diff(result.history.validation_loss) > 0)
    assert torch.equal(guide.point, kept[0])
    assert not torch.equal(kept[0], kept[-1])


def test_min_delta_asks_for_more():
    options = {
        "validation_data": data(),
        "patience": 1,
        "max_epochs": 20,
        "optimizer": sgd,
        **QUIET,
    }
    result = fit(GlobalModel(), PointGuide(), data(), min_delta=1e6, **options)
    # The first validation is a best against infinity; the second is not better by a million.
    assert (result.stopped_early, result.num_epochs, result.best_epoch) == (True, 2, 0)


class Plateau(ReduceLROnPlateau):
    """Notes what it is stepped with."""

    def __init__(self, optimizer):
        self.seen = []
        super().__init__(optimizer)

    def step(self, metrics):
        self.seen.append(metrics)
        super().step(metrics)


@pytest.mark.parametrize("validated", [True, False])
def test_a_plateau_sees_losses_of_one_kind(validated):
    """Of the five epochs, 1 and 3 are due to be validated, and 4 is only because it is the last."""
    plateaus = []

    def scheduler(optimizer):
        plateaus.append(Plateau(optimizer))
        return plateaus[0]

    history = fit(
        *local_pair(), data(), max_epochs=5, scheduler=scheduler, validate_every=2,
        validation_data=data(9) if validated else None, **QUIET,
    ).history  # fmt: skip
    expected = history.validation_loss[[1, 3]] if validated else history.train_loss
    assert plateaus[0].seen == list(expected)


def test_the_extra_validation_at_the_end_is_no_candidate():
    """The loss falls from each validation to the next, but only epoch 1 was due."""
    result = fit(
        GlobalModel(), PointGuide(), data(), validation_data=data(), validate_every=2, patience=1,
        max_epochs=3, optimizer=sgd, **QUIET,
    )  # fmt: skip
    assert result.history.validation_loss[2] < result.history.validation_loss[1]
    assert (result.best_epoch, result.num_epochs, result.stopped_early) == (1, 3, False)


def test_validation_every_so_often_and_at_the_end():
    result = fit(
        *local_pair(), data(), validation_data=data(), validate_every=2, max_epochs=5, **QUIET
    )
    assert list(np.isnan(result.history.validation_loss)) == [True, False, True, False, False]


def test_the_callback_hears_of_each_epoch():
    heard = []
    result = fit(
        *local_pair(), data(), validation_data=data(), batch_size=8, max_epochs=2,
        on_epoch_end=heard.append, **QUIET,
    )  # fmt: skip
    assert [(end.epoch, end.step) for end in heard] == [(0, 3), (1, 6)]
    assert [end.validation_loss for end in heard] == list(result.history.validation_loss)


def test_a_data_loader_and_a_list_of_batches():
    """Both give the same batches; the loader's order comes from torch's generator."""
    x = data()
    first = fit(*local_pair(scale=0.0), list(x.split(8)), max_epochs=2, **QUIET)
    loader = DataLoader(TensorDataset(x), batch_size=8)
    second = fit(*local_pair(scale=0.0), loader, max_epochs=2, **QUIET)
    assert_same(parameters(first.guide), parameters(second.guide))
    third = fit(*local_pair(scale=0.0), x, batch_size=8, shuffle=False, max_epochs=2, **QUIET)
    assert list(third.history.step_loss) == list(first.history.step_loss)

    shuffled = DataLoader(TensorDataset(x), batch_size=8, shuffle=True)
    losses = []
    for _ in range(2):
        pyro.set_rng_seed(7)
        losses.append(list(fit(*local_pair(), shuffled, max_epochs=2, **QUIET).history.step_loss))
    assert losses[0] == losses[1]
    assert losses[0][0] != pytest.approx(first.history.step_loss[0])


class Stream(IterableDataset):
    """Data one by one; their number is not known."""

    def __iter__(self):
        return iter(data())


def test_a_data_loader_of_unknown_length():
    options = {"max_epochs": 2, **QUIET}
    expected = fit(*local_pair(scale=0.0), list(data().split(8)), **options)
    streamed = DataLoader(Stream(), batch_size=8)
    got = fit(*local_pair(scale=0.0), streamed, validation_data=streamed, **options)
    assert list(got.history.step_loss) == list(expected.history.step_loss)


def test_several_tensors_are_several_arguments():
    class Weighted(GlobalModel):
        def forward(self, x, weight):
            with pyro.poutine.scale(scale=weight.mean()):
                super().forward(x)

    class Guide(PointGuide):
        def forward(self, x, weight):
            with pyro.poutine.scale(scale=weight.mean()):
                super().forward(x)

    x = data()
    fixed = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "max_epochs": 1, **QUIET}
    plain = fit(GlobalModel(), PointGuide(), x, **fixed).history.step_loss
    double = fit(Weighted(), Guide(), (x, torch.full((FULL_SIZE,), 2.0)), **fixed)
    np.testing.assert_allclose(double.history.step_loss, 2 * plain, rtol=1e-6)


def test_modes_are_used_and_put_back():
    model, guide = local_pair()
    seen = []
    guide.before_call = lambda call: seen.append((guide.training, model.decoder.training))
    guide.eval()
    model.decoder.eval()
    fit(model, guide, data(), validation_data=data(), max_epochs=1, **QUIET)
    # The check and the count of the data, in eval mode; a step; validation and its count.
    assert seen.count((True, False)) == 1
    assert seen.count((False, False)) == len(seen) - 1
    assert (guide.training, model.training, model.decoder.training) == (False, True, False)


def test_nothing_global_is_left_changed():
    import os
    import warnings

    fit(*local_pair(), data(), max_epochs=1, **QUIET)
    before = (dict(os.environ), list(warnings.filters), torch.initial_seed())
    fit(*local_pair(), data(), max_epochs=1, **QUIET)
    assert before == (dict(os.environ), list(warnings.filters), torch.initial_seed())
    assert len(pyro.get_param_store()) == 0


def test_the_progress_bar_speaks_of_nats_per_datum(capsys):
    fit(*local_pair(), data(), validation_data=data(), max_epochs=2, loss=Trace_ELBO())
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "nats/datum" in shown
    assert "validation" in shown


def test_it_learns():
    """The exact posterior of the global mean is Gaussian; its bound is the log evidence."""
    x = data(dtype=torch.float64)
    guide = NormalGuide(dtype=torch.float64)
    fit(
        GlobalModel(), guide, x, batch_size=FULL_SIZE, max_epochs=600,
        loss=Trace_ELBO(num_particles=20, vectorize_particles=True),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
        scheduler=lambda o: StepLR(o, 200, gamma=0.2), progress=False,
    )  # fmt: skip
    precision = FULL_SIZE + 1 / 4
    # A step of 0.002 on a noisy gradient leaves a few hundredths of the posterior's width.
    width = precision**-0.5
    assert (guide.loc - x.sum(0) / precision).abs().max() < 0.25 * width
    assert (guide.scale.log() - math.log(width)).abs().max() < 0.25


def test_programs_are_returned():
    model, guide = local_pair()
    result = fit(model, guide, data(), max_epochs=1, **QUIET)
    assert result.model is model
    assert result.guide is guide
    assert isinstance(guide, LocalGuide)
    assert result.ema is None
    with pytest.raises(ValueError, match="ema_decay"):
        result.load_ema()
