# Every target does its own set-up: a fresh machine needs Python 3.11 or newer, git and make.
#   make demo     train, sample and draw into demo_output/
#   make test     the default tests (PYTEST_ARGS="-m slow" for the others)
#   make lint     ruff, pyright and the import layers
#   make mutations  do the tests still see deliberate faults? (SAMPLE=20 for some of them, others every day)
#   make bench    the benchmarks
#   make docs     the site, docs/_build/html/index.html, with its notebooks and gallery run anew where they changed
#   make clean    remove what the other targets made, but for .venv
# Another interpreter for the environment: make PYTHON=/path/to/python demo

PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint mutations bench docs clean
.NOTPARALLEL:
.DEFAULT_GOAL := demo

demo: $(VENV)/.stamp-demo
	$(BIN)/sdegen demo --out demo_output

test: $(VENV)/.stamp-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

mutations: $(VENV)/.stamp-dev
	$(ONE_THREAD) $(BIN)/python tests/mutations.py $(if $(SAMPLE),--sample $(SAMPLE))

bench: $(VENV)/.stamp-dev
	@set -e; for script in $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))); do \
		echo "== $$script"; $(ONE_THREAD) $(BIN)/python $$script; done

# -W: a warning is an error. Nothing is asked of the network; check.py says so, and that links and names are there.
docs: $(VENV)/.stamp-docs
	$(ONE_THREAD) $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/_site/check.py docs/_build/html

clean:
	rm -rf build dist demo_output docs/_build docs/gallery docs/reference docs/_static/explorer.html docs/measured/results-* *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps are touched last, so an interrupted set-up is done again.
$(VENV)/.stamp-venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and neither python3.11 nor python3 is one:" \
		"install it, or name one with make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(INSTALL) -e ".[data]"
	touch $@

# What the tests need contains what the demo needs.
$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(INSTALL) -e ".[dev]"
	touch $(VENV)/.stamp-demo $@

$(VENV)/.stamp-docs: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(INSTALL) -e ".[docs]"
	touch $@
