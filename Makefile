# make demo   summarize a real video on the CPU with the model that ships with the package
# make test   install what the tests need, lint, type-check, test
# make bench  the kernel benchmark, quick form

PYTHON ?= python3
VENV   ?= .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
BIN    := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo
	mkdir -p demo
	$(BIN)/python examples/make_demo_video.py demo/film.mp4
	$(BIN)/vsum-summarize demo/film.mp4 -o demo/summary.mp4 --json demo/summary.json --plot demo/summary.png
	@echo "summary video    demo/summary.mp4"
	@echo "scores and shots demo/summary.json"
	@echo "picture          demo/summary.png"

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	mkdir -p $(VENV)/typed/vsum_runtime
	ln -sfn $(CURDIR)/kernels $(CURDIR)/runtime $(CURDIR)/training $(CURDIR)/export $(CURDIR)/vsum_runtime/*.py $(CURDIR)/vsum_runtime/py.typed $(VENV)/typed/vsum_runtime/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(PIP) install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks.kernels --quick

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable ".[demo]"
	$(BIN)/python -m vsum_runtime.kernels  # compiles them once, so that no later process has to
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m vsum_runtime.kernels
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
