"""Products of large matrices in single precision, by oneDNN.

torch multiplies matrices on a CPU by MKL, which is made for the processors of its maker; on others
oneDNN is the faster. What it adds to a call makes small products slower.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_large", "product"]

_LARGE = 1_500_000  # multiplications, from which on oneDNN gains

_library = torch.library.Library("pyrogen", "FRAGMENT")
_library.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl(_library, "product", "CPU")
def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@torch.library.register_fake("pyrogen::product", lib=_library)  # type: ignore[untyped-decorator]
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def is_large(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is there, and made for the product of two matrices."""
    single = a.dtype == b.dtype == torch.float32
    large = a.shape[0] > 1 and a.numel() * b.shape[1] >= _LARGE
    return single and large and torch.backends.mkldnn.is_available()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias``, for matrices, and a bias for each column."""
    found: Tensor = torch.ops.pyrogen.product(a, b.t(), bias)
    return found
