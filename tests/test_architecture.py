"""The rules of the architecture: imports go one way, files and functions stay short.

Layers that do not exist yet are listed too, so that a new one is checked from its first file.
"""

from __future__ import annotations

import ast
import statistics

import pytest

from tests.modules import MODULES, ROOT

BASE = {"errors", "checks", "modes"}
BLOCKS = BASE | {"nn", "processes"}
PROGRAM_PARTS = BLOCKS | {"transforms", "distributions"}
# part: the parts it may import beside itself
MAY_IMPORT = {
    "errors": set(),
    "modes": set(),
    "checks": {"errors", "modes"},
    "nn": BASE,
    "processes": BASE,
    "graph": BLOCKS,
    "transforms": BLOCKS | {"graph"},
    "distributions": BLOCKS | {"graph", "transforms"},
    "kernels": PROGRAM_PARTS | {"graph"},
    "losses": PROGRAM_PARTS | {"graph", "kernels"},
    "diagnostics": PROGRAM_PARTS | {"graph", "kernels", "losses"},
    "training": PROGRAM_PARTS | {"graph", "kernels", "losses"},
    "models": PROGRAM_PARTS,
    "guides": PROGRAM_PARTS,
}
MAX_FILE, MEDIAN_FILE, MAX_FUNCTION = 600, 200, 80


SOURCES = sorted(
    path
    for folder in ("pyrogen", "models", "guides", "tests", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)


def imported_names(tree, module, is_package):
    """Yields the dotted names that a module imports; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: (1 if is_package else 0) - node.level or None]
                base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(module, source, is_package=False):
    """Lists the imports of a module's source that the layers forbid."""
    if module == "pyrogen":
        return []
    part = module.split(".")[1]
    found = []
    for name in imported_names(ast.parse(source), module, is_package):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top != "pyrogen" or (target == part and target != ""):
            continue
        if target not in MAY_IMPORT:
            found.append(f"{module} imports {name}: import a part's own path, not the package top")
        elif part not in MAY_IMPORT:
            found.append(f"{module}: give the part {part!r} a row in MAY_IMPORT")
        elif target not in MAY_IMPORT[part]:
            found.append(f"{module} imports {name}: {part} may not import {target}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    path = MODULES[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


def test_the_layers_hold_no_cycle():
    """Each part has a place such that it imports only parts before it."""
    placed = set()
    while waiting := MAY_IMPORT.keys() - placed:
        ready = {part for part in waiting if MAY_IMPORT[part] <= placed}
        assert ready, f"a cycle among {sorted(waiting)}"
        placed |= ready


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("pyrogen.models.vae", "from pyrogen.losses import Compiled", False),
        ("pyrogen.models.vae", "from pyrogen import losses", False),
        ("pyrogen.models.vae", "from ..losses import Compiled", False),
        ("pyrogen.models", "from ..losses.compiled import Compiled", True),
        ("pyrogen.guides.amortized", "import pyrogen.training", False),
        ("pyrogen.graph", "def f():\n    from pyrogen.losses import Compiled", False),
        ("pyrogen.training", "from pyrogen.models import VAE", False),
        ("pyrogen.training", "import pyrogen", False),
        ("pyrogen.training", "from pyrogen import __version__", False),
        ("pyrogen.newcomer", "from pyrogen.errors import GraphError", False),
    ],
)
def test_a_forbidden_import_is_found(module, source, is_package):
    assert len(violations(module, source, is_package)) == 1


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        (
            "pyrogen.models.vae",
            "from pyrogen.nn import MLP\nfrom pyrogen.models.base import A",
            False,
        ),
        ("pyrogen.models", "from .vae import VAE\nfrom ..nn.mlp import MLP", True),
        ("pyrogen.training", "import pyro\nfrom pyrogen.losses import Compiled", False),
    ],
)
def test_an_allowed_import_passes(module, source, is_package):
    assert violations(module, source, is_package) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1 - docstring_length(node)
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines without its docstring"


def docstring_length(node):
    if ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def test_the_median_file_is_short():
    assert (
        statistics.median(len(p.read_text().splitlines()) for p in MODULES.values()) <= MEDIAN_FILE
    )
