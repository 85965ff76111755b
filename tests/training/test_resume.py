"""A run that was stopped, in whatever way, ends where it would have ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrogen.training._checkpoint import CheckpointDirectory
from pyrogen.training._packing import pack, unpack
from tests.modules import ROOT
from tests.training.programs import everything

TIMEOUT = 120


def assert_same_run(result, expected):
    """All that a run leaves is equal, bit for bit."""
    for name in ("model", "guide"):
        state, other = getattr(result, name).state_dict(), getattr(expected, name).state_dict()
        assert state.keys() == other.keys()
        assert [key for key in state if not torch.equal(state[key], other[key])] == []
    assert [key for key in result.ema if not torch.equal(result.ema[key], expected.ema[key])] == []
    for name, values in vars(expected.history).items():
        np.testing.assert_array_equal(getattr(result.history, name), values, err_msg=name)
    for name in ("num_epochs", "num_steps", "best_epoch", "stopped_early"):
        assert getattr(result, name) == getattr(expected, name)


def counters(directory):
    """Where the newest checkpoint stands."""
    path = max(directory.glob("checkpoint-*/state.json"))
    tensors = torch.load(path.with_name("tensors.pt"), weights_only=True)
    return unpack(json.loads(path.read_text())["state"], tensors)["progress"]


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(tmp_path)],
        cwd=ROOT,
        timeout=TIMEOUT,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    at = counters(tmp_path)
    assert 0 < at["batch"] < 7  # of the 7 batches of an epoch
    result, expected = everything(checkpoint_dir=tmp_path), everything()
    assert 0 < at["step"] < expected.num_steps
    assert_same_run(result, expected)


def test_a_finished_run_returns_at_once_and_can_be_prolonged(tmp_path):
    def never(call):
        assert not torch.is_grad_enabled(), "a step was taken"

    first = everything(checkpoint_dir=tmp_path, max_epochs=3)
    before = sorted(tmp_path.iterdir())
    again = everything(checkpoint_dir=tmp_path, max_epochs=3, before_call=never)
    assert_same_run(again, first)
    assert sorted(tmp_path.iterdir()) == before
    continued, expected = everything(checkpoint_dir=tmp_path), everything()
    extra = continued.history.validation_loss[2]  # a validation that the run of 6 epochs did not do
    assert np.isfinite(extra)
    expected.history.validation_loss[2] = extra
    assert_same_run(continued, expected)
    with pytest.raises(ValueError, match="max_epochs: expected at least 6"):
        everything(checkpoint_dir=tmp_path, max_epochs=5)


@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_validation_at_the_end_does_not_change_how_a_run_goes_on(tmp_path, first):
    """No loss falls to a tenth: each validation that counts, but the first, halves the rate."""
    options = {
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=0.9
        ),
        "scheduler_interval": "epoch",
        "patience": 3,
        "min_delta": 1e6,
        "max_epochs": 20,
    }
    everything(checkpoint_dir=tmp_path, **{**options, "max_epochs": first})
    continued, expected = everything(checkpoint_dir=tmp_path, **options), everything(**options)
    assert expected.stopped_early
    assert len(set(expected.history.learning_rate)) > 2
    expected.history.validation_loss[first - 1] = continued.history.validation_loss[first - 1]
    assert_same_run(continued, expected)


def test_an_early_stop_stays_stopped(tmp_path):
    options = {"patience": 1, "min_delta": 1e6, "validate_every": 1, "checkpoint_dir": tmp_path}
    first, again = everything(**options), everything(**options)
    assert first.stopped_early
    assert first.num_epochs == 2
    assert_same_run(again, first)


@pytest.mark.parametrize("file", ["tensors.pt", "state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, file):
    with pytest.raises(KeyboardInterrupt):
        everything(checkpoint_dir=tmp_path, before_call=interrupt(at_call=22))
    oldest, newest = sorted(tmp_path.glob("checkpoint-*"))
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged and not used"):
        result = everything(checkpoint_dir=tmp_path)
    assert oldest.name < newest.name
    assert_same_run(result, everything())


def with_state(content, **changes):
    return json.dumps({**json.loads(content), **changes})


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "",
        lambda content: "null",
        lambda content: "[]",
        lambda content: '{"format": 1}',
        lambda content: with_state(content, state=7),
        lambda content: with_state(content, state={"dict": []}),
        lambda content: with_state(content, state={"dict": 7}, sha256=None),
        lambda content: with_state(content, config=None),
        lambda content: with_state(content, config={}),
        lambda content: content.replace('"step"', '"stop"'),
    ],
)
def test_a_state_of_another_form_is_damaged(tmp_path, change):
    directory = CheckpointDirectory(tmp_path, {"size": 1})
    directory.save({"step": 1})
    newest = directory.save({"step": 2}) / "state.json"
    newest.write_text(change(newest.read_text()))
    with pytest.warns(UserWarning, match="checkpoint-00000001 is damaged and not used"):
        assert directory.load() == {"step": 1}


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_dead_process_was_writing_is_removed_and_nothing_else(tmp_path):
    begin = f".partial-{socket.gethostname()}"
    names = {"dead": f"{begin}-{dead_process()}-1", "living": f"{begin}-{os.getppid()}-1"}
    names |= {"elsewhere": ".partial-elsewhere-1-1", "foreign": f"{begin}-notes"}
    for name in names.values():
        (tmp_path / name).mkdir()
    CheckpointDirectory(tmp_path, {}).save({"step": 1})
    left = {path.name for path in tmp_path.iterdir()} - {"checkpoint-00000000"}
    assert left == {name for who, name in names.items() if who != "dead"}


def test_two_runs_that_save_at_once_keep_out_of_each_others_way(tmp_path, monkeypatch):
    first, second = (CheckpointDirectory(tmp_path, {}) for _ in range(2))
    rename, calls = Path.rename, []

    def interleaved(path, target):
        calls.append(target)
        if len(calls) == 1:
            second.save({"step": 2})
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interleaved)
    first.save({"step": 1})
    assert [path.name[-1] for path in calls] == ["0", "0", "1"]
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["0", "1"]
    assert first.load() == {"step": 1}


def test_a_checkpoint_that_was_not_finished_is_not_seen(tmp_path, monkeypatch):
    """The disk fills up while the third checkpoint is written."""
    save, calls = torch.save, []

    def fails(tensors, path):
        calls.append(path)
        save(tensors, path)
        if len(calls) == 3:
            raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails)
        with pytest.raises(OSError, match="no space"):
            everything(checkpoint_dir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-00000000",
        "checkpoint-00000001",
    ]
    assert_same_run(everything(checkpoint_dir=tmp_path), everything())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "batch_size: expected 5 as saved, got 4"),
        ({"clip_norm": 2.0}, "clip_norm: expected 1.0 as saved, got 2.0"),
        ({"ema_decay": None}, "ema_decay: expected 0.9 as saved, got None"),
        ({"scheduler": None}, "scheduler: expected {.*StepLR.* as saved, got None"),
        ({"optimizer": torch.optim.Adagrad}, "optimizer: expected {.*Adam.*got {.*Adagrad"),
        ({"shuffle": False}, "shuffle: expected True as saved, got False"),
        ({"precision": "64-true"}, "precision: expected 32-true"),
    ],
)
def test_another_configuration_is_refused(tmp_path, options, message):
    everything(checkpoint_dir=tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=message) as caught:
        everything(checkpoint_dir=tmp_path, max_epochs=1, **options)
    assert "resume=False" in str(caught.value)


def test_another_seed_and_other_data_are_refused(tmp_path, monkeypatch):
    import pyro

    from tests.training import programs

    everything(checkpoint_dir=tmp_path, max_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(pyro, "set_rng_seed", lambda seed: torch.manual_seed(seed + 1))
        with pytest.raises(ValueError, match="seed: expected 3 as saved, got 4"):
            everything(checkpoint_dir=tmp_path, max_epochs=1)
    other = programs.data(32).flip(0)
    monkeypatch.setattr(programs, "data", lambda n: other)
    with pytest.raises(ValueError, match="data checksum: expected"):
        everything(checkpoint_dir=tmp_path, max_epochs=1)


def test_starting_anew_replaces_the_old_run(tmp_path):
    everything(checkpoint_dir=tmp_path, batch_size=4)
    result = everything(checkpoint_dir=tmp_path, resume=False)
    assert_same_run(result, everything())
    assert counters(tmp_path)["step"] == result.num_steps
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoints_hold_tensors_and_json_only(tmp_path):
    result = everything(checkpoint_dir=tmp_path)
    newest = max(tmp_path.glob("checkpoint-*"))
    assert sorted(path.name for path in newest.iterdir()) == ["state.json", "tensors.pt"]
    tensors = torch.load(newest / "tensors.pt", weights_only=True)
    assert {type(value) for value in tensors.values()} == {torch.Tensor}
    content = json.loads((newest / "state.json").read_text())
    assert content["config"]["batch_size"] == 5
    weight = tensors["best.module.model.decoder.weight"]
    assert torch.equal(weight, result.model.decoder.weight)


def interrupt(at_call):
    def before_call(call):
        if call == at_call:
            os.kill(os.getpid(), signal.SIGINT)

    return before_call


def test_ctrl_c_ends_the_step_and_saves(tmp_path):
    options = {"checkpoint_dir": tmp_path, "checkpoint_interval": 1e9}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after step \d+; call fit again to continue"):
        everything(before_call=interrupt(at_call=22), **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert 0 < counters(tmp_path)["batch"] < 7
    assert_same_run(everything(**options), everything())


def test_ctrl_c_without_checkpoints():
    with pytest.raises(KeyboardInterrupt, match="no checkpoint was kept"):
        everything(before_call=interrupt(at_call=22))


def test_a_second_ctrl_c_interrupts_at_once():
    def twice(call):
        if call == 22:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        everything(before_call=twice)
    assert str(caught.value) == ""  # not the message of an orderly end


def test_a_loader_continues_bit_for_bit(tmp_path):
    from torch.utils.data import DataLoader, TensorDataset

    from tests.training import programs

    def run(**options):
        model, guide = programs.local_pair()
        guide.before_call = options.pop("before_call", guide.before_call)
        programs.pyro.set_rng_seed(6)
        loader = DataLoader(TensorDataset(programs.data(32)), batch_size=5, shuffle=True)
        result = programs.fit(
            model, guide, loader, loss=programs.Trace_ELBO(), max_epochs=3, ema_decay=0.5,
            progress=False, **options,
        )  # fmt: skip
        return result

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, before_call=interrupt(at_call=12))
    assert 0 < counters(tmp_path)["batch"] < 7
    assert_same_run(run(checkpoint_dir=tmp_path), run())


def test_a_state_survives_packing():
    state = {
        "none": None, "infinite": float("inf"), "tenth": 0.1, "yes": True, 3: "three",
        "nested": [(1, torch.arange(3)), {}], "view": torch.arange(10)[4:6],
    }  # fmt: skip
    tree, tensors = pack(state)
    back = unpack(json.loads(json.dumps(tree, allow_nan=False)), tensors)
    assert {key: back[key] for key in ("none", "infinite", "tenth", "yes", 3)} == {
        key: state[key] for key in ("none", "infinite", "tenth", "yes", 3)
    }
    assert isinstance(back["nested"][0], tuple)
    assert torch.equal(back["nested"][0][1], torch.arange(3))
    assert tensors["view"].untyped_storage().nbytes() == 2 * 8
    with pytest.raises(TypeError, match=r"at 'a\.0', got function"):
        pack({"a": [lambda: None]})


def test_the_last_two_are_kept(tmp_path):
    directory = CheckpointDirectory(tmp_path / "deep" / "run", {"size": 1})
    assert directory.load() is None
    for number in range(4):
        directory.save({"number": number})
    assert directory.load() == {"number": 3}
    assert sorted(path.name[-1] for path in directory.path.iterdir()) == ["2", "3"]
