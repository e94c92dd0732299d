# Everything a developer types. `make` alone prints the list.
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
# Images of Python tell it to keep no bytecode: then every process that a test starts compiles again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
ARGS ?=
# How many tests run side by side; those of a file stay together. JOBS=0: one by one, for a debugger.
# In the order of their names: long files first, and at the end many short ones, so that all end at once.
JOBS ?= 3

##@ Use

.PHONY: run
run: .venv/.ready ## Start the suite on this machine, console on http://127.0.0.1:8080 (Ctrl-C stops it)
	@$(BIN)/conveyor up $(ARGS)

.PHONY: demo
demo: .venv/.ready ## Show a delegated request from beginning to end, offline
	@$(BIN)/conveyor demo $(ARGS)

.PHONY: trace-ui
trace-ui: .venv/.ready ## The suite with a tracing UI, Arize Phoenix, and a demo flow in it (installs 900 MB once)
	@$(BIN)/python scripts/trace_ui.py $(ARGS)

.PHONY: setup
setup: .venv/.ready ## Only make .venv with what the suite needs
	@:

##@ Develop

.PHONY: test
test: .venv/.ready-dev ## Run the tests (ARGS="tests/unit -k lane" chooses)
	@GRPC_VERBOSITY=NONE $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: compose-test
compose-test: .venv/.ready-dev ## Run the tests of the containers (they need an engine: scripts/engine.sh up)
	@eval "$$(scripts/engine.sh env)" && GRPC_VERBOSITY=NONE $(BIN)/python -m pytest -m compose -n 2 --dist loadfile tests/compose $(ARGS)

.PHONY: agents
agents: .venv/.ready-dev ## Install real coding agents below .agents/ (ARGS=claude chooses): make test runs them then
	@$(BIN)/python scripts/install_agents.py $(ARGS)

.PHONY: check
check: .venv/.ready-dev ## Style, types, import rules, contract, generated files, docs (ARGS=mypy chooses)
	@$(BIN)/python scripts/check.py $(ARGS)

.PHONY: format
format: .venv/.ready-dev ## Format the code and mend what ruff can
	@$(BIN)/ruff check --quiet --fix --exit-zero . && $(BIN)/ruff format --quiet .

.PHONY: protos
protos: .venv/.ready-dev ## Generate gen/ from protos/, and the references in docs/ from both
	@$(BIN)/python scripts/gen_protos.py
	@$(BIN)/python scripts/gen_docs.py

.PHONY: bench
bench: .venv/.ready ## Measure speed here (ARGS="--only idle --write"; all of it takes ten minutes)
	@$(BIN)/python -m bench.run $(ARGS)

.PHONY: soak
soak: .venv/.ready-dev ## Random load and kills for ten minutes (ARGS="--minutes 60 --store postgresql")
	@GRPC_VERBOSITY=NONE $(BIN)/python -m bench.soak $(ARGS)

.PHONY: lock
lock: .venv/.ready-dev ## Pin the newest versions that pyproject.toml allows in constraints.txt
	@$(BIN)/python scripts/lock.py

.PHONY: dist
dist: .venv/.ready-dev ## Build the wheel and the source distribution into dist/
	@$(BIN)/python -m hatchling build -d dist

.PHONY: screenshots
screenshots: .venv/.ready-dev ## Make the pictures of the documents from the real thing (needs Chromium)
	@$(BIN)/python scripts/screenshots.py

.PHONY: release-protos
release-protos: .venv/.ready-dev ## Make the contract as it is the one that `make check` compares with
	@$(BIN)/python scripts/gen_protos.py --release

.PHONY: clean
clean: ## Remove what was built and cached (keeps .venv, data/ and conveyor.toml)
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: help
help: ## Print this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Not .PHONY: made again only when the dependencies may have changed.
.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh run

.venv/.ready-dev: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh dev
