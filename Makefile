# Needs only Python 3.11+; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint bench swarm clean

$(VENV)/.tests: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[tests]' --constraint constraints.txt
	touch $@

test: $(VENV)/.tests
	$(BIN)/python -m pytest

test-all: $(VENV)/.tests
	$(BIN)/python -m pytest -m ''

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venvs .build
