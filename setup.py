"""Finds the packages, so that a new subpackage needs no edit; all else is in pyproject.toml."""

from setuptools import find_packages, setup

MAPPED = {"pyrogen.models": "models", "pyrogen.guides": "guides"}

packages = find_packages(include=["pyrogen", "pyrogen.*"])
for name, folder in MAPPED.items():
    packages += [name, *(f"{name}.{child}" for child in find_packages(folder))]

setup(packages=packages, package_dir=MAPPED)
