# Every target sets itself up in a fresh clone; it needs Python 3.11 to 3.13 and, for speed, a C++ compiler.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
OUT ?= runs/demo
# A plain `torch` may bring gigabytes of CUDA libraries; `make demo TORCH="torch==2.13.0 --index-url URL"` chooses a build.
TORCH ?= torch==2.13.0
BENCHES := demo update step raster
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
FIND_PYTHON = for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c "$(SUITABLE)" 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND_PYTHON))

.PHONY: help demo test lint bench clean
help:
	@echo "make demo    align the embedded generator: samples, pictures and a report in $(OUT)"
	@echo "make test    all tests, with coverage"
	@echo "make lint    ruff: rules, docstrings, format"
	@echo "make bench   the figures of docs/performance.md"
	@echo "make clean   remove the virtual environment"

demo: $(VENV)/.demo
	$(BIN)/align3d demo --out $(OUT)

# One thread per worker: workers and threads would fight for the cores.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(JOBS) --timeout 300 --durations 10 \
		--cov=align3d --cov-report=term:skip-covered

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev
	set -e; for f in $(BENCHES); do echo "== $$f"; $(BIN)/python benchmarks/$$f.py; done

clean:
	rm -rf $(VENV)

$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "align3d needs Python 3.11 to 3.13 with venv and pip (Debian: python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH)
	touch $@

# `doctor` compiles the native rasteriser, so that nothing later waits for it.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[imagenet]"
	$(BIN)/align3d doctor
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,imagenet,mesh,video]"
	touch $@
