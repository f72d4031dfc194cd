# The two commands people type are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed
LAVIS := .venv-lavis
# the first that runs: pyenv leaves a python3.10 on the path that may not
LAVIS_PYTHON ?= $(shell for python in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python; do \
	$$python -c "" 2>/dev/null && echo $$python && break; done)
LAVIS_OUT := out/lavis

.DEFAULT_GOAL := help
.PHONY: help demo test test-lavis lint types format golden speed world world-supervised world-blip2 ablations clean

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

$(LAVIS)/.installed: requirements-lavis.txt
	@test -n "$(LAVIS_PYTHON)" || { echo "LAVIS needs Python 3.10: make test-lavis LAVIS_PYTHON=/path/to/python3.10"; exit 2; }
	test -x $(LAVIS)/bin/python || $(LAVIS_PYTHON) -m venv $(LAVIS)
	$(LAVIS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lavis.txt
	touch $@

test-lavis: $(STAMP) $(LAVIS)/.installed  ## build LAVIS's own environment (5 GB), compare a small BLIP-2 of LAVIS with ours
	rm -rf $(LAVIS_OUT)
	$(RUN)/python experiments/lavis/prepare.py $(LAVIS_OUT)
	$(LAVIS)/bin/python experiments/lavis/small.py $(LAVIS_OUT)
	$(RUN)/python experiments/lavis/compare.py $(LAVIS_OUT)

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

world-supervised: $(STAMP)  ## the same for human triplets: CLIP4Cir's two stages and SPN (an hour)
	bash experiments/world_supervised.sh

world-blip2: $(STAMP)  ## the same on the tiny BLIP-2: inversion, Combiner, SPRC, SPN, second looks (hours)
	bash experiments/world_blip2.sh

ablations: $(STAMP)  ## take RTD apart on the bundled world: docs/ablations/rtd_world.md (hours; JOBS=2 at a time)
	bash experiments/ablations/rtd_world.sh

clean:  ## remove caches and outputs, not the environment
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis out runs build
