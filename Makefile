# Every target makes .venv when there is none, with the tested versions of constraints.txt.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-all lint docs gallery format rendering clean
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Test processes, one thread each: small networks gain nothing from more.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

# MuJoCo draws without a screen where Mesa's EGL is there; elsewhere it keeps its own default.
HAS_EGL := PATH=$$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q libEGL_mesa
HEADLESS := if $(HAS_EGL); then export MUJOCO_GL=$${MUJOCO_GL:-egl}; fi

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	  sys.exit(sys.version_info < (3, 11) and f"skvdd needs Python 3.11 or newer, $(PYTHON) is {v}: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing skvdd and its tools into .venv (about a minute) ..."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --progress-bar off \
	  --editable ".[dev]" --constraint constraints.txt
	@touch $@

demo: $(INSTALLED) rendering ## train a teacher, distill it, compare both in the simulator
	@$(HEADLESS); $(BIN)/python -m skvdd demo

# ARGS comes last, so that -m in it decides which tests run.
PYTEST = $(HEADLESS); OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
  $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

test: $(INSTALLED) rendering ## run the tests, except the slow ones, and the docstrings' examples
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(INSTALLED) rendering ## run the slow tests
	@$(PYTEST) -m slow $(ARGS)

test-all: $(INSTALLED) rendering ## run all tests
	@$(PYTEST) $(ARGS)

lint: $(INSTALLED) ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED) ## mend style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(INSTALLED) ## build the site in docs/_build/html, and walk through it
	@rm -rf docs/api/generated docs/results_built docs/_build
	@find docs/gallery -maxdepth 1 -type f ! -name outputs.json -delete 2>/dev/null || true
	@$(HEADLESS); OMP_NUM_THREADS=1 \
	  $(BIN)/python -m sphinx -W --keep-going -E -q -b html docs docs/_build/html
	@$(BIN)/python docs/walk.py docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

gallery: $(INSTALLED) rendering ## run all examples of the gallery anew, then build the site
	@rm -rf docs/gallery
	@$(MAKE) docs

# Pictures of the simulated robot need Mesa; nothing else does. Installed only as root on Debian
# and its descendants, and only if absent; failing to is no error, the tests that render skip.
rendering: ## install Debian's packages for drawing without a screen, if root and absent
	@if [ "$$(uname -s)" != Linux ] || $(HAS_EGL); then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing libegl1 libegl-mesa0 libgl1-mesa-dri (for MUJOCO_GL=egl) ..."; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
	    --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri; } >/dev/null </dev/null && exit 0; \
	fi; \
	echo "No EGL by Mesa here: nothing will be rendered. Debian has it in libegl1 libegl-mesa0 libgl1-mesa-dri."

clean: ## remove everything that make made
	rm -rf .venv demo docs/_build docs/api/generated docs/results_built build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find skvdd tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
