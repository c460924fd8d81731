# make demo   summarize a real video on the CPU with the model that ships with the package
# make test   install what the tests need, lint, type-check, test
# make bench  the kernel benchmark, quick form
# make lock   write locks/ anew

PYTHON ?= python3
VENV   ?= .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
BIN    := $(VENV)/bin

.PHONY: demo test lint bench lock clean

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
	$(PIP) install --quiet --require-hashes --no-deps --requirement locks/bench.txt
	$(BIN)/python -m benchmarks.kernels --quick

# Everything is installed from locks: exact versions with hashes, so there is nothing to resolve, for any pip.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml setup.py locks/demo.txt
	$(PIP) install --quiet --require-hashes --no-deps --requirement locks/demo.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml setup.py locks/test.txt locks/torch.txt
	$(PIP) install --quiet --require-hashes --no-deps --requirement locks/test.txt
	$(PIP) install --quiet --requirement locks/torch.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m vsum_runtime.kernels  # compiles them once, so that no test has to
	touch $@

# The newest releases that agree, for every supported Python at once. Needs uv.
UV      := $(VENV)/bin/uv
COMPILE := $(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
           --no-emit-package torch --no-annotate --custom-compile-command "make lock"

lock: $(VENV)/bin/python
	$(PIP) install --quiet uv
	$(COMPILE) --constraint locks/torch.txt --extra dev --output-file locks/bench.txt
	$(COMPILE) --constraint locks/torch.txt --constraint locks/bench.txt --extra test --output-file locks/test.txt
	$(COMPILE) --constraint locks/bench.txt --extra demo --extra build --output-file locks/demo.txt
	$(COMPILE) --constraint locks/bench.txt --extra cpu --extra serve --extra grpc --output-file locks/serve.txt

clean:
	rm -rf $(VENV) demo build *.egg-info
