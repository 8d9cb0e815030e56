# One command each; every one makes the environment it needs. Only Python >= 3.11, make and git are presupposed.
PYTHON ?= python3
VENV   ?= .venv
FIG    ?= survival

export PATH := $(abspath $(VENV))/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help env data reproduce quick test lint figure tables lock

help: ## this list
	@echo "feature-survival: what pruning does to the features inside a language model"
	@echo
	@sed -nE 's/^([a-z]+):[^#]*## (.*)$$/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo "  Change a line of params.yaml and run 'make reproduce' again: only what depends on it is recomputed."
	@echo "  Single stages: 'feature-survival --help' (in $(VENV)/bin); the graph: 'dvc dag'; what is stale: 'dvc status'."

env: $(VENV)/.complete ## the environment: every package as pinned in requirements.lock (about 2 minutes)

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python >= 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "environment: $(VENV), from requirements.lock"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

data: env ## the corpus, from the docstrings of the pinned packages (about 15 seconds), checked against data.dvc
	@feature-survival data
	@dvc status data.dvc
	@dvc status --quiet data.dvc || \
	  { echo "error: data/ is not the corpus data.dvc names; restore requirements.lock and params.yaml, or accept it: dvc commit data.dvc"; exit 2; }

reproduce: data ## the whole default grid: prune, cache, SAEs, metrics, figures; ends with the table of cells (under an hour)
	@feature-survival check
	@dvc repro
	@cat paper_figures/cells.md

quick: env ## a first look in minutes: a nano model through the same stages, in the scratch clone .quick/
	@feature-survival quick

test: env ## the test suite, a whole miniature grid included
	@python -m pytest

lint: env ## style and types
	@ruff check src tests
	@ruff format --check src tests
	@mypy

figure: env ## one figure again, e.g. make figure FIG=survival
	@feature-survival figure $(FIG)

tables: env ## the printed tables again
	@feature-survival tables

lock: env ## write requirements.lock anew from what is installed in the environment
	@{ echo "# Every version, pinned. Written by: make lock"; \
	   $(VENV)/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
