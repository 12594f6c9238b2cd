# The README's two commands. Each makes its own .venv where there is none and installs what it needs with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fast lint bench clean

demo: $(VENV)/.local
	$(BIN)/orchestrate submit mlp --data sample:mnist

test: $(VENV)/.dev
	ORCHESTRATE_REQUIRE_SAMPLES=1 $(BIN)/pytest -n 2 -q

fast: $(VENV)/.dev
	$(BIN)/pytest -n 2 -q -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/package.py
	$(BIN)/python benchmarks/mlp.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("orchestrate needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: pyproject.toml $(VENV)/bin/python
	@echo "installing orchestrate with torch (the first time: some minutes)"
	$(BIN)/python -m pip install --quiet --editable '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/bin/python
	@echo "installing orchestrate with torch and the test tools (the first time: some minutes)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.local

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
