"""The modes that programs run in: with whose parameters, for training or for evaluation, whether
the constant of a density matters.

Pyro keeps parameters in one global store, by name. A ``PyroModule`` takes from it whatever has the
name of one of its own parameters, so that two models with a parameter ``scale``, or a model and its
guide, share it. That is what ``SVI`` works with, and what :func:`local_parameters` switches off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import nn

__all__ = [
    "constants_are_free",
    "evaluation_mode",
    "local_parameters",
    "trained_parameters",
    "training_mode",
    "up_to_a_constant",
]

_UP_TO_A_CONSTANT: ContextVar[bool] = ContextVar("pyrogen_up_to_a_constant", default=False)


@contextmanager
def local_parameters(*programs: Any) -> Iterator[None]:
    """Inside, programs keep their parameters to themselves instead of in Pyro's global store.

    Example:
        >>> linear = pyro.nn.PyroModule[torch.nn.Linear](2, 1)
        >>> with local_parameters(linear):
        ...     _ = linear(torch.zeros(2))
        >>> list(pyro.get_param_store().keys())
        []
    """
    with pyro.settings.context(module_local_params=True):
        for module in _pyro_modules(programs):
            # Pyro prepares this only in modules built while the setting was on.
            if not _is_local(module):
                module._pyro_context.param_state = {"params": {}, "constraints": {}}
        yield


@contextmanager
def trained_parameters(*programs: Any) -> Iterator[None]:
    """Inside, programs run with the parameters they were trained with, wherever those are; Pyro's
    global store is afterwards as it was.

    Modules that were trained, or built, with local parameters keep to these. Otherwise the store
    has the last word, as in Pyro.

    Example:
        >>> linear = pyro.nn.PyroModule[torch.nn.Linear](2, 1)
        >>> with trained_parameters(linear):
        ...     _ = linear(torch.zeros(2))
        >>> list(pyro.get_param_store().keys())
        []
    """
    store = pyro.get_param_store()
    with ExitStack() as stack:
        if any(map(_is_local, _pyro_modules(programs))):
            stack.enter_context(local_parameters(*programs))
        stack.enter_context(store.scope(store.get_state()))
        yield


@contextmanager
def up_to_a_constant() -> Iterator[None]:
    """Inside, a density that is known up to a constant is scored without it.

    Example:
        >>> with up_to_a_constant():
        ...     constants_are_free()
        True
    """
    token = _UP_TO_A_CONSTANT.set(True)
    try:
        yield
    finally:
        _UP_TO_A_CONSTANT.reset(token)


def constants_are_free() -> bool:
    """Whether the constant of a density does not matter here; see :func:`up_to_a_constant`.

    Example:
        >>> constants_are_free()
        False
    """
    return _UP_TO_A_CONSTANT.get()


@contextmanager
def training_mode(*programs: Any) -> Iterator[None]:
    """Inside, a program in ``eval()`` mode is in ``train()`` mode. Where only some of its parts
    are in ``eval()`` mode, that was meant, and stays.

    Example:
        >>> dropout = torch.nn.Dropout().eval()
        >>> with training_mode(dropout):
        ...     dropout.training
        True
        >>> dropout.training
        False
    """
    with _kept_modes(*programs):
        for program in programs:
            if isinstance(program, nn.Module) and not program.training:
                program.train()
        yield


@contextmanager
def evaluation_mode(*programs: Any) -> Iterator[None]:
    """Inside, the programs are in ``eval()`` mode.

    Example:
        >>> dropout = torch.nn.Dropout()
        >>> with evaluation_mode(dropout):
        ...     dropout.training
        False
        >>> dropout.training
        True
    """
    with _kept_modes(*programs):
        for program in programs:
            if isinstance(program, nn.Module):
                program.eval()
        yield


@contextmanager
def _kept_modes(*programs: Any) -> Iterator[None]:
    modes = [(module, module.training) for program in programs for module in _modules(program)]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _modules(program: Any) -> list[nn.Module]:
    return list(program.modules()) if isinstance(program, nn.Module) else []


def _pyro_modules(programs: tuple[Any, ...]) -> list[PyroModule]:
    return [m for program in programs for m in _modules(program) if isinstance(m, PyroModule)]


def _is_local(module: PyroModule) -> bool:
    return hasattr(module._pyro_context, "param_state")
