# Every target sets up what it needs: a virtual environment in .venv, made again when pyproject.toml changes.
# `make demo ARGS=--json` passes arguments on; `make PYTHON=python3.13 ...` picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 4
FUZZ_SECONDS ?= 60
BIN := $(VENV)/bin

# What runs a second time as on systems without Linux's fast ways.
PLAIN_TESTS := $(addprefix tests/integration/test_,node_messages.py utp_node.py)

# The one list of Debian packages that the tests and the lab make use of.
SYSTEM_PACKAGES := python3-venv iproute2 nftables miniupnpd coturn redis-server

.DEFAULT_GOAL := help
.PHONY: help demo lab bench test coverage lint fmt types reference docs docs-serve fuzz build system-deps clean distclean

help:
	@echo "make demo    two nodes behind two NATs on this machine: connect, send a folder, compare hashes (crust demo)"
	@echo "make test    the test suite"
	@echo "make bench   throughput, latency and memory beside raw sockets and TLS (crust bench)"
	@echo "make lab     every pair of NATs on this machine (crust lab)"
	@echo "make lint    formatting, lint rules and layer contracts; make fmt mends what it can"
	@echo "make types   mypy --strict"
	@echo "make docs    the documentation, into site/; make reference rewrites the tables made from the code"
	@echo "make fuzz    every fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make build   wheel and sdist, the wheel tried in an environment of its own"
	@echo "make system-deps   (as root) programs that the tests and the lab use: $(SYSTEM_PACKAGES)"
	@echo "make clean   remove what was built; make distclean: .venv too"

# One stamp for each set of requirements, so that `make demo` does not wait for the tools of the developers.
$(VENV)/.stamp-run: pyproject.toml tools/venv.py
	@$(PYTHON) tools/venv.py $(VENV) --editable '.[cli,fast]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml tools/venv.py
	@$(PYTHON) tools/venv.py $(VENV) --editable '.[all]' --group dev
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-docs: pyproject.toml tools/venv.py
	@$(PYTHON) tools/venv.py $(VENV) --editable '.[cli]' --group docs
	@touch $@

# atheris has no wheel for every platform; without it the plain mutation runner is used.
$(VENV)/.stamp-fuzz: $(VENV)/.stamp-dev
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-input --group fuzz >/dev/null 2>&1 </dev/null \
		|| echo "atheris cannot be installed here: the plain mutation runner is used" >&2
	@touch $@

demo: $(VENV)/.stamp-run
	@$(BIN)/crust demo $(ARGS)

lab: $(VENV)/.stamp-run
	@$(BIN)/crust lab $(ARGS)

bench: $(VENV)/.stamp-run
	@$(BIN)/crust bench $(ARGS)

test: $(VENV)/.stamp-dev
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)
	$(if $(ARGS),,@echo "once more, without what only Linux has:")
	$(if $(ARGS),,@$(BIN)/python -m pytest -n $(WORKERS) -q -p tests.plain_system $(PLAIN_TESTS))

coverage: $(VENV)/.stamp-dev
	@$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(VENV)/.stamp-dev
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: make fmt"; exit 1; }
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }

fmt: $(VENV)/.stamp-dev
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

types: $(VENV)/.stamp-dev
	@$(BIN)/mypy

reference: $(VENV)/.stamp-dev
	@$(BIN)/python tools/reference.py

docs: $(VENV)/.stamp-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --clean
	@echo "site/index.html"

docs-serve: $(VENV)/.stamp-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

fuzz: $(VENV)/.stamp-fuzz
	@$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

build: $(VENV)/.stamp-dev
	@rm -rf dist build/wheel-check
	@$(BIN)/python -m build --outdir dist . >$(VENV)/build.log 2>&1 </dev/null || { cat $(VENV)/build.log; exit 1; }
	@$(BIN)/python -m venv --without-pip build/wheel-check
	@$(BIN)/python -m pip --python build/wheel-check/bin/python install -q --disable-pip-version-check --no-input \
		"$$(ls dist/*.whl)[cli]"
	@build/wheel-check/bin/python -I -c 'import crust.cli; assert "wheel-check" in crust.__file__, crust.__file__'
	@build/wheel-check/bin/crust --version
	@ls dist/*

system-deps:
	@tools/system-deps.sh $(SYSTEM_PACKAGES)

clean:
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	@find src tests fuzz examples tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	@rm -rf $(VENV)
