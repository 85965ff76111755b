"""A function of one chain as a function of all, by ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from pyro.ops.einsum import torch_log
from torch import Tensor
from torch.distributions import transforms
from torch.overrides import TorchFunctionMode

from pyrogen.errors import GraphError

__all__ = ["other_words", "vectorized"]


def vectorized(function: Callable[[Tensor], Tensor], chains: Tensor) -> Tensor:
    """``function`` of each row, each with random numbers of its own.

    Raises:
        GraphError: if the function does what cannot be vectorised.
    """
    try:
        values: Tensor = torch.func.vmap(function, randomness="different")(chains)
    except RuntimeError as error:
        message = str(error)
        if isinstance(error, GraphError) or not ("vmap" in message or "functorch" in message):
            raise
        reason = message.splitlines()[0]
        raise GraphError(
            f"the model cannot be vectorised over chains: {reason} Use tensor operations instead "
            "of what depends on values (boolean indexing, .item()), or compile=False, which runs "
            "the chains one by one"
        ) from error
    return values


@contextmanager
def other_words() -> Iterator[None]:
    """While a model is recorded: what torch and Pyro do inside and ``vmap`` has no rule for.

    Entered before the recording, so that its own watch sees each call first.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(transforms, "tril_matrix_to_vec", _lower_part))
        stack.enter_context(mock.patch.object(transforms, "vec_to_tril_matrix", _from_lower_part))
        stack.enter_context(mock.patch.object(torch_log, "safe_log", _safe_log))
        stack.enter_context(_Vectorizable())
        yield


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class _Vectorizable(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _DATA:
            return args[0].detach()
        if func is Tensor.__setitem__ and _is_mask_of(args[1], args[0]) and _is_number(args[2]):
            return args[0].masked_fill_(args[1], args[2])
        if func is torch.linalg.solve_triangular and (kwargs or {}).get("out") is None:
            return _solve_triangular(*args, **kwargs)
        return func(*args, **(kwargs or {}))


def _solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    if not left:  # X A = B is A' X' = B'
        flags = {"upper": not upper, "unitriangular": unitriangular}
        return _solve_triangular(a.mT, b.mT, **flags).mT
    solution: Tensor = _SolveTriangular.apply(a, b, upper, unitriangular)
    return solution


class _SolveTriangular(torch.autograd.Function):
    """``A X = B``. ``vmap`` alone would copy a matrix common to all chains for each of them."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, upper: bool, unitriangular: bool) -> Tensor:
        flags = {"upper": upper, "unitriangular": unitriangular}
        solution: Tensor = torch.linalg.solve_triangular(a, b, **flags)
        return solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.upper, ctx.unitriangular = inputs[2:]
        ctx.save_for_backward(inputs[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, solution = ctx.saved_tensors
        of_b = torch.linalg.solve_triangular(
            a.mH, gradient, upper=not ctx.upper, unitriangular=ctx.unitriangular
        )
        diagonal = int(ctx.unitriangular)
        of_a = -of_b @ solution.mH
        of_a = of_a.triu(diagonal) if ctx.upper else of_a.tril(-diagonal)
        return of_a.sum_to_size(a.shape), of_b.sum_to_size(b.shape), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor, *flags: bool
    ) -> tuple[Tensor, int]:
        """Chains that share the matrix are columns of one right-hand side."""
        of_a, of_b = in_dims[:2]
        if of_a is None and of_b is not None:
            columns = b.movedim(of_b, -1)
            solution = _SolveTriangular.apply(a, columns.flatten(-2), *flags)
            return solution.unflatten(-1, columns.shape[-2:]), -1
        rank = max(a.dim() - (of_a is not None), b.dim() - (of_b is not None))
        a, b = _in_front(a, of_a, rank), _in_front(b, of_b, rank)
        return _SolveTriangular.apply(a, b, *flags), 0


def _in_front(tensor: Tensor, dim: int | None, rank: int) -> Tensor:
    """The dimension ``dim`` before all others, of which there are ``rank``."""
    if dim is None:
        return tensor
    moved = tensor.movedim(dim, 0)
    missing = (1,) * (rank + 1 - moved.dim())
    return moved.reshape(moved.shape[0], *missing, *moved.shape[1:])


def _is_mask_of(index: Any, tensor: Tensor) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == tensor.shape


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _lower_part(mat: Tensor, diag: int = 0) -> Tensor:
    """As torch's ``tril_matrix_to_vec``, which indexes by a mask."""
    rows, columns = torch.tril_indices(mat.shape[-2], mat.shape[-1], diag, device=mat.device)
    return mat[..., rows, columns]


def _from_lower_part(vec: Tensor, diag: int = 0) -> Tensor:
    """As torch's ``vec_to_tril_matrix``, which indexes by a mask."""
    shift = 1 + 2 * diag
    root = (shift**2 + 8 * vec.shape[-1] + 4 * abs(diag) * (diag + 1)) ** 0.5
    size = round((root - shift) / 2)
    rows, columns = torch.tril_indices(size, size, diag, device=vec.device)
    matrix = vec.new_zeros((*vec.shape[:-1], size * size))
    place = (rows * size + columns).expand(vec.shape)
    return matrix.scatter(-1, place, vec).reshape((*vec.shape[:-1], size, size))


def _safe_log(x: Tensor) -> Tensor:
    """As Pyro's, whose gradient at 0 is finite; there it is 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).log(), -torch.inf)
