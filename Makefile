# make report [PRESET=digits]   everything from nothing: environment, four trainings and FP8Test, report as HTML, LaTeX and PDF
# make test                     the tests
# make lint                     ruff and mypy
# make clean                    what can be made again; executed/, runs/ and what git tracks are never touched

PRESET ?= digits
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: report test lint chaos clean

report: $(VENV)/.installed
	$(BIN)/vitfp8 run --preset $(PRESET)
	$(BIN)/vitfp8 report $(basename $(notdir $(PRESET)))

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos --write docs/reliability.md

# git removes what it does not track; without it (an unpacked archive) nothing is tracked
MADE := report build dist .pytest_cache .mypy_cache .ruff_cache $(wildcard *.egg-info)

clean:
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then git clean -fdxq -- $(MADE); \
	elif [ -e .git ]; then echo "make clean: git does not say what it tracks here; nothing is removed" >&2; exit 1; \
	else rm -rf $(MADE); fi
	find vitfp8 tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vitfp8 needs Python 3.11 or later; set PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@f=$(VENV)/etc/jupyter/jupyter_nbconvert_config.py; ! grep -qs vitfp8 $$f || rm -f $$f   # an earlier version left it there
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
