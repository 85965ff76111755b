"""Two processes on a CPU, through gloo, do what one does."""

from __future__ import annotations

import pytest
import torch

from tests.training.two_processes import BATCH_SIZE, EPOCHS, noiseless
from tests.two_processes import ends_of_two_processes


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each of the two processes ended with."""
    directory = tmp_path_factory.mktemp("two")
    return ends_of_two_processes("tests.training.two_processes", directory)


@pytest.mark.parametrize("name", ["global", "local"])
@pytest.mark.parametrize("what", ["parameters", "step_loss"])
def test_the_result_is_that_of_one_process(ends, name, what):
    """Batches of 5 data are split 3 to 2, and the last, of one datum, 1 to 0.

    The same sums in another order: each of the 15 steps rounds a sum of at most 5 × 3 terms anew,
    and the learning rate times curvature, below 1, does not let errors grow. The loss in nats per
    datum is at most 100 here.
    """
    expected, got = noiseless()[name][what], ends[0][name][what]
    steps = EPOCHS * 5
    rounding = steps * BATCH_SIZE * 3 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)
    assert torch.equal(got, ends[1][name][what])


def test_validation_is_shared_out(ends):
    expected = noiseless()["local"]["validation_loss"]
    torch.testing.assert_close(ends[0]["local"]["validation_loss"], expected, rtol=1e-12, atol=0)


def test_each_process_draws_its_own_noise(ends):
    draws = torch.stack([end["noise"] for end in ends]).flatten(0, 1)
    assert len(draws.unique(dim=0)) == len(draws)


def test_both_continue_bit_for_bit(ends):
    first, second = ends
    for parameters in (first["continued"], second["whole"], second["continued"]):
        pairs = zip(first["whole"], parameters, strict=True)
        assert [torch.equal(a, b) for a, b in pairs] == [True] * 5


def test_both_keep_their_own_chains(ends):
    """3 in one process and 2 in the other, with a checkpoint in between."""
    assert [tuple(end["chains"].shape) for end in ends] == [(3, 3), (2, 3)]
    assert all(torch.equal(end["chains"], end["chains continued"]) for end in ends)
