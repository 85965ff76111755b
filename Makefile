# make demo    train a VAE on handwritten digits, write pictures and a report to outputs/
# make test    run the tests; both targets create .venv and install what is missing
#
# torch comes from PyPI. For a smaller wheel without CUDA, name its index once:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
EXAMPLES := $(VENV)/examples.stamp
DEV := $(VENV)/dev.stamp
# One process for each core, and one thread in each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

.PHONY: demo test test-slow lint docs bench clean

demo: $(EXAMPLES)
	$(BIN)/python examples/vae_digits.py

test: $(DEV)
	$(PYTEST) -m "not slow"

test-slow: $(DEV)
	$(PYTEST) -m slow

# mypy cannot follow the mapping of models/ and guides/, so it reads the installed tree.
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --target build/site .
	cd build/site && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pyrogen

docs: $(DEV)
	$(BIN)/sphinx-build -W --keep-going -n -b html docs docs/_build/html

bench: $(DEV)
	set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/%.stamp: pyproject.toml constraints.txt setup.py | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('PyroGen needs Python >= 3.10: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
