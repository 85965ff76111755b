"""The encoder of irregular series: what it sees, and what it must not see."""

from __future__ import annotations

import pytest
import torch

from pyrogen.nn import BackwardGRU

GRID = torch.linspace(0, 1, 11)[:-1]


def series(n=4, observations=6, features=2):
    values = torch.randn(n, observations, features)
    times = torch.rand(n, observations).sort(-1).values
    mask = torch.rand(n, observations, features) > 0.4
    return values, times, mask


def test_what_is_masked_is_not_seen():
    encoder = BackwardGRU(2, 8)
    values, times, mask = series()
    context, summary = encoder(values, times, mask, GRID)
    other = torch.where(mask, values, torch.full_like(values, torch.nan))
    for got, expected in zip(encoder(other, times, mask, GRID), (context, summary), strict=True):
        assert torch.equal(got, expected)
    seen = torch.where(mask, values + 1, values)
    assert (encoder(seen, times, mask, GRID)[1] - summary).abs().max() > 1e-3


def test_a_time_without_observations_is_as_if_it_were_not_there():
    encoder = BackwardGRU(2, 8)
    values, times, mask = series()
    mask[:, [1, 4]] = False
    keep = [0, 2, 3, 5]
    shorter = encoder(values[:, keep], times[:, keep], mask[:, keep], GRID)
    for got, expected in zip(encoder(values, times, mask, GRID), shorter, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_context_knows_the_observations_after_its_time_and_no_other():
    """Against a loop over the cell, one series and one time at once."""
    encoder = BackwardGRU(2, 8)
    values, times, _ = series(n=3)
    mask = torch.ones_like(values, dtype=torch.bool)
    context, summary = encoder(values, times, mask, GRID)
    for i in range(3):
        for k, now in enumerate(GRID):
            state, ahead = torch.zeros(1, 8), None
            for j in range(5, -1, -1):
                if times[i, j] <= now:
                    break
                gap = 0.0 if ahead is None else ahead - times[i, j]
                read = torch.cat([values[i, j], torch.ones(2), torch.as_tensor([gap])])
                state, ahead = encoder.cell(read.unsqueeze(0), state), times[i, j]
            tail = [0.0, 0.0] if ahead is None else [ahead - now, 1.0]
            expected = torch.cat([state[0], torch.tensor(tail)])
            torch.testing.assert_close(context[i, k], expected)
    first, _ = encoder(values, times, mask, torch.tensor([-1.0]))
    torch.testing.assert_close(first[:, 0, :8], summary)


def test_shared_times_are_those_of_each_series():
    encoder = BackwardGRU(2, 8)
    values, times, mask = series()
    shared = encoder(values, times[0], mask, GRID)
    own = encoder(values, times[:1].expand(4, 6), mask, GRID)
    for got, expected in zip(shared, own, strict=True):
        torch.testing.assert_close(got, expected)


def test_what_does_not_fit_is_refused():
    encoder = BackwardGRU(2, 8)
    values, times, mask = series()
    with pytest.raises(ValueError, match=r"values of shape \[n, K, 2\], got \[4, 6, 1\]"):
        encoder(values[..., :1], times, mask, GRID)
    with pytest.raises(ValueError, match=r"times of shape \[6\] or \[4, 6\], got \[5\]"):
        encoder(values, times[0, :5], mask, GRID)
    with pytest.raises(ValueError, match=r"a mask of booleans .* got torch.float32"):
        encoder(values, times, mask.float(), GRID)
    with pytest.raises(ValueError, match="features, hidden: expected positive integers"):
        BackwardGRU(0, 8)
