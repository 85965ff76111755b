"""Every public class and function has an example, and every example runs.

An example may use ``torch``, ``pyro``, ``dist`` (``pyro.distributions``) and the public names of
its own module; anything else it imports.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrogen

MODULES = ["pyrogen", *(m.name for m in pkgutil.walk_packages(pyrogen.__path__, "pyrogen."))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF


def own_public_objects(module):
    """Yields the public classes and functions that are defined in ``module`` itself."""
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        is_ours = getattr(value, "__module__", None) == module.__name__
        if is_ours and (inspect.isclass(value) or inspect.isfunction(value)):
            yield name, value


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


@pytest.mark.parametrize("name", MODULES)
def test_public_objects_have_an_example(name):
    lacking = []
    for key, value in own_public_objects(importlib.import_module(name)):
        docstring = inspect.getdoc(value) or ""
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        if not docstring or (">>> " not in docstring and not is_error):
            lacking.append(key)
    assert not lacking, f"{name}: no example in the docstring of {lacking}"


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name):
    assert importlib.import_module(name).__doc__
