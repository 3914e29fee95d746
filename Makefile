# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed first
# but Python 3.11 or newer with venv, make and git.
PYTHON ?= python3
BIN := .venv/bin
# Tests take one thread each, so that their bits are the same everywhere; files run side by side, and as some tests
# wait for processes, three at a time fill two cores.
PARALLEL := -n 3 --dist loadfile

.PHONY: demo test test-long check docs clean

demo: .venv/ready
	$(BIN)/patchdrop demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL)

test-long: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL) -m long

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

docs: .venv/ready
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

.venv/ready: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf .venv demo build docs/_build
