# `make demo` and `make test` need nothing but Python 3.11+: each sets everything up by itself.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: setup demo test test-all lint ui tracking docs clean

setup:
	@$(PYTHON) .ci/environment.py

demo: setup
	@$(RUN) -m pipeline demo

# Bytecode of tests is kept: where PYTHONDONTWRITEBYTECODE is set, as in many images, every process would compile them again.
test: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(RUN) -m pytest -n auto --dist loadfile -m "not ray and not cluster and not browser and not real and not heavy and not long"

test-all: setup
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

ui: setup
	@$(RUN) -m pipeline ui

tracking: setup
	@cluster/mlflow/serve.sh $(DATABASE)

docs: setup
	$(RUN) -m mkdocs build --strict

clean:
	rm -rf .mgmrn .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
