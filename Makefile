# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help quickstart serve test test-slow test-all test-versions docs lint format clean

help:  ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Stamps make a second run free; a changed pyproject.toml installs anew.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing keras_delta and what it needs into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[weights,tuning,serving,benchmarks,examples]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[weights,tuning,serving,benchmarks,examples,test]"
	@touch $@

quickstart: $(VENV)/.installed  ## Fine-tune on digits or your images, compare, export, classify
	@$(BIN)/python examples/quickstart.py $(ARGS)

serve: $(VENV)/.installed  ## Serve what quickstart exported (ARGS=FOLDER for another model)
	@$(BIN)/python examples/serve.py $(or $(ARGS),runs/quickstart/served/images)

# By files: a file's fixtures are made once, by one worker.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

test: $(VENV)/.installed-test  ## Run the tests, but for the slow ones (ARGS="-k name" for some)
	@$(PYTEST) $(ARGS)

test-slow: $(VENV)/.installed-test  ## Run real kills, launchers, servers, several processes
	@$(PYTEST) -m slow $(ARGS)

test-all: $(VENV)/.installed-test  ## Run every test
	@$(PYTEST) -m "" $(ARGS)

test-versions:  ## Run tests with the oldest versions allowed, then with the newest
	@$(PYTHON) tests/versions.py oldest $(ARGS)
	@$(PYTHON) tests/versions.py newest $(ARGS)

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[docs]"
	@touch $@

docs: $(VENV)/.installed-docs  ## Build the documentation into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

lint: $(VENV)/.installed-test  ## Check style, imports and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-test  ## Rewrite in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## Remove the environment and what was made
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist *.egg-info runs
