# The two that matter: `make demo` and `make test`. Both set up whatever is missing first.

PYTHON ?= python3
# Pins need Python 3.11 or newer; `make test PYTHON=python3.10 CONSTRAINTS=/dev/null` takes the newest that fits.
CONSTRAINTS ?= constraints.txt
# Arguments for pytest, in one run of what they select: make test ARGS="-k ragged -x"
ARGS ?=
# Files of tests side by side, one a core; make test JOBS=0 for one process, which --pdb needs
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
# The stamp, not the folder, is the target: it is written last, so a set-up that failed half-way is done again.
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# By name: else the files with the fewest tests come last, and those take minutes with one core at work.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
FRAMEWORKS := torch tf jax
BENCHMARKS := bench_read bench_write bench_images bench_texts bench_verify bench_backup bench_order bench_gather bench_batches bench_decode bench_torch bench_tf bench_jax

.PHONY: demo test test-core test-adapters test-long lint format types docs bench-quick setup clean

demo: $(READY)
	$(BIN)/python examples/photos.py

ifeq ($(strip $(ARGS)),)
test: docs test-core test-adapters
else
test: $(READY)
	$(PYTEST) $(ARGS)
endif

# Without a framework in the process: they start threads, open files and act at forks, and the core's tests count those.
test-core: $(READY)
	$(PYTEST) tests --ignore=tests/test_docs.py $(foreach name,$(FRAMEWORKS),--ignore-glob='tests/test_$(name)_*' --ignore-glob='tests/$(name)_*')

test-adapters: $(READY)
	$(PYTEST) $(foreach name,$(FRAMEWORKS),$(wildcard tests/test_$(name)_*.py))

# The long figures of docs/reliability.md: an hour on 2 cores, half of that on 4.
test-long: $(READY)
	$(BIN)/python -m pytest -m long -n $(JOBS) --override-ini faulthandler_timeout=0 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY)
	$(BIN)/mypy

# Every example: code blocks of README.md and docs/, docstrings of src/.
docs: $(READY)
	$(PYTEST) tests/test_docs.py src

bench-quick: $(READY)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --quick; done

setup: $(READY)

# --no-build-isolation: an isolated build would fetch a build backend that constraints.txt does not pin.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c $(CONSTRAINTS) hatchling editables
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
