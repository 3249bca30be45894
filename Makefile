# Needs Python 3.11 or newer and the package index; nothing else. Every target makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test lint types fast toolchain docs clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed (make PYTHON=python3.12)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(STAMP)

demo: venv
	$(BIN)/qexport demo --out demo-out --overwrite

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

fast: venv
	$(BIN)/python -m pytest -m "not slow"

docs: venv
	$(BIN)/python -m qexport.cli.reference docs

clean:
	rm -rf demo-out .mypy_cache .ruff_cache .pytest_cache
