"""Sphinx configuration: ``make docs`` builds strictly and without network."""

from __future__ import annotations

import importlib

import pyrogen

project = "PyroGen"
author = "The PyroGen contributors"
copyright = f"2026, {author}"
release = version = pyrogen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"PyroGen {version}"

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shapes", "params_style")]

# Names of other projects would need the network. Our own public names must resolve.
# Nor have names in private modules, and the records of a single kernel, a page.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyrogen\b).*"),
    (r"py:.*", r"pyrogen\.(\w+\.)*_\w+(\.\w+)?"),
    (r"py:class", r"pyrogen\.kernels\.\w+\.\w+(State|Info|Tuning)"),
]


def resolve_by_identity(app, env, node, contnode):
    """Links ``pyrogen.nn.mlp.MLP``, as in a signature, to its public name ``pyrogen.nn.MLP``."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if not module.startswith("pyrogen."):
        return None
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    domain = env.get_domain("py")
    for public, entry in domain.objects.items():
        parent, _, last = public.rpartition(".")
        if last == name and target is getattr(_module_or_none(parent), name, None):
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, entry.objtype, public, node, contnode
            )
    return None


def _module_or_none(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def setup(app):
    """Registers the handler above with Sphinx."""
    app.connect("missing-reference", resolve_by_identity)
