# The two commands people type are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types format golden speed world ablations clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## train an adapter on the bundled world, evaluate it, draw the report
	$(RUN)/cir demo

test: $(STAMP)  ## run all tests
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q -n 2

lint: $(STAMP)  ## check style and formatting
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(STAMP)  ## check types
	$(RUN)/mypy

format: $(STAMP)  ## rewrite in the house style
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

golden: $(STAMP)  ## regenerate the small committed outputs the tests compare with; review the diff
	$(RUN)/python -m pytest -q tests/test_golden.py --regenerate

speed: $(STAMP)  ## measure search, metrics and training steps against plain twins (a quarter of an hour)
	$(RUN)/python experiments/speed/metrics.py
	$(RUN)/python experiments/speed/training.py

world: $(STAMP)  ## train every method on the bundled world, three seeds each: docs/world.md's table (an hour)
	bash experiments/world.sh

ablations: $(STAMP)  ## take RTD apart on the bundled world: docs/ablations/rtd_world.md (hours; JOBS=2 at a time)
	bash experiments/ablations/rtd_world.sh

clean:  ## remove caches and outputs, not the environment
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis out runs build
