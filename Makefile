# Two commands: `make demo` and `make test`. Each sets up .venv first, where it must.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
ROWS ?= 200000
OUT ?= demo

.PHONY: help setup demo test lint format lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml requirements-3.11.lock requirements-3.12.lock infra/setup.sh
	@bash infra/setup.sh $(VENV)
	@touch $@

setup: $(VENV)/.ready ## Make .venv from the pinned lock (PYTHON=... picks the interpreter)

demo: setup ## The whole flow on a simulated world, ended by one ranked request (ROWS=, OUT=)
	@$(BIN)/recsys demo $(OUT) --rows $(ROWS)

test: setup ## Run every test
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup ## Style (ruff), types (mypy) and import contracts (import-linter)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## Rewrite the code in the common style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## Resolve the dependencies again, for both Pythons (needs uv)
	@for version in 3.11 3.12; do \
	  uv pip compile pyproject.toml --extra dev --python-version $$version --upgrade \
	    --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q \
	    -o requirements-$$version.lock || exit 1; done

clean: ## Remove .venv, caches and the demo
	@rm -rf $(VENV) $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
