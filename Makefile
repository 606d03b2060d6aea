# Start with `make demo` and `make test`. Each creates its virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := .cache/docs
PYTEST_ARGS ?=
# Most tests spend their time waiting for servers and processes.
PARALLEL ?= --numprocesses 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-long long-tests deep lint bench bench-tuner chaos drills compat model recording docs etcd-versions lock sbom clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## a real run of four processes that is changed live, in about a minute
	$(BIN)/instep demo $(DEMO_ARGS)

test: lint  ## everything CI runs
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-long:  ## everything that CI leaves out, about an hour on 2 cores: LONG= one or more of long-tests deep model chaos drills compat
	@for part in $(or $(LONG),long-tests deep model chaos drills compat); do $(MAKE) $$part || exit 1; done

long-tests: $(READY)  ## the tests marked long: many repetitions, long freezes
	INSTEP_LONG=1 $(BIN)/python -m pytest $(PARALLEL) -m long $(PYTEST_ARGS)

deep: $(READY)  ## the state machines with 2,500 random schedules each, about 15 minutes on 2 cores
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS) \
		tests/coordination/test_agreement_machine.py tests/coordination/test_rendezvous_machine.py

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## the figures in docs/benchmarks.md, as ratios measured in one run
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-tuner: $(READY)  ## the tuner on real training with fresh seeds: twelve faults, healthy runs (TUNER_ARGS=--help)
	$(BIN)/python -m benchmarks.tuner $(TUNER_ARGS)

chaos: $(READY)  ## a run and clients under random faults, checked, 10 minutes: SEED= DURATION_S= ETCD= KEEP=1 CHAOS_ARGS=
	$(BIN)/python -m chaos --duration-s $(or $(DURATION_S),600) $(if $(SEED),--seed $(SEED)) \
		$(if $(ETCD),--etcd $(ETCD)) $(if $(KEEP),--keep) $(CHAOS_ARGS)

DRILLS := sigterm "sigterm --no-torch" midsave "midsave --no-torch" frozensaver "frozensaver --no-torch" torchrun

drills: $(READY)  ## repeats one failure (SIGTERM, savers killed and frozen), about 10 minutes: DRILL= ROUNDS= SEED= DRILL_ARGS=
	@for drill in $(or $(DRILL),$(DRILLS)); do \
		$(BIN)/python -m chaos drill $$drill $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(DRILL_ARGS) \
			|| exit 1; \
	done

compat: $(READY)  ## the client's tests on other versions of grpcio and protobuf, torchrun's on torch 2.6: COMPAT=oldest ...
	PYTHON=$(PYTHON) bash scripts/compat.sh $(COMPAT)

model: ## explores the Promela model of the protocol with Spin, and its mutants, about 10 minutes
	bash scripts/spin.sh

recording: $(READY)  ## records docs/demo.svg from a real run of the demo
	$(BIN)/python scripts/record_demo.py

$(DOCS)/.ready: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements-docs.lock
	@touch $@

docs: $(DOCS)/.ready  ## the guides and the API reference as a site in site/; fails on broken links and missing docstrings
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

etcd-versions: ## downloads Debian's etcd versions for the tests
	bash scripts/etcd-versions.sh

lock: ## writes requirements-dev.lock and requirements-docs.lock from pyproject.toml: LOCK_ARGS=--upgrade
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/pip install --quiet --disable-pip-version-check uv
	.cache/lock/bin/python scripts/lock.py $(LOCK_ARGS)

sbom: $(READY)  ## writes dist/instep.cdx.json, a CycloneDX bill of materials of the dependencies at run time
	$(BIN)/python scripts/sbom.py

clean: ## removes everything that these targets create
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build site
