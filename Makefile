# Needs only Python 3.11+; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable

# `make swarm N=200 SIZE=1GiB`: how many nodes, and how large a file.
N ?= 8
SIZE ?= 64MiB

.PHONY: help environment demo test test-all lint bench swarm clean

help:
	@echo 'make demo      a real model through real nodes, with unchanged clients, in a few minutes'
	@echo 'make test      the tests (test-all: the slow ones too); make lint: style and types'
	@echo 'make bench     how fast, beside nginx, squid and olah; about ten minutes'
	@echo 'make swarm     N=$(N) nodes ask for a file of SIZE=$(SIZE) at once'

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


# nginx and squid take part where they are installed; `make bench JOBS=warm` runs some of it.
bench: $(VENV)/.loadtests
	$(BIN)/python -m loadtests.bench $(if $(JOBS),--jobs $(JOBS))

swarm: environment
	$(BIN)/python -m loadtests.swarm --nodes $(N) --size $(SIZE)

clean:
	rm -rf $(VENV) .venvs .build
