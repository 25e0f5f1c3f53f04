# Requires Python 3.11 or later; installs everything into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable

# For `make swarm`: the number of nodes and the size of the file.
N ?= 8
SIZE ?= 64MiB

.PHONY: help environment demo test test-all lint bench swarm clean

help:
	@echo 'make demo      download a real model through real nodes with unmodified clients; a few minutes'
	@echo 'make test      run the tests (test-all: also the slow ones); make lint: check style and types'
	@echo 'make bench     compare the speed with nginx, squid and olah; about ten minutes'
	@echo 'make swarm     let N=$(N) nodes request a file of SIZE=$(SIZE) at once'

$(VENV)/.tests: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[tests]'
	touch $@

$(VENV)/.demo: $(VENV)/.tests
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/.loadtests: $(VENV)/.tests
	$(INSTALL) '.[loadtests]'
	touch $@

environment: $(VENV)/.tests

demo: $(VENV)/.demo
	@$(BIN)/python -m loadtests.demo

test: environment
	$(BIN)/python -m pytest

test-all: environment
	$(BIN)/python -m pytest -m ''

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Includes nginx and squid where they are installed. `make bench JOBS=warm` runs only some jobs.
bench: $(VENV)/.loadtests
	$(BIN)/python -m loadtests.bench $(if $(JOBS),--jobs $(JOBS))

swarm: environment
	$(BIN)/python -m loadtests.swarm --nodes $(N) --size $(SIZE)

clean:
	rm -rf $(VENV) .venvs .build
