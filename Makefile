# Raycommend. `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK ?= cluster/requirements/cpu.txt
STAMP := $(VENV)/.installed
ARGS ?=
# An index with the torch build you want (CPU or CUDA); passed on to pip.
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL),)

.DEFAULT_GOAL := help
.PHONY: help demo test test-heavy lint typecheck format lock-cpu lock-gpu clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(STAMP): $(LOCK) pyproject.toml
	@[ "$$(uname -sm)" = "Linux x86_64" ] && command -v $(PYTHON) >/dev/null || \
	  { echo "Raycommend runs on Linux x86-64 with CPython 3.11; set PYTHON to that interpreter."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 11)))' || \
	  { echo "Raycommend needs CPython 3.11; set PYTHON to that interpreter."; exit 1; }
	@$(PYTHON) -m cluster.preflight --folder .
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing the lock: torch first, because it brings what its build needs (about two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) "$$(grep -E '^torch==' $(LOCK))"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## Prepare, start, recommend, click, recommend again (ARGS="--once --json" for scripts)
	@$(BIN)/raycommend demo $(ARGS)

test: $(STAMP) ## Run the tests (17 to 26 minutes on 2 shared cores)
	@$(BIN)/python -m pytest -m "not heavy" $(ARGS)

test-heavy: $(STAMP) ## Run the tests that compute for a minute or more
	@$(BIN)/python -m pytest -m heavy $(ARGS)

lint: $(STAMP) ## Check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

typecheck: $(STAMP) ## Check types (strict on models and serve)
	@$(BIN)/mypy

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lock-cpu: $(STAMP) ## Resolve the CPU lock anew into cluster/requirements/cpu.txt
	@$(BIN)/python -m cluster.lock cpu

lock-gpu: $(STAMP) ## Resolve the GPU lock anew into cluster/requirements/gpu.txt
	@$(BIN)/python -m cluster.lock gpu

clean: ## Remove the state folder (models, data, artifacts); `raycommend down` first
	@[ ! -x $(BIN)/raycommend ] || $(BIN)/raycommend down
	@rm -rf .raycommend
