# Everything runs in .venv, with the tested versions of constraints.txt. A machine needs Python 3.11 to 3.13 and make, no more.
# The environment is made once, and again only when pyproject.toml or constraints.txt changes.

# The first of these that runs. Another: make test PYTHON=/path/to/python3
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13; do $$name -c '' 2>/dev/null && echo $$name && exit; done; \
	echo python3)
# One of PyTorch's package indexes: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu takes 0.8 GB of disk, not 4.5
TORCH_INDEX ?=
# Some of the tests, and options of pytest: make test TESTS="tests/unit -x"
TESTS ?=
# Tests that start no swarm disturb nobody, so every core takes some. Those with real swarms have the machine to themselves.
ALONE := tests/unit tests/sim
# Both halves, or one of them: make test PARTS=alone
PARTS ?= alone swarms
# More options for the demo: make demo ARGS="--steps 100 --kill 3@20"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TREE := $(VENV)/tree/understudy
PACKAGES := protocol node bootstrap
QUICK := build/study-quick
NEEDED := 3.11 to 3.13
HAS_NEEDED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
# pip draws its progress where somebody watches; a log gets the lines of the setup, and errors.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(shell test -t 2 || echo -qq) -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test some alone swarms containers image study study-quick lint check clean

help:  ## list the targets (default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## create .venv and install the tested versions
	@echo "$(VENV) is ready: $(BIN)/understudy --help"

demo: $(STAMP)  ## train a whole swarm on this machine, kill a peer, watch it go on
	@$(BIN)/understudy local $(ARGS)

test: $(if $(TESTS),some,$(PARTS))  ## run all tests; those in containers where an engine answers

some: $(STAMP)
	@$(BIN)/python -m pytest $(TESTS)

alone: $(STAMP)  ## run the tests that start no swarm, on every core
	@$(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 8 --dist worksteal $(ALONE)

swarms: $(STAMP)  ## run the others, one after the other
	@$(BIN)/python -m pytest --durations 15 tests $(ALONE:%=--ignore=%)

containers: $(STAMP)  ## run the tests in containers alone
	@$(BIN)/python -m pytest tests/containers

image:  ## build the container image
	@DOCKER_BUILDKIT=0 docker build --quiet --network host -t understudy .

study: $(STAMP)  ## compare the ways of recovering (hours; resumes where it was stopped), write docs/results.md
	@$(BIN)/python -m benchmarks.convergence run
	@$(BIN)/python -m benchmarks.convergence report

study-quick: $(STAMP)  ## the same with a toy model: does the study still run?
	@rm -rf $(QUICK) && mkdir -p $(QUICK) && cp docs/results.md $(QUICK)
	@$(BIN)/python -m benchmarks.convergence run --quick --folder $(QUICK)
	@$(BIN)/python -m benchmarks.convergence report --folder $(QUICK) --page $(QUICK)/results.md --pictures $(QUICK)

lint: $(STAMP)  ## ruff (rules and format) and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint test  ## lint, then test: what has to pass before a change goes in

clean:  ## remove caches and build output (keeps .venv, runs and found counterexamples)
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name $(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# An existing .venv is kept. One without a working pip (a venv that failed half-way) is completed in place.
$(BIN)/python:
	@$(PYTHON) -c '' 2>/dev/null || { \
		echo "make: '$(PYTHON)' does not run: install Python $(NEEDED), or name one: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c '$(HAS_NEEDED)' || { \
		echo "make: '$(PYTHON)' is $$($(PYTHON) -V), and Understudy needs $(NEEDED):" \
			"install it, or name one: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: '$(PYTHON)' lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; } >&2
	@echo "setup 1/3: creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -c '$(HAS_NEEDED)' || { \
		echo "make: $(VENV) does not hold Python $(NEEDED): remove it (rm -rf $(VENV)) and run make again"; exit 1; } >&2
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null || { \
		echo "make: $(VENV) has no pip: remove it (rm -rf $(VENV)) and run make again"; exit 1; } >&2
	@echo "setup 2/3: installing PyTorch, the largest package (minutes where it has to be downloaded)"
	@$(PIP_INSTALL) torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@echo "setup 3/3: installing the other packages"
	@$(PIP_INSTALL) -e '.[dev]'
	@mkdir -p $(TREE) && ln -sfn $(foreach package,$(PACKAGES),$(CURDIR)/$(package)) $(TREE)
	@touch $@
