"""What ``fit`` refuses, and what it says then."""

from __future__ import annotations

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrogen.errors import NonFiniteError
from pyrogen.kernels import Langevin
from pyrogen.losses import Compiled, ContrastiveDivergence
from pyrogen.training import fit
from tests.training.programs import GlobalModel, PointGuide, data, local_pair, sgd

QUIET = {"loss": Trace_ELBO(), "progress": False, "max_epochs": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"max_epochs": -1}, "max_epochs: expected at least 1, got -1"),
        ({"validate_every": 0}, "validate_every: expected at least 1"),
        ({"patience": 3}, "patience: expected validation_data="),
        ({"patience": 0, "validation_data": data()}, "patience: expected at least 1"),
        ({"min_delta": -1.0}, r"min_delta: expected a number in \[0.0, inf\), got -1.0"),
        ({"clip_norm": 0.0}, r"clip_norm: expected a number in \(0.0, inf\)"),
        ({"clip_norm": float("nan")}, "clip_norm: expected a number"),
        ({"ema_decay": 1.0}, r"ema_decay: expected a number in \[0.0, 1.0\), got 1.0"),
        ({"checkpoint_interval": -1.0}, "checkpoint_interval: expected a number"),
        ({"scheduler_interval": "day"}, "scheduler_interval: expected 'epoch' or 'step'"),
        ({"precision": "16-mixed"}, "precision: expected one of .*got '16-mixed'"),
        ({"strategy": "ddp_spawn", "accelerator": "cpu"}, "strategy: expected 'auto' or 'ddp'"),
        ({"validation_data": torch.zeros(0, 3)}, "validation_data: expected at least one datum"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer: .*got LBFGS, whose step needs a closure"),
        (
            {"scheduler": ReduceLROnPlateau, "scheduler_interval": "step"},
            "scheduler_interval: expected 'epoch' for ReduceLROnPlateau",
        ),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        fit(*local_pair(), data(), **{**QUIET, **options})


def contrast(elbo):
    return ContrastiveDivergence(Langevin(), elbo=elbo)


@pytest.mark.parametrize("wrap", [lambda elbo: elbo, Compiled, contrast], ids=["", "C", "CD"])
def test_two_losses_are_none(wrap):
    loss = wrap(ReweightedWakeSleep(num_particles=2))
    with pytest.raises(ValueError, match="one number to minimise, got ReweightedWakeSleep"):
        fit(*local_pair(), data(), **{**QUIET, "loss": loss})


@pytest.mark.parametrize("wrap", [lambda elbo: elbo, contrast], ids=["", "CD"])
def test_a_loss_without_a_gradient(wrap):
    loss = wrap(RenyiELBO(num_particles=2))
    with pytest.raises(ValueError, match=r"got RenyiELBO.*wrap the loss in losses.Compiled"):
        fit(*local_pair(), data(), **{**QUIET, "loss": loss})


def test_compiled_it_has_one():
    loss = Compiled(RenyiELBO(num_particles=2), compile=False)
    result = fit(*local_pair(), data(), **{**QUIET, "loss": loss, "max_epochs": 1})
    assert result.num_epochs == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2.0}, "batch_size: expected an int, got float"),
        ({"loss": Trace_ELBO}, r"loss: expected a pyro.infer.ELBO such as Trace_ELBO\(\)"),
        ({"optimizer": 1e-3}, "optimizer: expected a function"),
        ({"optimizer": pyro.optim.Adam({"lr": 1e-3})}, "optimizer: .*got one that makes NoneType"),
    ],
)
def test_options_of_the_wrong_type(options, message):
    with pytest.raises(TypeError, match=message):
        fit(*local_pair(), data(), **{**QUIET, **options})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 3), "data: expected at least one datum"),
        (torch.tensor(1.0), "data: expected shape"),
        (torch.full((4, 3), float("nan")), "data: expected finite values, got 12 NaN"),
        (data().numpy(), "data: expected .*Tensor"),
        ([], "data: expected at least one batch"),
        ((), "data: expected at least one Tensor"),
        ((data(), data(5)), r"data: expected tensors of one length, got lengths \[21, 5\]"),
        ({"x": data()}, "data: expected a Tensor, a tuple of Tensors or a DataLoader, got dict"),
        (3, "data: expected a Tensor, a tuple of Tensors or a DataLoader, got int"),
        (iter([data()]), "data: expected an iterable that can be walked through once per epoch"),
        ([[1.0, 2.0]], "expected a torch.Tensor, got float"),
    ],
)
def test_data_that_cannot_be_used(bad, message):
    with pytest.raises(ValueError, match=message):
        fit(*local_pair(), bad, **QUIET)


def never_steps(parameters):
    class Never(torch.optim.SGD):
        def step(self, closure=None):
            pytest.fail("a step was taken")

    return Never(parameters, lr=0.1)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_checkpoint_dir_that_is_a_file(tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ValueError, match=r"checkpoint_dir: expected a directory .*got .*file"):
        fit(*local_pair(), data(), checkpoint_dir=file / inside, optimizer=never_steps, **QUIET)
    assert file.read_text() == "kept"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, where nobody can write, is Linux's")
def test_a_checkpoint_dir_that_cannot_be_written_to():
    with pytest.raises(ValueError, match=r"checkpoint_dir: .*to read and write in, got /proc "):
        fit(*local_pair(), data(), checkpoint_dir="/proc", optimizer=never_steps, **QUIET)


def test_an_optimizer_with_an_optional_closure_is_taken():
    """After a schedule has wrapped its step, too."""

    def scheduled(parameters):
        optimizer = sgd(parameters)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return optimizer

    assert fit(*local_pair(), data(), optimizer=scheduled, **QUIET).num_steps == 3


def test_programs_that_do_not_match():
    _, guide = local_pair()
    with pytest.raises(ValueError, match=r"expected \['mean'\], got \['z'\]"):
        fit(GlobalModel(), guide, data(), **QUIET)
    with pytest.raises(TypeError, match="model: expected a PyroModule"):
        fit(GlobalModel, guide, data(), **QUIET)


def test_parameters_outside_the_modules():
    def guide(x):
        point = pyro.param("point", torch.zeros(3))
        pyro.sample("mean", dist.Delta(point).to_event(1))

    with pytest.raises(ValueError, match="parameter 'point': expected a parameter of the module"):
        fit(GlobalModel(), guide, data(), **QUIET)
    pyro.clear_param_store()


def test_nothing_to_train():
    guide = PointGuide()
    guide.requires_grad_(False)
    with pytest.raises(ValueError, match="expected parameters to train, got none"):
        fit(GlobalModel(), guide, data(), **QUIET)


class Breaks(PointGuide):
    """Its draw becomes infinite at a given call under gradients."""

    at_step = 4

    def forward(self, x):
        self.steps = getattr(self, "steps", -1) + torch.is_grad_enabled()
        factor = float("inf") if self.steps >= self.at_step else 1.0
        pyro.sample("mean", dist.Delta(self.point + factor).to_event(1))


@pytest.mark.filterwarnings("ignore:Encountered (NaN|-?inf|\\+inf)")
def test_a_loss_that_is_not_finite_names_site_and_step():
    guide = Breaks()
    with (
        pyro.validation_enabled(False),
        pytest.raises(NonFiniteError, match=r"step 4: the loss .*site 'mean'") as caught,
    ):
        fit(GlobalModel(), guide, data(), batch_size=10, **QUIET)
    assert (caught.value.site, caught.value.step) == ("mean", 4)


@pytest.mark.parametrize("loss", [Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)])
@pytest.mark.filterwarnings("ignore:Encountered (NaN|-?inf|\\+inf)")
def test_parameters_that_are_not_finite_are_named(loss):
    """An infinite learning rate breaks the parameters at step 0, which step 1 finds out."""
    with pytest.raises(
        NonFiniteError, match=r"step 1: .*parameter 'scale_unconstrained'"
    ) as caught:
        fit(
            *local_pair(), data(), loss=loss, progress=False, batch_size=5,
            optimizer=lambda p: torch.optim.SGD(p, lr=float("inf")),
        )  # fmt: skip
    assert caught.value.step == 1
    assert caught.value.site in {"x", "z"}


def test_a_gradient_that_is_not_finite_is_caught_when_clipped():
    class Root(PointGuide):
        def forward(self, x):
            root = self.point.abs().sqrt()  # finite at 0, with an infinite slope
            pyro.sample("mean", dist.Delta(root).to_event(1))

    with pytest.raises(NonFiniteError, match="step 0: the norm of the gradient is not finite"):
        fit(GlobalModel(), Root(), data(), clip_norm=1.0, **QUIET)


def test_settings_are_put_back_after_an_error():
    guide = AutoNormal(GlobalModel())
    guide.eval()
    with pytest.raises(ValueError, match="data"):
        fit(GlobalModel(), guide, torch.zeros(0, 3), **QUIET)
    assert pyro.settings.get("module_local_params") is False
    assert guide.training is False


def test_without_fabric_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"pip install 'pyrogen\[train\]'"):
        fit(*local_pair(), data(), **QUIET)


@pytest.mark.parametrize("loss", [Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)])
@pytest.mark.filterwarnings("ignore:Encountered (NaN|-?inf|\\+inf)")
def test_a_validation_loss_that_is_not_finite(loss):
    class Overflows(PointGuide):
        def forward(self, x):
            point = self.point if self.training else self.point + float("inf")
            pyro.sample("mean", dist.Delta(point).to_event(1))

    message = "step 3: the validation loss is not finite: site 'mean'"
    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match=message):
        fit(
            GlobalModel(), Overflows(), data(), loss=loss, validation_data=data(), batch_size=7,
            progress=False,
        )  # fmt: skip
