# Everything installs into .venv; Python 3.11 or newer and pip are all that is needed.
PYTHON ?= python3
BIN := .venv/bin
NIIVUE := 0.69.0
AZURITE := 3.37.0
# In the order of their names: else the long files, of few tests, come last, and one CPU waits for the other.
# One process more than there are CPUs, as tests of servers and of other processes wait for them much of their time.
PROCESSES := $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# All tests share compiled code; else each process, at the start, would compile the same.
WARM := $(BIN)/python -c "from dskprep.preparation import prepare; prepare.warm()"
unexport PYTHONDONTWRITEBYTECODE  # programs start often here, and would compile their sources each time
ROOMS ?= tests/dataset tests/dicom tests/reading tests/series tests/worker

.PHONY: demo test test-all viewer azurite test-on interop notebooks pictures lint docs bench dist chaos clean

demo: .venv/demo        ## synthetic patients, a real S3 server on this machine, the whole run
	rm -rf dskprep-demo
	$(BIN)/dskprep demo

test: .venv/dev         ## the tests but for the long ones, on all CPUs; ARGS="tests/series" for some of them
	$(WARM)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/dev     ## all tests, as CI runs them; set DSKPREP_DATA to a folder of real CT to include it
	$(WARM)
	$(PYTEST) $(ARGS)

test-on: constraints.txt  ## the tests of the core on another Python, in a place of its own: PYTHON=python3.13; ROOMS for fewer
	$(PYTHON) -m venv .venv/on/$(notdir $(PYTHON))
	.venv/on/$(notdir $(PYTHON))/bin/python -m pip install --constraint constraints.txt --editable '.[dev]'
	$(WARM:$(BIN)/%=.venv/on/$(notdir $(PYTHON))/bin/%)
	.venv/on/$(notdir $(PYTHON))/bin/python -m pytest -n $(PROCESSES) --dist loadfile -m "not slow and not s3 and not browser" $(ROOMS)

viewer:                 ## niivue by npm, for `dskprep view` and the tests of viewers; it works offline afterwards
	npm install --silent --no-audit --no-fund --prefix .venv/viewer @niivue/niivue@$(NIIVUE)

azurite:                ## Microsoft's emulator of Azure's blobs by npm, for the tests of az://
	npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@$(AZURITE)

interop: .venv/dev viewer  ## installs other readers of OME-Zarr and labels, for the tests that use them
	@echo "installing other readers, some minutes the first time"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,interop]'

notebooks: interop      ## runs the notebooks and stores their outputs; needs PyTorch in .venv
	$(BIN)/python notebooks/store_outputs.py

pictures: .venv/dev     ## the pictures of the dashboard in docs/; needs Chromium
	$(BIN)/python docs/pictures.py

lint: .venv/dev         ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs        ## the site, into site/; it loads nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'site/index.html is the site; for its search: $(BIN)/python -m http.server -d site'

bench: .venv/dev        ## one patient, side by side with other ways; ARGS=--quick only shows that it works
	$(BIN)/python benchmarks/patient.py $(ARGS)

dist: .venv/release     ## the wheel and the sdist, checked, into dist/
	rm -rf dist build
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*

.venv/demo .venv/dev .venv/docs .venv/release: pyproject.toml constraints.txt
	@echo "installing into .venv, a minute or more the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(@F)]'
	touch $@

chaos: .venv/dev        ## whole runs under kills and failing requests, then resumed; ARGS="--seeds 20 --patients 60"
	$(BIN)/python tests/chaos.py $(ARGS)

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis dskprep-demo
