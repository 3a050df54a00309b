PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# More processes than cores: tests wait for servers and workers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: search test test-long lint docs docs-links docs-images clean

search: $(VENV)/.installed  ## Find smaller models for the built-in study
	$(BIN)/autoprune search --budget 50

test: $(VENV)/.installed-dev  ## Run the tests
	$(PYTEST) -m "not long"

test-long: $(VENV)/.installed-dev  ## Run those that kill, interrupt, or start servers and clusters
	$(PYTEST) -m long

lint: $(VENV)/.installed-dev  ## Formatting, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports

docs: $(VENV)/.installed-docs  ## The documentation as HTML; every warning and dead link is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

docs-links: $(VENV)/.installed-docs  ## Ask the network whether the links to elsewhere lead somewhere
	$(BIN)/sphinx-build -q -b linkcheck docs build/docs-links

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

docs-images: $(VENV)/.installed-dev  ## Pictures of a report, which need Debian's chromium
	$(BIN)/autoprune search digits --budget 50 --out build/digits
	PYTHONPATH=. $(BIN)/python docs/pictures.py build/digits

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
