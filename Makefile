# `make up` and `make test` are the whole set-up: each first makes .venv what it has to be, and does nothing when it is.

PYTHON ?= python3
# Where pip finds a CPU build of PyTorch, when its own index does not have one (README, "Set-up").
TORCH_INDEX ?=
CONFIG ?= configs/demo.yaml
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-base up test test-long check format clean

help:  ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## install everything into .venv and build the tiny model (TORCH_INDEX=URL for a CPU build of PyTorch)
	@TORCH_INDEX='$(TORCH_INDEX)' $(PYTHON) .ci/setup.py

setup-base:  ## install all but PyTorch and SGLang into .venv
	@$(PYTHON) .ci/setup.py troupe

up: setup  ## start the cluster of CONFIG (configs/demo.yaml) in the foreground
	@.venv/bin/troupe up $(CONFIG)

test: setup  ## run the tests; ARGS='-k gate -x' goes to pytest
	@.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-long: setup  ## run the tests that take minutes
	@.venv/bin/python -m pytest -m long $(ARGS)

check: setup-base  ## format, lint, strict types, layering: what a change must pass first
	@.venv/bin/ruff format --check --output-format=concise --quiet . || { echo "make format mends the layout"; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/python -m pytest -q tests/test_layering.py

format:  ## lay out all Python files
	@.venv/bin/ruff format --quiet .

clean:  ## remove .venv, the built model and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info models/tiny/model.safetensors
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
