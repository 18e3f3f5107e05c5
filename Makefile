# Everything installs into .venv; Python 3.11 or newer and pip are all that is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs bench chaos interop notebooks clean

demo: .venv/demo        ## synthetic patients, a real S3 server on this machine, the whole run
	rm -rf dskprep-demo
	$(BIN)/dskprep demo

test: .venv/dev         ## the tests; set DSKPREP_DATA to a folder of real CT to include it
	$(BIN)/python -m pytest $(ARGS)

interop: .venv/dev      ## installs other readers of OME-Zarr, and a viewer by npm, for the tests that use them
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,interop]'
	npm install --silent --no-audit --no-fund --prefix .venv/viewer @niivue/niivue@0.69.0

notebooks: interop      ## runs the notebooks and stores their outputs; needs PyTorch in .venv
	$(BIN)/python notebooks/store_outputs.py

lint: .venv/dev         ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs        ## the site, into site/; it loads nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: .venv/dev        ## one patient, side by side with other ways; ARGS=--quick only shows that it works
	$(BIN)/python benchmarks/patient.py $(ARGS)

.venv/demo .venv/dev .venv/docs: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(@F)]'
	touch $@

chaos: .venv/dev        ## whole runs under kills and failing requests, then resumed; ARGS="--seeds 20 --patients 60"
	$(BIN)/python tests/chaos.py $(ARGS)

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis dskprep-demo
