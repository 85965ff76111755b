"""Every public class and function has an example, and every example runs.

An example may use ``torch``, ``pyro``, ``dist`` (``pyro.distributions``) and the public names of
its own module; anything else it imports.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
from dataclasses import is_dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch

from tests.modules import MODULES, PARTS

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF


def public_objects(part):
    """Yields the classes and functions that a part of the package exports."""
    module = importlib.import_module(part)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value


def stands_in_anothers_example(value):
    """Errors, records that a function returns, and abstract bases have no use by themselves."""
    return inspect.isclass(value) and (
        issubclass(value, Exception) or is_dataclass(value) or inspect.isabstract(value)
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    public = {key: getattr(module, key) for key in getattr(module, "__all__", [])}
    scope = {"torch": torch, "pyro": pyro, "dist": dist, **public}
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder().find(module, name, globs=scope):
        runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("part", PARTS)
def test_public_objects_have_an_example(part):
    lacking = []
    for name, value in public_objects(part):
        docstring = inspect.getdoc(value) or ""
        if not docstring or (">>> " not in docstring and not stands_in_anothers_example(value)):
            lacking.append(name)
    assert not lacking, f"{part}: no example in the docstring of {lacking}"


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name):
    assert importlib.import_module(name).__doc__
