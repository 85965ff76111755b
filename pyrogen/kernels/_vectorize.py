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
        return func(*args, **(kwargs or {}))


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
