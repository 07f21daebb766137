# make serve, make test: each sets itself up on a machine that has Python, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CSRC := $(wildcard csrc/*.cpp csrc/*.h tests/native/*.cpp)
SOURCES := pyproject.toml CMakeLists.txt $(CSRC)
# Built in the open with warnings as errors; a user's install only warns.
INSTALL := $(BIN)/python -m pip install --quiet --editable
TEST_BUILD := --config-settings=cmake.define.POCKETLM_WERROR=ON --config-settings=cmake.define.POCKETLM_TESTS=ON

.PHONY: help serve test test-arm lint format docs test-oracle sanitize bench bench-peers load clean
.DEFAULT_GOAL := help

help:
	@echo "make serve         install, and serve the bundled model on http://127.0.0.1:5000"
	@echo "make test          install, and run the tests"
	@echo "make test-arm      cross-compile the kernels for 64-bit ARM and test them under an emulator"
	@echo "make lint          check style, types, layers and the C++ format"
	@echo "make format        put the sources in style"
	@echo "make docs          write what docs/ has from the code: tables, and the help of the commands"
	@echo "make test-oracle   compare with Hugging Face Transformers (installs torch)"
	@echo "make sanitize      run the kernel tests under AddressSanitizer, UBSan and ThreadSanitizer"
	@echo "make bench         measure the engine, in process and over HTTP"
	@echo "make bench-peers   measure other engines and ours in turn (builds them below .bench/, gigabytes)"
	@echo "make load          200 clients for two minutes against a server of its own"
	@echo "make clean         remove what the others made"

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found="not installed"; \
	  echo "pocketlm needs Python 3.10 or later; '$(PYTHON)' is $$found."; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 serve"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its venv module is missing."; \
	  echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created $(SOURCES)
	$(INSTALL) .
	@touch $@

$(VENV)/installed-test: $(VENV)/created $(SOURCES)
	$(INSTALL) '.[test]' $(TEST_BUILD)
	@touch $(VENV)/installed $@

$(VENV)/installed-lint: $(VENV)/installed-test
	$(INSTALL) '.[test,lint]' $(TEST_BUILD)
	@touch $@

# torch first and pinned: a range that another package asks for can bring gigabytes of GPU libraries.
$(VENV)/installed-oracle: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(INSTALL) '.[test,oracle]' $(TEST_BUILD)
	@touch $@

serve: $(VENV)/installed
	$(BIN)/pocketlm serve

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

test-arm:
	scripts/test_arm.sh

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

docs: $(VENV)/installed
	$(BIN)/python scripts/write_docs.py

test-oracle: $(VENV)/installed-oracle
	$(BIN)/python -m pytest oracle_tests

sanitize: $(VENV)/installed-test
	scripts/sanitize.sh $(BIN)/python

bench: $(VENV)/installed
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/serving.py

bench-peers: $(VENV)/installed
	PYTHONPATH=benchmarks:tests $(BIN)/python -m peers $(ARGS)

load: $(VENV)/installed-test
	$(BIN)/python benchmarks/load.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src tests training -name __pycache__ -type d -prune -exec rm -rf {} +
