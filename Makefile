# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. PYTHON chooses the interpreter, VENV the place of the environment.

PYTHON ?= python3
VENV   ?= .venv
WORKERS ?= 2

BIN  := $(VENV)/bin
PIP  := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --no-input
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 \
        --generate-hashes --no-header --quiet

.DEFAULT_GOAL := help
.PHONY: help env dev demo test check format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(VENV)/.env ## Make the environment that runs Shoal
	@:
dev: $(VENV)/.dev ## Make the environment that also tests and checks it
	@:

demo: env ## Start a cluster, push 256 MiB, pull it through every agent at once
	@exec $(BIN)/shoal demo

test: dev ## Run every test, real clients included (installs them when root and apt are there)
	@scripts/install-clients
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) $(PYTEST_ARGS)

check: dev ## Lint, format, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: dev ## Put imports and layout in order
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

lock: dev ## Resolve the newest releases anew and write both locks
	$(LOCK) --upgrade --group build -o requirements.txt
	$(LOCK) --upgrade --group dev --constraints requirements.txt -o requirements-dev.txt

clean: ## Remove the environment and every cache
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
	       .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	@$(PYTHON) scripts/check-python
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The lock first, with every hash checked; then Shoal itself, built by the locked backend.
$(VENV)/.env: requirements.txt pyproject.toml $(VENV)/.venv
	@echo "installing Shoal into $(VENV)"
	@$(PIP) install --quiet --require-hashes -r requirements.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.env
	@echo "installing the development tools into $(VENV)"
	@$(PIP) install --quiet --require-hashes -r requirements-dev.txt
	@touch $@
