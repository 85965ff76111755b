"""Chains in the two processes that ``torchrun`` starts, joined through gloo."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.two_processes import NUM_CHAINS, NUM_SAMPLES, start
from tests.statistics import assert_follows
from tests.two_processes import ends_of_two_processes


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each of the two processes ended with."""
    directory = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return ends_of_two_processes("tests.kernels.two_processes", directory, launcher=launcher)


@pytest.mark.parametrize("name", ["first", "batched"])
def test_the_first_process_holds_all_chains_in_their_order(ends, name):
    """Steps of 1e-3 leave each chain within 1 of where it was told to start."""
    all_chains = ends[0][name]["x"]
    assert all_chains.shape == (NUM_CHAINS, NUM_SAMPLES, 1)
    assert (all_chains - start()["x"].unsqueeze(1)).abs().max() < 1


def test_the_second_process_keeps_its_own(ends):
    whole, own = ends[0]["first"], ends[1]["first"]
    assert own.keys() == whole.keys()
    for name, value in own.items():
        assert torch.equal(value, whole[name][4:]), name


def test_no_two_chains_share_their_noise(ends):
    """39 increments: a correlation of 0.9 between independent chains is 5 standard deviations."""
    correlation = torch.corrcoef(ends[0]["first"]["x"].squeeze(-1).diff(dim=1))
    assert (correlation - torch.eye(NUM_CHAINS)).abs().max() < 0.9


def test_a_seed_reproduces_the_run(ends):
    for end in ends:
        assert torch.equal(end["first"]["x"], end["again"]["x"])


def test_the_processes_draw_alike_after_it(ends):
    assert torch.equal(ends[0]["noise after"], ends[1]["noise after"])


def test_a_run_goes_on(ends):
    whole = ends[0]["extended"]["x"]
    assert whole.shape == (NUM_CHAINS, NUM_SAMPLES + 5, 1)
    assert torch.equal(whole[:, :NUM_SAMPLES], ends[0]["first"]["x"])
    assert (whole.diff(dim=1).abs() < 0.02).all()
    assert torch.equal(ends[1]["extended"]["x"], whole[4:])


def test_together_they_sample_the_target(ends):
    x = ends[0]["law"]
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    assert_follows(x, log_prob)


def test_a_process_without_chains_is_refused(ends):
    expected = "ValueError: num_chains: expected at least one for each of 2 processes, got 1"
    assert [end["too few"] for end in ends] == [expected] * 2


def test_a_failure_is_told_to_all(ends):
    assert ends[1]["failed"] == "ValueError: no luck"
    assert ends[0]["failed"] == "RuntimeError: process 1 of 2 failed: ValueError: no luck"
