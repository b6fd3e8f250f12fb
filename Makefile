# Set-up, checks and tests. `.ci/run` calls the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two cores are the reference machine: thread counts are fixed so that runs compare.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo check format test test-all clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("byzer_ft needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/byzer-ft run sql_examples/quickstart.sql

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/core/test_imports.py  # who may import whom

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The default tier needs no Ray and no torch; the second starts one Ray cluster for the whole run.
test: setup
	$(BIN)/python -m pytest -q -m 'not slow and not gpu and not browser'

# The slow ones too: real processes with a Ray of their own, the demo held to its figures.
test-all: test
	$(BIN)/python -m pytest -q -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
