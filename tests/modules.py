"""Every module of the package, by the name it is imported by and the file it stands in.

A *part* is a module right below ``pyrogen``, such as ``pyrogen.losses``. What a part names in its
``__all__`` is public; what only the modules inside it name is internal.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "pyrogen": ROOT / "pyrogen",
    "pyrogen.models": ROOT / "models",
    "pyrogen.guides": ROOT / "guides",
}


def _module_files():
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(_module_files())
PARTS = [name for name in MODULES if re.fullmatch(r"pyrogen\.[a-z]\w*", name)]
