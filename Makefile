# Start with `make demo` and `make test`. They need Python 3.11+, make, git and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LONG   := tests/chaos tests/cluster tests/conformance/test_local.py tests/integration/test_nodes.py \
          tests/integration/test_quotas.py tests/plans/test_quotas.py tests/unit/test_quotas.py
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench guard chaos docs constraints clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distier needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[tokens,minify]' --group dev
	@touch $@

demo: $(READY) ## Run agents that share one cache under memory pressure, on real text, for half a minute
	$(BIN)/distier demo

test: $(READY) ## Run all tests; those that this machine cannot run are skipped with a reason (INTERLEAVINGS=4000: three minutes less)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## Run ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

bench: $(READY) ## Compare with redis-py, glide, cashews and others in one run; writes docs/BENCHMARKS.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m tests.bench

guard: $(READY) ## Record the calls of each verb (tests/guard/counts.json), after a change that makes one cheaper or dearer
	$(BIN)/python -m tests.guard.measure

chaos: $(READY) ## Run the long modes: servers and processes that die, clusters, nodes, quotas; a quarter of an hour
	CHAOS=long $(BIN)/python -m pytest $(LONG) -n 2 --dist load

docs: $(READY) ## Generate docs/KEYSPACE.md and docs/CONFIG.md
	$(BIN)/python -m distier.domain.keyspace_doc > docs/KEYSPACE.md
	$(BIN)/python -m distier.domain.config_doc > docs/CONFIG.md

constraints: $(READY) ## Pin the installed packages, for CI
	$(BIN)/python -m pip list --format=freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel)==' > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .benchmarks build dist
