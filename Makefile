# One Makefile for people and for CI. Package indexes are never named here: pip and uv read them from your environment.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
# Exists once the environment is complete, and is older than what it was made from when it is not.
STAMP := .venv/installed
# Files of tests that run side by side; each takes up to 2 GB.
WORKERS ?= 2
TESTS = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Threads that wait actively for a core that another process holds make torch ten times slower on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test check lint protos protos-check lock docker-check clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements.lock --editable '.[train,demo,dev]'
	@# Both builds of OpenCV write into one folder, cv2: of two versions, half of each would be left.
	$(BIN)/python -c "import sys, cv2; from importlib.metadata import version; \
	  found = {name: version(name) for name in ('opencv-python', 'opencv-python-headless')}; \
	  sys.exit(f'two versions of cv2 overwrite each other: {found}' if len(set(found.values())) != 1 else 0)"
	touch $@

demo: $(STAMP)  ## The whole river on real solar cells: train, export, evaluate, serve, inspect.
	exec $(BIN)/python -m defectlens demo --out demo --json

test: $(STAMP)  ## Every test; some train models and start servers.
	$(TESTS)

check: lint  ## Format, lint, types, layers, generated code and the fast tests; under 3 minutes.
	$(TESTS) -m 'not slow'

lint: $(STAMP) protos-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: $(STAMP)  ## Regenerate the Python code of the gRPC contract.
	$(BIN)/python -m protos.generate

protos-check: $(STAMP)
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(BIN)/python -m protos.generate "$$fresh"; \
	for file in $$(cd "$$fresh" && find . -type f); do \
	  cmp --silent "$$fresh/$$file" "$$file" || { echo "$$file is out of date; run 'make protos'" >&2; exit 1; }; \
	done

lock:  ## Choose and pin all versions anew.
	test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --upgrade --quiet --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --output-file requirements.lock

docker-check: $(STAMP)  ## Check the Dockerfile without Docker: its files, its rules and its installation steps.
	$(BIN)/python -m pytest tests/test_dockerfile.py

clean:  ## Remove what was built; trained runs stay.
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
