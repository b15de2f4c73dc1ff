# Needs make and Python 3.11+ only; uv is used where it is installed, because it is faster.
# Every target sets up .venv by itself, and again only when the lock file has changed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first interpreter that is 3.11 or newer; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin
STAMP := .venv/.installed
READY := .venv/.kernel
MABWISER := build/mabwiser/.installed

# --no-deps: the lock names everything; left to resolve, pip takes the newest `coverage[toml]` that a package asks
# for instead of the locked one, and then refuses it because it has no hash. `pip check` sees what is missing.
LOCKED := --quiet --disable-pip-version-check --require-hashes --no-deps

# --no-config, --no-emit-...: the lock files must not say where this machine gets its packages from.
COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-config \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock"

.PHONY: help demo bench league test check lint types unit integration chaos soak wheel-test lock clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; install one or pass PYTHON=/path/to/python3.11" >&2; exit 1; }
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e .
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(LOCKED) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(BIN)/python -m pip check
endif
	touch $@

$(READY): $(STAMP) streams/join/_kernel.pyx hatch_build.py
	$(BIN)/python hatch_build.py
	touch $@

demo: $(READY) ## the product on real input: make demo ARGS="--part replay"
	$(BIN)/bandit-streams demo $(ARGS)

# In an environment of its own: it brings pandas and scikit-learn, and versions of NumPy that are not ours.
$(MABWISER): bench/requirements.lock
	rm -rf $(@D)
ifneq ($(UV),)
	$(UV) venv --quiet --python $(PYTHON) $(@D)
	$(UV) pip install --quiet --python $(@D)/bin/python --require-hashes -r bench/requirements.lock
else
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install $(LOCKED) -r bench/requirements.lock
	$(@D)/bin/python -m pip check
endif
	touch $@

league: $(READY) $(MABWISER) ## policies over scenarios, the tables of docs/statistics.md: make league ARGS="--runs 20"
	$(BIN)/python -m bench.league $(ARGS)

bench: $(READY) ## the join beside other engines: make bench ARGS="--exposures 100000 --contestants aiokafka,bandit-streams"
	$(BIN)/python -m bench $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy --strict

unit: $(READY) ## tests that need no broker and no patience
	$(BIN)/python -m pytest -m "not integration and not chaos and not slow"

check: lint types unit ## lint, types and unit tests: what to run before a commit

integration: $(READY) ## every test, the slow ones and a minute of faults too, on a real Kafka, with coverage
	$(BIN)/python -m pytest --cov --cov-report=term

chaos: $(READY) ## the fault campaign, every kind of fault: make chaos ARGS="--seed 7"
	$(BIN)/python -m tests.chaos $(ARGS)

soak: $(READY) ## campaigns with random seeds for hours: make soak ARGS="--hours 6"
	$(BIN)/python -m tests.chaos --soak $(ARGS)

wheel-test: $(READY) ## build the wheel, install it alone in a fresh venv, test that
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . >build/wheel/build.log || { cat build/wheel/build.log; exit 1; }
ifneq ($(UV),)
	$(UV) venv --quiet --python $(PYTHON) build/wheel/venv
	$(UV) pip install --quiet --python build/wheel/venv/bin/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python build/wheel/venv/bin/python --no-deps build/wheel/*.whl
	$(UV) pip check --quiet --python build/wheel/venv/bin/python
else
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install $(LOCKED) -r requirements.lock
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps build/wheel/*.whl
	build/wheel/venv/bin/python -m pip check
endif
	cp -r tests pyproject.toml build/wheel/
	cd build/wheel && PYTHONSAFEPATH=1 venv/bin/bandit-streams --help >/dev/null
	cd build/wheel && PYTHONSAFEPATH=1 venv/bin/python -m pytest -m "not slow" tests/wheel tests/bandit_core

test: lint types integration wheel-test ## everything CI runs

lock: $(STAMP) ## re-make the lock files and the list of Kafka jars (needs uv)
	@test -n "$(UV)" || { echo "make lock: needs uv; the other targets do not" >&2; exit 1; }
	$(COMPILE) --all-extras --upgrade pyproject.toml -o requirements.lock
	$(COMPILE) --constraint requirements.lock pyproject.toml -o deploy/requirements.lock
	$(COMPILE) --upgrade bench/requirements.in -o bench/requirements.lock
	printf 'build\nhatchling\neditables\nCython\nsetuptools\n' | $(COMPILE) --constraint requirements.lock - -o deploy/build.lock
	$(BIN)/python -c "from streams.embedded.jars import pin; pin()"

clean: ## remove what the targets made
	rm -rf .venv build dist .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis
