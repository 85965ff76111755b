"""What is installed: every module of the tree under ``pyrogen``, and nothing beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pyrogen": "pyrogen", "models": "pyrogen/models", "guides": "pyrogen/guides"}
SOURCES = [ROOT / name for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE")]


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Builds the sdist from a copy of the tree, then the wheel from the sdist, without network."""
    copy = tmp_path_factory.mktemp("tree")
    for source in SOURCES:
        shutil.copy(source, copy)
    for folder in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("pyrogen", "models"):  # a new subpackage needs no edit
        (copy / folder / "brand" / "new").mkdir(parents=True)
        (copy / folder / "brand" / "__init__.py").touch()
        (copy / folder / "brand" / "new" / "__init__.py").touch()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=copy)
    return copy / "dist"


def expected_files(inside):
    names = {
        f"{inside[folder]}/brand/{name}"
        for folder in ("pyrogen", "models")
        for name in ("__init__.py", "new/__init__.py")
    }
    names |= {"pyrogen/py.typed"}
    for folder, target in inside.items():
        for path in (ROOT / folder).rglob("*.py"):
            names.add(f"{target}/{path.relative_to(ROOT / folder).as_posix()}")
    return names


def test_wheel_holds_every_module_and_nothing_else(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {"pyrogen/models/__init__.py", "pyrogen/guides/__init__.py"} <= names
    assert names == expected_files(FOLDERS)


def test_sdist_holds_every_module(dist):
    archive = next(dist.glob("*.tar.gz"))
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.removeprefix(f"{top}/") for name in sdist.getnames()}
    assert expected_files({folder: folder for folder in FOLDERS}) <= names
    assert {source.name for source in SOURCES} <= names


def test_installed_wheel_offers_only_pyrogen(dist, tmp_path):
    """Installed by itself, the wheel gives the mapped packages and no bare ``models``."""
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
        "site", str(next(dist.glob("*.whl"))), cwd=tmp_path)  # fmt: skip
    assert sorted(
        path.name for path in (tmp_path / "site").iterdir() if path.suffix != ".dist-info"
    ) == ["pyrogen"]
    script = (
        "import sys; sys.path.insert(0, 'site')\n"
        "import pyrogen.models.brand.new, pyrogen.guides\n"
        "assert 'site' in pyrogen.__file__, pyrogen.__file__\n"
    )
    run(sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", script, cwd=tmp_path)
