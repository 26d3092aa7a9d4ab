# `make demo` and `make test` are all that a newcomer needs: Python 3.11+, make, git and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LONG   := tests/chaos tests/cluster tests/conformance/test_local.py tests/integration/test_nodes.py \
          tests/integration/test_shares.py tests/plans/test_shares.py tests/unit/test_shares.py
READY  := $(VENV)/.ready
PAGES  := $(VENV)/.docs

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench guard chaos docs site constraints clean

help: ## What can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distier needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[tokens,minify]' --group dev
	@touch $@

demo: $(READY) ## Several agents share one cache under memory pressure, on real text, for half a minute
	$(BIN)/distier demo

test: $(READY) ## All tests; what this machine lacks is skipped with a reason (INTERLEAVINGS=4000: three minutes less)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Lay out the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

bench: $(READY) ## Measure beside redis-py, glide, cashews and others in one run; writes docs/BENCHMARKS.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m tests.bench

guard: $(READY) ## Count the calls of each verb anew (tests/guard/counts.json), after a change that makes one cheaper or dearer
	$(BIN)/python -m tests.guard.measure

chaos: $(READY) ## The long modes: servers and processes that die, clusters, nodes, shares; a quarter of an hour
	CHAOS=long $(BIN)/python -m pytest $(LONG) -n 2 --dist load

docs: $(READY) ## Write the generated pages again
	$(BIN)/python -m docs.generate

$(PAGES): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	@touch $@

site: $(PAGES) ## The documentation site in site/, from docs/ and the docstrings; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: $(READY) ## Pin what is installed now, for CI
	$(BIN)/python -m pip list --format=freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel)==' > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .benchmarks build dist site
