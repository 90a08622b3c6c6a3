# Every target sets up what it needs: a virtual environment in .venv and the packages at the versions pinned
# in constraints/. Only Python 3.11 or later and make are needed beforehand.

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,torch

.PHONY: demo test lint check clean

.venv/installed: pyproject.toml constraints/cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hwsearch needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt --editable '.[$(EXTRAS)]'
	touch $@

# From measured H100 latencies and measured layer importances to an exported hybrid of Qwen3-1.7B.
demo: .venv/installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# Tests of the command line and of cost models come first and take most of the time: a worker that is done takes its
# share of what another still has before it.
test: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf .venv demo build
