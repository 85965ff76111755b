"""What ``vmap`` has no rule for, or a slow one, in other words."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrogen.kernels._vectorize import _SolveTriangular, other_words

CHAINS = 5


def solve(a: Tensor, b: Tensor, upper: bool, left: bool, unit: bool) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(
        a, b, upper=upper, left=left, unitriangular=unit
    )
    return solution


def triangular(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) + 3 * torch.eye(shape[-1], dtype=torch.float64)


def gradients(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    solution = function(a, b)
    weights = torch.linspace(-1, 1, solution.numel(), dtype=b.dtype).reshape(solution.shape)
    return solution, *torch.autograd.grad((weights * solution).sum(), (a, b))


@pytest.mark.parametrize(
    ("upper", "left", "unit"), list(itertools.product([False, True], repeat=3))
)
@pytest.mark.parametrize("of_a", [None, 0, 1], ids=lambda dim: f"matrix_{dim}")
@pytest.mark.parametrize("of_b", [None, 0, 2], ids=lambda dim: f"side_{dim}")
def test_triangular_systems(
    upper: bool, left: bool, unit: bool, of_a: int | None, of_b: int | None
) -> None:
    """Value and both gradients as torch's, matrices common to the chains or not."""
    part = torch.triu if upper else torch.tril
    a = part(triangular(4, 4) if of_a is None else triangular(CHAINS, 4, 4))
    shape = (2, 4, 3) if left else (2, 3, 4)
    b = torch.randn(*shape if of_b is None else (CHAINS, *shape), dtype=torch.float64)
    a = a if of_a is None else a.movedim(0, of_a)
    b = b if of_b is None else b.movedim(0, of_b)

    def of_one(a: Tensor, b: Tensor) -> Tensor:
        return solve(a, b, upper, left, unit)

    def of_all(a: Tensor, b: Tensor) -> Tensor:
        if of_a is None and of_b is None:
            return of_one(a, b)
        found: Tensor = torch.func.vmap(of_one, in_dims=(of_a, of_b))(a, b)
        return found

    expected = gradients(of_all, a, b)
    with other_words():
        found = gradients(of_all, a, b)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_matrix_common_to_the_chains_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chains are columns of one system."""
    shapes = []
    solver = torch.linalg.solve_triangular

    def watched(a: Tensor, b: Tensor, **flags: bool) -> Tensor:
        shapes.append((tuple(a.shape), tuple(b.shape)))
        solution: Tensor = solver(a, b, **flags)
        return solution

    a, b = triangular(4, 4).tril(), torch.randn(CHAINS, 4, 1, dtype=torch.float64)
    monkeypatch.setattr(torch.linalg, "solve_triangular", watched)
    torch.func.vmap(lambda side: _SolveTriangular.apply(a, side, False, False))(b)
    assert shapes == [((4, 4), (4, CHAINS))]
