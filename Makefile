# One command each for set-up, tests, lint and benchmarks; every target does its own set-up in .venv (or VENV).
#   make test ARGS="-k name -x"     passes ARGS to pytest (and to the demo and the benchmarks)
#   make PYTHON=/path/to/python ... names the Python that .venv is made with
#   make VENV=.venv-3.13 ...        uses another environment than .venv, so that one for each Python stand side by side

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-alone test-aiperf chaos fuzz soak lint bench schemas reference docs package clean

VENV := .venv
export PYTHON VENV
# Tests wait for most of their time. `make test WORKERS=0` runs them in one process, for a debugger.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
IN_PARALLEL := -n $(WORKERS) --dist worksteal

BIN := $(VENV)/bin
# AIPERF is set up for `make demo`, DOCS for `make docs`; DEV is more, and counts for all.
AIPERF := $(VENV)/.stamp-aiperf
DOCS := $(VENV)/.stamp-docs
DEV := $(VENV)/.stamp-dev
BENCH := $(VENV)/.stamp-bench
INPUTS := pyproject.toml constraints-dev.txt

# AIPerf 0.12, from which the plugin can be called, in an environment of its own.
OLD := .venv-aiperf-0.12

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(AIPERF)  ## Run a real AIPerf benchmark against a mock server, followed by four consumers
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(DEV)  ## Run the tests, but for the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(IN_PARALLEL) $(ARGS)

test-slow: $(DEV)  ## Run the slow tests, but for those that measure
	@$(BIN)/python -m pytest -m "slow and not alone" $(IN_PARALLEL) --durations=30 $(ARGS)

test-alone: $(DEV)  ## Run the slow tests that measure, one after the other
	@$(BIN)/python -m pytest -m alone --durations=10 $(ARGS)

test-aiperf: $(DEV) $(OLD)/.stamp  ## Run the tests that run AIPerf with the oldest version that is known
	@PHASE_BUS_TEST_AIPERF=$(abspath $(OLD))/bin/aiperf $(BIN)/python -m pytest tests/aiperf/test_plugin_real.py \
		tests/e2e/test_aiperf.py::test_the_aggregator_agrees_with_aiperf $(ARGS)

chaos: $(DEV)  ## Faults of every kind at random, for some minutes; what consumers have against what was published
	@PHASE_BUS_CHAOS_RECORDS=1000000 PHASE_BUS_CHAOS_KILLS=120 $(BIN)/python -m pytest -m chaos tests/chaos $(ARGS)

fuzz: $(DEV)  ## Give each decoder and each socket damaged bytes, for about a minute each
	PHASE_BUS_FUZZ_FACTOR=50 $(BIN)/python -m pytest tests/fuzz --hypothesis-seed=$$(date +%s) $(ARGS)

soak: $(DEV)  ## Ten minutes in which everybody comes and goes; what each process holds, and whether it grows
	@$(BIN)/python -m benchmarks.soak

lint: $(DEV)  ## Check style, format, types, and that imports go down only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(BENCH)  ## Measure the budgets, each side by side with what it is compared to
	@$(BIN)/python benchmarks/run.py $(ARGS)

schemas: $(DEV)  ## Write schemas/ anew: JSON Schemas, AsyncAPI document, test vectors
	@$(BIN)/python -m scripts.make_schemas

reference: $(DEV)  ## Write the pages of docs/reference that are made of the code anew
	@$(BIN)/python -m scripts.reference

docs: $(DOCS)  ## Build the documentation as a site, build/docs/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

package: $(DEV)  ## Build the wheel and the sdist, and use each in an empty environment
	@PYTHON=$(abspath $(BIN))/python sh scripts/check_package.sh

clean:  ## Remove the environments, the demo's output, caches and builds
	rm -rf $(VENV) .venv .venv-* .venv*.lock demo-output dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src consumers tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(AIPERF): $(INPUTS)
	@sh scripts/setup-venv.sh aiperf $@

$(DOCS): $(INPUTS)
	@sh scripts/setup-venv.sh docs $@

$(DEV): $(INPUTS)
	@sh scripts/setup-venv.sh aiperf,dev $@ $(AIPERF) $(DOCS)

$(OLD)/.stamp: pyproject.toml constraints-aiperf-0.12.txt
	@VENV=$(OLD) CONSTRAINTS=constraints-aiperf-0.12.txt sh scripts/setup-venv.sh aiperf $@

$(BENCH): $(INPUTS)
	@sh scripts/setup-venv.sh aiperf,dev,bench $@ $(AIPERF) $(DEV) $(DOCS)
