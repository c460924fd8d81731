# make demo   summarize a real video on the CPU with the model that ships with the package
# make test   install what the tests need, lint, type-check, test
# make bench  the kernel benchmark, quick form
# make lock   write locks/ anew
# make matrix the built wheel in fresh environments: Pythons, oldest and newest releases, extras -> docs/versions.md
# make fresh  the tests with the newest releases of today in an environment of their own, and what moved since the locks
# make soak   a server under load and faults, MINUTES=20; make fuzz: readers of foreign bytes, SECONDS=60 each
# make docs   the pages of docs/ as a site, build/site/index.html; a warning is an error
# make sbom   dist/sbom.cdx.json: what locks/serve.txt installs, with hashes, as CycloneDX

PYTHON ?= python3
VENV   ?= .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
BIN    := $(VENV)/bin

.PHONY: demo test lint bench docs lock matrix matrix-quick fresh soak fuzz sbom clean

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

# The API pages read the code as it is installed, of which these links make a picture.
docs: $(VENV)/.demo
	$(PIP) install --quiet --require-hashes --no-deps --requirement locks/docs.txt
	mkdir -p build/typed/vsum_runtime
	ln -sfn $(CURDIR)/kernels $(CURDIR)/runtime $(CURDIR)/training $(CURDIR)/export $(CURDIR)/vsum_runtime/*.py build/typed/vsum_runtime/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Everything is installed from locks: exact versions with hashes, so there is nothing to resolve, for any pip.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 15) or sys.exit("expected Python 3.11 to 3.14, got %d.%d: make PYTHON=/path/to/python3.13" % v[:2])'
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

# What follows is for maintainers, and uses uv.
UV      := $(abspath build/uv/bin/uv)
COMPILE := $(UV) pip compile pyproject.toml --quiet --no-annotate --no-emit-package torch
LOCKED  := $(COMPILE) --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip --disable-pip-version-check install --quiet uv

# The newest releases that agree, for every supported Python at once.
lock: $(UV)
	$(LOCKED) --constraint locks/torch.txt --extra dev --output-file locks/bench.txt
	$(LOCKED) --constraint locks/torch.txt --constraint locks/bench.txt --extra test --output-file locks/test.txt
	$(LOCKED) --constraint locks/bench.txt --extra demo --extra build --output-file locks/demo.txt
	$(LOCKED) --constraint locks/bench.txt --extra docs --output-file locks/docs.txt
	$(LOCKED) --constraint locks/bench.txt --extra build --extra cpu --extra serve --extra grpc --output-file locks/serve.txt
	$(LOCKED) --constraint locks/bench.txt --extra build --extra gpu --extra serve --extra grpc --output-file locks/serve-gpu.txt

matrix: demo $(UV)
	$(BIN)/python tests/packaging/matrix.py --uv $(UV) --page docs/versions.md

matrix-quick: demo $(UV)
	$(BIN)/python tests/packaging/matrix.py --uv $(UV) --quick

fresh: $(UV)
	rm -rf build/fresh && $(UV) venv --quiet --python $(PYTHON) build/fresh
	$(COMPILE) --no-header --python build/fresh/bin/python --constraint locks/torch.txt --extra test --output-file build/fresh/newest.txt
	$(UV) pip install --quiet --python build/fresh/bin/python --requirement build/fresh/newest.txt pip
	build/fresh/bin/python -m pip install --quiet --requirement locks/torch.txt
	build/fresh/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(PYTHON) tests/packaging/moved.py locks/test.txt build/fresh/newest.txt
	build/fresh/bin/python -m pytest

MINUTES ?= 20
SECONDS ?= 60

soak: $(VENV)/.test
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --out benchmarks/results/soak.json

fuzz: $(VENV)/.test
	$(PIP) install --quiet atheris==3.0.0
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

sbom:
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	mkdir -p dist
	build/sbom/bin/cyclonedx-py requirements locks/serve.txt --pyproject pyproject.toml --of JSON -o dist/sbom.cdx.json

clean:
	rm -rf $(VENV) demo build *.egg-info

# Every kind of clip through every cut, under the oldest supported PyAV and the installed one -> docs/corpus.md
.PHONY: corpus
corpus: $(VENV)/.test
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/oldest av==15.0.0
	-PYTHONPATH=$(VENV)/oldest $(BIN)/python -m tests.media.corpus --json $(VENV)/corpus-oldest.json
	-$(BIN)/python -m tests.media.corpus --json $(VENV)/corpus-installed.json
	$(BIN)/python -m tests.media.corpus --table $(VENV)/corpus-oldest.json $(VENV)/corpus-installed.json > docs/corpus.md
