r"""``fit``: stochastic variational inference over many epochs.

What is minimised is the loss in nats per datum. A Pyro ELBO is a sum over the data of a batch,
scaled by plates; ``fit`` divides it by the full size of the plate ``"data"`` in the model:

.. math:: \ell(\theta, \phi) = -\mathrm{ELBO}(\theta, \phi; \text{batch}) / N_{\text{plate}}

With latents of each datum, ``pyro.plate("data", len(x))``, that is the length of the batch. With
global latents, ``pyro.plate("data", N, subsample_size=len(x))``, it is ``N``. Without a plate of
that name it is the length of the batch. In all cases the mean of :math:`\ell` over batches of equal
length estimates the same objective, and so does the mean over processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyro.infer import ELBO, ReweightedWakeSleep
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrogen.losses import Compiled
from pyrogen.modes import local_parameters, training_mode
from pyrogen.training._batches import Shard, make_batches
from pyrogen.training._checkpoint import CheckpointDirectory
from pyrogen.training._engine import start_fabric
from pyrogen.training._loop import Loop
from pyrogen.training._packing import pack
from pyrogen.training._programs import Programs
from pyrogen.training._random import TRAINING_NOISE, draw_seed, seed_generators
from pyrogen.training._result import EpochEnd, FitResult
from pyrogen.training._settings import Settings, adam

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["fit"]

Program = Callable[..., Any]
Data = Tensor | tuple[Tensor, ...] | Iterable[Any]


def fit(
    model: Program,
    guide: Program,
    data: Data,
    *,
    loss: ELBO,
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
    batch_size: int = 128,
    max_epochs: int = 100,
    validation_data: Data | None = None,
    validate_every: int = 1,
    patience: int | None = None,
    min_delta: float = 0.0,
    clip_norm: float | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    scheduler_interval: Literal["epoch", "step"] = "epoch",
    ema_decay: float | None = None,
    shuffle: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 30.0,
    resume: bool = True,
    progress: bool = True,
    on_epoch_end: Callable[[EpochEnd], Any] | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    precision: str = "32-true",
) -> FitResult:
    """Trains a model and a guide in place, by stochastic variational inference.

    Nothing is seeded: one number is drawn from torch's global generator to fix the order of the
    data, and the programs draw their noise from it, so ``pyro.set_rng_seed`` reproduces a run.
    Validation uses the same noise after each epoch and draws nothing from the global generator.
    Model and guide keep their parameters to themselves; Pyro's global store is not touched.

    Args:
        model: a ``PyroModule`` whose ``forward`` is the program, called as ``model(*batch)``.
        guide: a ``PyroModule`` or autoguide for it. Parameters made on first use are made here.
        data: a tensor ``[N, *event]``, a tuple of such tensors (one per argument of the program),
            or an iterable of batches, such as a ``DataLoader``. Tensors are moved to the device
            once. An iterable is walked through once per epoch; its batches are tensors or tuples.
        loss: what to minimise, such as ``Trace_ELBO()`` or ``losses.Compiled(Trace_ELBO())``.
        optimizer: makes an optimizer from a list of parameters; ``None`` for fused Adam at 1e-3.
        batch_size: data per step, over all processes; the last batch of an epoch may be smaller.
            An iterable brings its own batches.
        max_epochs: how often to go through the data. A finished run can be continued with more.
        validation_data: as ``data``; never shuffled.
        validate_every: validate after every so many epochs, and once more after the last. If the
            last is none of them, its validation is for the history alone.
        patience: stop after so many validations in a row without a new best, and put the
            parameters of the best epoch back at the end. ``None``: train to ``max_epochs``.
        min_delta: nats per datum by which a new best must be lower.
        clip_norm: largest norm of the gradient (of the loss in nats per datum).
        scheduler: makes a learning-rate scheduler from the optimizer. ``ReduceLROnPlateau`` is
            stepped with each validation loss, or with the training losses if there are no
            validation data.
        scheduler_interval: step the scheduler after each ``"epoch"`` or each ``"step"``.
        ema_decay: keep a moving average of the parameters with this decay. Validation then
            measures the averages; the programs end with the parameters themselves, and
            :meth:`FitResult.load_ema` puts the averages in their place.
        shuffle: draw a new order of tensor data for each epoch.
        checkpoint_dir: where to keep the last two checkpoints; made if need be. Each is written
            whole or not at all, and holds tensors and JSON only.
        checkpoint_interval: seconds between checkpoints; one more is written at the end.
        resume: if ``checkpoint_dir`` holds a checkpoint, continue it: bit for bit on the same
            machine, in mid-epoch too (for a ``DataLoader``: if its order comes from torch's
            global generator). ``False``: start anew and replace it.
        progress: show a progress bar on standard error.
        on_epoch_end: called with an :class:`EpochEnd` after each epoch, in the first process.
        accelerator: as in ``lightning_fabric.Fabric``.
        devices: as in ``lightning_fabric.Fabric``. With several, the script is started once per
            device, each process takes its share of every batch, and the result is that of one
            process on the whole batch; each draws its own noise.
        strategy: ``"auto"``, ``"ddp"``, or ``"ddp_find_unused_parameters_true"`` where not every
            parameter takes part in every step.
        precision: ``"32-true"``, ``"64-true"``, ``"bf16-mixed"`` or ``"bf16-true"``.

    Returns:
        The history and what else there is to know of the run; see :class:`FitResult`.

    Raises:
        ImportError: if Lightning Fabric is not installed.
        ValueError: if model and guide do not match, data are empty or not finite, an option is out
            of range, the optimizer needs a closure, or ``checkpoint_dir`` cannot be written to or
            holds a run of another configuration.
        TypeError: if an argument has the wrong type.
        NonFiniteError: if a loss is not finite; it is never skipped or replaced.
        KeyboardInterrupt: after Ctrl-C, when the current step is done and the checkpoint written.
            The programs hold the parameters reached. A second Ctrl-C interrupts at once.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoDelta
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", 100, subsample_size=len(x), dim=-1):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> x = torch.linspace(1.0, 3.0, 100)
        >>> result = fit(
        ...     model, AutoDelta(model), x, loss=pyro.infer.Trace_ELBO(), max_epochs=50,
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5), progress=False,
        ... )
        >>> result.history.train_loss.shape, round(result.guide.median()["mean"].item(), 2)
        ((50,), 2.0)
    """
    settings = Settings(
        optimizer=optimizer or adam,
        batch_size=batch_size,
        max_epochs=max_epochs,
        validate_every=validate_every,
        patience=patience,
        min_delta=min_delta,
        clip_norm=clip_norm,
        scheduler=scheduler,
        scheduler_interval=scheduler_interval,
        ema_decay=ema_decay,
        shuffle=shuffle,
        checkpoint_dir=checkpoint_dir,
        checkpoint_interval=checkpoint_interval,
        resume=resume,
        progress=progress,
        on_epoch_end=on_epoch_end,
    )
    _check_arguments(model, guide, loss, patience, validation_data)
    fabric = start_fabric(accelerator, devices, strategy, precision)
    with local_parameters(model, guide), training_mode(model, guide):
        result: FitResult = fabric.launch(
            partial(
                _run,
                model=model,
                guide=guide,
                loss=loss,
                data=data,
                validation_data=validation_data,
                settings=settings,
                precision=precision,
            )
        )
    return result


def _check_arguments(
    model: Any, guide: Any, loss: Any, patience: int | None, validation_data: Any
) -> None:
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program) or isinstance(program, type):
            raise TypeError(f"{name}: expected a PyroModule, got {program!r}")
    if not isinstance(loss, ELBO):
        raise TypeError(f"loss: expected a pyro.infer.ELBO such as Trace_ELBO(), got {loss!r}")
    _refuse_without_gradient(loss)
    if patience is not None and validation_data is None:
        raise ValueError("patience: expected validation_data= to judge by, got none")


def _refuse_without_gradient(loss: Any) -> None:
    """Some of Pyro's objectives are for ``SVI`` alone: they have no loss with a gradient."""
    estimate = loss
    while isinstance(getattr(estimate, "elbo", None), ELBO):
        estimate = estimate.elbo
    name = type(estimate).__name__
    if isinstance(estimate, ReweightedWakeSleep):
        raise ValueError(
            f"loss: expected one number to minimise, got {name}, which has two, of model and "
            "guide; train by pyro.infer.SVI"
        )
    if not isinstance(loss, Compiled) and not hasattr(estimate, "differentiable_loss"):
        raise ValueError(
            f"loss: expected a loss with a gradient, got {name}, which gives it to SVI alone; "
            "wrap the loss in losses.Compiled, or train by pyro.infer.SVI"
        )


def _run(
    fabric: Fabric,
    *,
    model: Any,
    guide: Any,
    loss: ELBO,
    data: Any,
    validation_data: Any,
    settings: Settings,
    precision: str,
) -> FitResult:
    """One process's part of :func:`fit`."""
    seed, initial_seed = fabric.broadcast((draw_seed(), torch.initial_seed()))
    shard = Shard(fabric.device, fabric.global_rank, fabric.world_size)
    options = {"batch_size": settings.batch_size, "seed": seed}
    batches = make_batches(data, "data", shard, shuffle=settings.shuffle, **options)
    validation = None
    if validation_data is not None:
        validation = make_batches(
            validation_data, "validation_data", shard, shuffle=False, **options
        )
    programs = Programs(model, guide, fabric)
    module = fabric.strategy.precision.convert_module(fabric.to_device(loss(model, guide)))
    programs.check_parameters(module, batches.example().args)
    if validation is not None:
        programs.num_data(validation.example().args)
    loop = Loop(fabric, programs, module, settings, batches=batches, validation=validation)
    if fabric.global_rank > 0:
        seed_generators(fabric.device, TRAINING_NOISE + seed + fabric.global_rank)
    facts = {"loss": _describe(loss), "seed": initial_seed, "precision": precision}
    return loop.run(_checkpoints(loop, settings, {**batches.describe(), **facts}))


def _checkpoints(
    loop: Loop, settings: Settings, facts: Mapping[str, Any]
) -> CheckpointDirectory | None:
    """Opens the directory of checkpoints, and continues the run that it holds."""
    if settings.checkpoint_dir is None:
        return None
    config = {
        **facts,
        "parameters": _shapes(loop.module),
        "optimizer": _describe_optimizer(loop.optimizer),
        "scheduler": _describe_scheduler(loop.scheduler, settings.scheduler_interval),
        "validate_every": settings.validate_every,
        "patience": settings.patience,
        "min_delta": settings.min_delta,
        "clip_norm": settings.clip_norm,
        "ema_decay": settings.ema_decay,
        "processes": loop.fabric.world_size,
        "device": loop.fabric.device.type,
    }
    checkpoints = CheckpointDirectory(settings.checkpoint_dir, config)
    checkpoints.prepare()
    if not settings.resume:
        checkpoints.start_anew()
    elif (state := checkpoints.load()) is not None:
        loop.load(state)
    return checkpoints


def _shapes(module: torch.nn.Module) -> dict[str, str]:
    return {name: f"{list(t.shape)} {t.dtype}" for name, t in module.state_dict().items()}


def _describe(loss: ELBO) -> dict[str, Any]:
    """The class of a loss and its plain options, but those that Pyro fills in while it runs."""
    options = {
        name.lstrip("_"): _describe(value) if isinstance(value, ELBO) else value
        for name, value in vars(loss).items()
        if isinstance(value, ELBO | bool | int | float | str)
        and name not in {"max_plate_nesting", *getattr(loss, "progress", ())}
    }
    return {"class": type(loss).__name__, **options}


def _describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    groups = [
        {name: repr(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _describe_scheduler(scheduler: LRScheduler | None, interval: str) -> dict[str, Any] | None:
    if scheduler is None:
        return None
    state, _ = pack(scheduler.state_dict())
    return {"class": type(scheduler).__name__, "interval": interval, "state": state}
