# Every target does its own set-up: a virtual environment in the checkout, pinned dependencies, the run.
#   make demo                       the first comparison, end to end
#   make test PYTHON=python3.13     the suite on another Python, in its own environment

PYTHON ?= python3.11
VENV ?= .venv-$(notdir $(PYTHON))
RUN := $(VENV)/bin
READY := $(VENV)/.ready
OUTPUT ?= runs/demo

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
export CUBLAS_WORKSPACE_CONFIG = :4096:8

.PHONY: demo test test-slow sweep census lint typecheck wheel clean help

help:
	@sed -n 's/^#   //p' Makefile; echo "targets: demo test test-slow sweep census lint typecheck wheel clean"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# One thread: this model is too small to gain much from two, and two wait for each other when the machine is not idle.
demo: $(READY)
	OMP_NUM_THREADS=1 $(RUN)/precond compare digits --output $(OUTPUT) --overwrite

# One thread for each of the two workers: more would wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY)
	$(RUN)/python -m pytest -m slow

# Every attention of the installed libraries: how it is converted, then the proof that it is right.
sweep: $(READY)
	OMP_NUM_THREADS=1 $(RUN)/precond sweep -j 2
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 -m slow tests/conversion --ignore tests/conversion/test_sweep.py

# What detection finds in other packages, in an environment of its own; see tools/census/README.md.
census: .venv-census/.ready
	OMP_NUM_THREADS=1 .venv-census/bin/python tools/census/census.py --page docs/support.md

.venv-census/.ready: tools/census/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-census
	.venv-census/bin/python -m pip install --quiet --no-deps --requirement tools/census/requirements.txt
	.venv-census/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

typecheck: $(READY)
	$(RUN)/mypy

# Source distribution and wheel; then the wheel without extras, in a new environment and away from the checkout.
wheel: $(READY)
	rm -rf dist .venv-wheel
	$(RUN)/python -m build --dependency-constraints-txt constraints.txt
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	.venv-wheel/bin/python -I tools/smoke_test.py
	rm -rf .venv-wheel

clean:
	rm -rf .venv-python* .venv-census .venv-wheel dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
