"""The loop: steps, epochs, validation, and the state from which all of it can be continued."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrogen.modes import evaluation_mode
from pyrogen.training._averaging import MovingAverage, copy_parameters
from pyrogen.training._batches import Batch, Batches
from pyrogen.training._checkpoint import CheckpointDirectory
from pyrogen.training._interrupt import DeferredInterrupt
from pyrogen.training._programs import Programs
from pyrogen.training._progress import Progress
from pyrogen.training._random import VALIDATION_NOISE, forked_rng, get_rng_states, set_rng_states
from pyrogen.training._result import EpochEnd, FitResult, HistoryRecord
from pyrogen.training._settings import Settings
from pyrogen.training._stopping import EarlyStopping

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Loop:
    """One run of :func:`pyrogen.training.fit`, in one process of perhaps several.

    Args:
        fabric: the launched engine.
        programs: model and guide.
        module: the loss as a module that owns their parameters, made by ``ELBO.__call__``.
        settings: the options of the run.
        batches: training data.
        validation: validation data, or ``None``.
    """

    def __init__(
        self,
        fabric: Fabric,
        programs: Programs,
        module: nn.Module,
        settings: Settings,
        *,
        batches: Batches,
        validation: Batches | None,
    ) -> None:
        self.fabric = fabric
        self._programs = programs
        self._settings = settings
        self._batches = batches
        self._validation = validation
        self.module = module
        # Alone and in the programs' own precision, Fabric's wrappers add nothing but time: 0.05 ms.
        self._wrapped = fabric.world_size > 1 or fabric.strategy.precision.precision != "32-true"
        self._forward = fabric.setup_module(module) if self._wrapped else module
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in trained]
        self._parameters = [parameter for _, parameter in trained]
        self.optimizer = settings.make_optimizer(self._parameters)
        self.scheduler = settings.make_scheduler(self.optimizer)
        self._ema = (
            None
            if settings.ema_decay is None
            else MovingAverage(self._parameters, settings.ema_decay)
        )
        self._stopping = EarlyStopping(settings.patience, settings.min_delta)
        self._best: dict[str, Any] | None = None
        self._history = HistoryRecord()
        self._epoch = self._step = self._batch = 0
        self._loss_sum, self._loss_count = 0.0, 0
        self._checkpoints: CheckpointDirectory | None = None
        self._last_save = time.monotonic()

    def run(self, checkpoints: CheckpointDirectory | None) -> FitResult:
        """Trains to the end, and returns the outcome.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the step is done and the checkpoint written.
            NonFiniteError: if a loss, or the norm of a clipped gradient, is not finite.
        """
        self._checkpoints = checkpoints
        settings, begun = self._settings, (self._epoch, self._step)
        visible = settings.progress and self.fabric.is_global_zero
        with (
            DeferredInterrupt() as self._interrupt,
            Progress(visible, settings.max_epochs, self._batches.num_batches) as self._progress,
        ):
            self._progress.start(self._epoch, self._step)
            while self._epoch < settings.max_epochs and not self._stopping.stopped:
                self._train_epoch()
                self._end_epoch()
            if (self._epoch, self._step) != begun:
                self._save()
            self._stop_if(self._interrupt.requested)
        self._restore_best()
        return self._result()

    def _train_epoch(self) -> None:
        for batch in self._batches.epoch(self._epoch, skip=self._batch):
            value, stop, save = self._train_step(batch)
            self._step += 1
            self._batch += 1
            self._loss_sum += value * batch.num_data
            self._loss_count += batch.num_data
            self._progress.step(value)
            if save or stop:
                self._save()
            self._stop_if(stop)
        if self._loss_count == 0:
            raise ValueError(f"data: expected batches in epoch {self._epoch}, got none")

    def _train_step(self, batch: Batch) -> tuple[float, bool, bool]:
        self.optimizer.zero_grad()
        loss = self._loss(batch, "the loss")
        value, stop, save = self._agree(loss)
        if not math.isfinite(value):
            raise self._programs.nonfinite("the loss", batch.args, self._step)
        if self._wrapped:
            self.fabric.backward(loss)
        else:
            loss.backward()
        self._clip(batch)
        self._history.step_loss.append(value)
        self._history.learning_rate.append(float(self.optimizer.param_groups[0]["lr"]))
        self.optimizer.step()
        if self._ema is not None:
            self._ema.update()
        if self.scheduler is not None and self._settings.scheduler_interval == "step":
            self.scheduler.step()
        return value, stop, save

    def _loss(self, batch: Batch, what: str) -> Tensor:
        """The loss in nats per datum of the whole batch, such that its mean over the processes is
        that of the batch: divided by what it stands for, and weighted by this process's share."""
        try:
            loss: Tensor = self._forward(*batch.args)
        except (ValueError, ArithmeticError) as error:
            self._explain(error, batch, what)
            raise
        num_data = self._programs.num_data(batch.args)
        if self.fabric.world_size == 1:
            return loss / num_data
        return loss * (batch.share * self.fabric.world_size / num_data)

    def _agree(self, loss: Tensor) -> tuple[float, bool, bool]:
        """The mean loss over the processes; whether one is interrupted; whether to save now."""
        value, stop, save = float(loss.detach()), self._interrupt.requested, self._save_is_due()
        if self.fabric.world_size == 1:
            return value, stop, save
        local = [value, float(stop), float(save and self.fabric.is_global_zero)]
        total = torch.tensor(local, dtype=torch.float64, device=self.fabric.device)
        value, stops, saves = self._reduce(total).tolist()
        return value / self.fabric.world_size, stops > 0, saves > 0

    def _clip(self, batch: Batch) -> None:
        if self._settings.clip_norm is None:
            return
        norm = float(clip_grad_norm_(self._parameters, self._settings.clip_norm))
        if not math.isfinite(norm):
            raise self._programs.nonfinite("the norm of the gradient", batch.args, self._step)
        self._history.grad_norm.append(norm)

    def _explain(self, error: Exception, batch: Batch, what: str) -> None:
        """Names step and site where a program fails because a parameter is not finite."""
        if isinstance(error, ArithmeticError) or not all(
            bool(parameter.isfinite().all()) for parameter in self._parameters
        ):
            raise self._programs.nonfinite(what, batch.args, self._step) from error

    def _end_epoch(self) -> None:
        train_loss = self._loss_sum / self._loss_count
        # After the last epoch there is one in any case. Where it is not due it decides nothing: a
        # run that goes on from here would not have had it.
        due = (self._epoch + 1) % self._settings.validate_every == 0
        last = self._epoch + 1 == self._settings.max_epochs
        validation_loss = self._validate() if due or last else None
        self._history.train_loss.append(train_loss)
        self._history.validation_loss.append(
            math.nan if validation_loss is None else validation_loss
        )
        judged = validation_loss if due else None
        if judged is not None and self._stopping.update(self._epoch, judged):
            self._keep_best()
        if self._settings.scheduler_interval == "epoch":
            self._step_scheduler(train_loss if self._validation is None else judged)
        self._progress.end_epoch(train_loss, validation_loss)
        if self._settings.on_epoch_end is not None and self.fabric.is_global_zero:
            rate = self._history.learning_rate[-1]
            self._settings.on_epoch_end(
                EpochEnd(self._epoch, self._step, train_loss, validation_loss, rate)
            )
        self._epoch += 1
        self._batch = 0
        self._loss_sum, self._loss_count = 0.0, 0

    def _step_scheduler(self, loss: float | None) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if loss is not None:
                self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    def _validate(self) -> float | None:
        """The validation loss, in nats per datum, on the same noise after each epoch."""
        if self._validation is None:
            return None
        total, count = 0.0, 0
        seed = VALIDATION_NOISE + self._batches.seed + self.fabric.global_rank
        with (
            torch.no_grad(),
            evaluation_mode(self.module),
            forked_rng(self.fabric.device, seed),
            nullcontext() if self._ema is None else self._ema.swapped(),
        ):
            for batch in self._validation.epoch(0):
                value = float(self._loss(batch, "the validation loss"))
                if not math.isfinite(value):
                    raise self._programs.nonfinite("the validation loss", batch.args, self._step)
                total += value * batch.num_data
                count += batch.num_data
        if self.fabric.world_size > 1:
            sums = torch.tensor(total, dtype=torch.float64, device=self.fabric.device)
            total = float(self._reduce(sums)) / self.fabric.world_size
        return total / count

    def _keep_best(self) -> None:
        if self._settings.patience is not None:
            state = {name: value.clone() for name, value in self.module.state_dict().items()}
            ema = None if self._ema is None else [a.clone() for a in self._ema.averages]
            self._best = {"module": state, "ema": ema}

    def _restore_best(self) -> None:
        if self._best is not None:
            self.module.load_state_dict(self._best["module"])
            if self._ema is not None:
                copy_parameters(self._ema.averages, self._best["ema"])

    def _save_is_due(self) -> bool:
        if self._checkpoints is None:
            return False
        return time.monotonic() - self._last_save >= self._settings.checkpoint_interval

    def _save(self) -> None:
        if self._checkpoints is not None:
            state = self.state()
            if self.fabric.is_global_zero:
                self._checkpoints.save(state)
            self.fabric.barrier()
            self._last_save = time.monotonic()

    def _stop_if(self, interrupted: bool) -> None:
        if interrupted:
            kept = (
                "no checkpoint was kept (pass checkpoint_dir= to be able to continue)"
                if self._checkpoints is None
                else f"call fit again to continue from {self._checkpoints.path}"
            )
            raise KeyboardInterrupt(f"interrupted after step {self._step}; {kept}")

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on. To be called in all processes."""
        random = get_rng_states(self.fabric.device)
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "ema": None if self._ema is None else self._ema.state(),
            "stopping": self._stopping.state(),
            "best": self._best,
            "random": {name: self._gather(value) for name, value in random.items()},
            "carried": {name: self._gather(value) for name, value in self._carried.items()},
            "history": self._history.state(),
            "progress": {
                "epoch": self._epoch,
                "step": self._step,
                "batch": self._batch,
                "loss_sum": self._loss_sum,
                "loss_count": self._loss_count,
                "seed": self._batches.seed,
            },
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what :meth:`state` returned, in this process."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self._ema is not None:
            self._ema.load(state["ema"])
        self._stopping.load(state["stopping"])
        self._best = state["best"]
        self._history.load(state["history"])
        progress = state["progress"]
        self._epoch, self._step = progress["epoch"], progress["step"]
        self._batch = progress["batch"]
        self._loss_sum, self._loss_count = progress["loss_sum"], progress["loss_count"]
        self._batches.seed = progress["seed"]
        if self._epoch > self._settings.max_epochs:
            raise ValueError(
                f"max_epochs: expected at least {self._epoch}, the epochs that the checkpoint "
                f"holds, got {self._settings.max_epochs}; pass resume=False to start anew"
            )
        rank = self.fabric.global_rank
        carried = {name: values[rank] for name, values in state["carried"].items()}
        self._carry({name: value.to(self.fabric.device) for name, value in carried.items()})
        random = {name: states[rank] for name, states in state["random"].items()}
        set_rng_states(random, self.fabric.device)

    @property
    def _carried(self) -> dict[str, Tensor]:
        """What the loss carries from step to step, such as persistent chains."""
        return getattr(self.module.elbo, "carried", {})

    def _carry(self, carried: dict[str, Tensor]) -> None:
        if carried:
            self.module.elbo.carry(carried)  # type: ignore[operator, union-attr]

    def _gather(self, value: Tensor) -> list[Tensor]:
        """The tensors of all processes, of which the lengths may differ."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        if world == 1:
            return [value.clone()]
        sizes = torch.zeros(world, dtype=torch.long, device=value.device)
        sizes[rank] = value.numel()
        counts = self._reduce(sizes).tolist()
        rows = value.new_zeros(world, max(counts))
        rows[rank, : value.numel()] = value.flatten()
        shape = (-1, *value.shape[1:]) if value.dim() > 0 else ()
        parts = zip(self._reduce(rows).cpu(), counts, strict=True)
        return [row[:count].reshape(shape) for row, count in parts]

    def _reduce(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Any = self.fabric.all_reduce(value, reduce_op="sum")
        return torch.as_tensor(total)

    def _result(self) -> FitResult:
        ema = None
        if self._ema is not None:
            ema = dict(zip(self._names, self._ema.averages, strict=True))
        return FitResult(
            model=self._programs.model,
            guide=self._programs.guide,
            history=self._history.frozen(),
            num_epochs=self._epoch,
            num_steps=self._step,
            best_epoch=self._stopping.best_epoch,
            stopped_early=self._stopping.stopped,
            ema=ema,
        )
