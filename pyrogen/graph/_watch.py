"""What is forbidden to a program while it is recorded, and what is answered in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from pyro.infer.util import Dice
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import warn_if_inf, warn_if_nan
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyrogen.errors import GraphError

__all__ = ["Watch", "explain", "refuse_dynamic_shapes"]


class Watch(TorchFunctionMode):
    """Watches torch's functions while a program is recorded.

    It keeps, for every tensor, the names of the sites and arguments it was computed from, so that a
    forbidden read can name them; collects ``backward`` calls instead of running them; and lets
    Pyro's objectives take the value of their own loss, as a tensor.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.objectives: list[Tensor] = []
        self.sites = _NameSites(self)
        self.ranges: set[int] = set()  # the indices of plates that take all of their elements
        self._origins: dict[int, frozenset[str]] = {}
        self._made: set[int] = set()  # where the program's own results lie in memory
        self._alive: list[Tensor] = []  # so that no id is used twice
        for i, tensor in enumerate(inputs):
            self.name(tensor, f"tensor argument {i}")

    def name(self, tensor: Tensor, name: str) -> None:
        self._alive.append(tensor)
        self._origins[id(tensor)] = frozenset([name])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        caller = sys._getframe(1)
        if func is Tensor.backward:
            self.objectives.append(args[0])
            return None
        if func in _READS:
            return self._read(func, args, kwargs, caller)
        if (stand_in := self._stand_in(func, args, caller)) is not None:
            func = stand_in
        elif func in _DYNAMIC or (func is Tensor.__getitem__ and _has_mask(args[1])):
            raise GraphError(self._message("the shape of a tensor", args))
        result = func(*args, **kwargs)
        self._inherit(result, args, kwargs)
        return result

    def check_captured(self, captured: Sequence[Tensor]) -> None:
        """Refuses to take for an input of the graph what the program itself computed."""
        for tensor in captured:
            if _memory([tensor]) & self._made:
                raise GraphError(
                    f"a tensor of shape {list(tensor.shape)} was computed in a way that cannot be "
                    "recorded (such as torch.nn.Parameter or DLPack of a result); expected "
                    "operations of torch on tensors. Make parameters outside of the program, or "
                    "run it uncompiled"
                )

    def _inherit(self, result: Any, args: Any, kwargs: Any) -> None:
        outputs = _tensors(result)
        if outputs:
            inputs = _tensors((args, kwargs))
            origin = self._origin(inputs)
            for output in outputs:
                self._alive.append(output)
                self._origins.setdefault(id(output), origin)
            self._made |= _memory(outputs) - _memory(inputs)

    def _stand_in(self, func: Any, args: Any, caller: FrameType) -> Callable[..., Any] | None:
        """What does the same as ``func`` without reading values, where code of torch or Pyro is
        known to read them for no more than a check or a short cut."""
        if func is Tensor.unbind and id(args[0]) in self.ranges and _called_from(_PLATES):
            return _range
        if func is Tensor.register_hook and _called_from(_WARNINGS):
            return _no_hook
        if func is Tensor.masked_select and caller.f_code is _DICE:
            return _zero_elsewhere
        if func is torch.nn.functional.one_hot:
            return _one_hot
        return None

    def _origin(self, values: Any) -> frozenset[str]:
        origins = (self._origins.get(id(x), frozenset()) for x in _tensors(values))
        return frozenset().union(*origins)

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: Any, frame: Any) -> Any:
        """A tensor's value is wanted in Python: allowed to Pyro's objectives and to constants."""
        if frame.f_code in _ANSWERS:
            return _ANSWERS[frame.f_code]
        if func is Tensor.item and _is_objective(frame.f_globals.get("__name__", "")):
            return args[0].detach()
        tensors = [x for x in args if isinstance(x, Tensor)]
        made_here = all(id(x) in self._origins and not x.requires_grad for x in tensors)
        if not made_here or self._origin(args):
            raise GraphError(self._message("a Python value", args))
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            raise GraphError(self._message("a Python value", args)) from error

    def _message(self, what: str, args: tuple[Any, ...]) -> str:
        origin = ", ".join(sorted(self._origin(args)))
        frame = _user_frame()
        return explain(
            what,
            f"{origin or 'a parameter, a buffer, a constant or an unnamed random number'} "
            f"({frame.f_code.co_filename}:{frame.f_lineno})",
        )


class _NameSites(Messenger):
    """Tells a :class:`Watch` which tensors are the values of sample sites."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def _pyro_post_sample(self, msg: Any) -> None:
        value, fn = msg["value"], msg["fn"]
        if isinstance(fn, _Subsample) and (fn.subsample_size or fn.size) >= fn.size:
            self._watch.ranges.add(id(value))
        elif isinstance(value, Tensor):
            self._watch.name(value, f"site {msg['name']!r}")


_READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__array__,
    Tensor.__contains__,
    Tensor.equal,
    Tensor.allclose,
    torch.equal,
    torch.allclose,
    torch.is_nonzero,
}
_DYNAMIC = {
    torch.nonzero,
    torch.argwhere,
    torch.masked_select,
    torch.unique,
    torch.unique_consecutive,
    torch.bincount,
    Tensor.nonzero,
    Tensor.argwhere,
    Tensor.masked_select,
    Tensor.unique,
    Tensor.unique_consecutive,
    Tensor.bincount,
}
# Pyro looks for NaN in its losses, whatever the validation flags say.
_WARNINGS = {warn_if_nan.__code__, warn_if_inf.__code__}
_PLATES = {IndepMessenger.__iter__.__code__}
# Pyro's expectation over enumerated sites leaves out terms of probability zero, whose cost may be
# infinite; in a graph their probability and cost become zero instead.
_DICE = Dice.compute_expectation.__code__
# What code of torch and Pyro is told when it asks for a truth value: there is no NaN, the values
# that an instance insists on validating are valid, and there may be terms of probability zero.
_ANSWERS = {
    **dict.fromkeys(_WARNINGS, False),
    torch.distributions.Distribution.__init__.__code__: True,
    torch.distributions.Distribution._validate_sample.__code__: True,
    _DICE: False,
}


def explain(what: str, origin: str) -> str:
    return (
        f"the structure of the program depends on {what} that differs from call to call, computed "
        f"from {origin}; expected static structure. Use tensor operations instead (torch.where, "
        "poutine.mask), or run it uncompiled (an ELBO without Compiled, a kernel by compile=False)"
    )


def _is_objective(module: str) -> bool:
    return module.startswith(("pyro.infer.", "pyrogen.losses"))


def _called_from(codes: set[CodeType], depth: int = 5) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and depth:
        if frame.f_code in codes:
            return True
        frame, depth = frame.f_back, depth - 1
    return False


def _range(indices: Tensor, dim: int = 0) -> tuple[int, ...]:
    return tuple(range(len(indices)))


def _no_hook(tensor: Tensor, hook: Any) -> None:
    return None


def _zero_elsewhere(tensor: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, tensor, 0)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise GraphError(explain("the shape of a tensor", "one_hot without num_classes"))
    classes = torch.arange(num_classes, device=tensor.device)
    return (tensor.unsqueeze(-1) == classes).long()


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]


def _memory(tensors: Sequence[Tensor]) -> set[int]:
    """Where the values lie; nowhere for the stand-ins inside of ``torch.func`` transforms."""
    places = set()
    for tensor in tensors:
        if isinstance(tensor, FakeTensor):
            continue
        try:
            places.add(tensor.untyped_storage().data_ptr())
        except (RuntimeError, NotImplementedError):
            continue
    return places - {0}


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in parts)


def _user_frame() -> Any:
    """The innermost frame outside of torch, Pyro and this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("torch.", "pyro.", __name__)
    ):
        frame = frame.f_back
    return frame


def refuse_dynamic_shapes(module: torch.fx.GraphModule) -> None:
    """Catches by their tag what went past the watch: operations of value-dependent shape."""
    for node in module.graph.nodes:
        tags = getattr(node.target, "tags", ())
        indexing = node.target is torch.ops.aten.index.Tensor  # dynamic by a mask only
        if torch.Tag.dynamic_output_shape in tags and not indexing:
            raise GraphError(explain("the shape of a tensor", f"the operation {node.target}"))
