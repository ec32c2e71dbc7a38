# Everything a fresh machine needs: Python 3.11+, pip and make.
PYTHON ?= python3
BIN := .venv/bin
MINIMUM := .venv-minimum/bin
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE := python -c 'import htt_lightning.cli'  # only what is imported; before several processes would do it at once
WORKERS ?= 3
PYTEST = -m pytest -n $(WORKERS) --dist loadfile
CORE := $(addprefix tests/,callbacks data discovery metrics models tasks)
test test-slow test-minimum campaigns: export OMP_NUM_THREADS = 1
unexport PYTHONDONTWRITEBYTECODE  # otherwise every process would compile what it imports

.PHONY: demo test test-slow test-minimum campaigns lint docs notebooks audit install

demo: .venv/demo  ## train on rendered scenes with partial labels
	$(BIN)/htt fit --config demo.yaml

test: .venv/installed  ## run the default tests
	$(BIN)/python $(COVERAGE) $(PYTEST) $(OPTIONS)

test-slow: .venv/installed  ## run the long tests: notebooks, wheels, sweeps, killed runs, every dataset's config
	$(BIN)/python $(PYTEST) --dist worksteal -m slow $(OPTIONS)

test-minimum: .venv-minimum/installed  ## run the core tests with the oldest dependencies that pyproject.toml allows
	$(MINIMUM)/python $(PYTEST) $(CORE) $(OPTIONS)

campaigns: .venv/installed  ## damage files and kill runs, for a few minutes
	$(BIN)/python -m tools.damage_campaign --share 0.02
	$(BIN)/python -m tools.kill_runs --kills 4

lint: .venv/installed  ## check style, types, and for secrets in files (MD5 sums and pictures are none)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-lines '"[0-9a-f]{32}"|"image/(png|jpeg)":'

docs: .venv/installed  ## build the documentation into site/; any warning is an error
	$(BIN)/mkdocs build --strict

notebooks: .venv/installed  ## run the notebooks and store their outputs, which the documentation shows
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

audit: .venv/installed  ## look for known vulnerabilities of the dependencies; asks a service on the internet
	$(BIN)/python $(PIP) pip-audit
	$(BIN)/pip-audit --skip-editable

install: .venv/installed .venv-minimum/installed  ## create both environments

.venv/demo: EXTRAS = pretrained
.venv/installed: EXTRAS = all
.venv/demo .venv/installed: pyproject.toml
	$(PYTHON) -c 'import os, sys; sys.exit( \
		"Python must be 3.11 or newer. Name another: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else \
		"This folder must be writable, for the environment and the runs. Copy it elsewhere." if not os.access(".", os.W_OK) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --editable '.[$(EXTRAS)]' || { echo 'pip must reach PyPI or a mirror (PIP_INDEX_URL). Then type the command again.' >&2; exit 1; }
	$(BIN)/$(COMPILE)
	touch .venv/demo $@

.venv-minimum/installed: pyproject.toml .ci/minimum.py
	$(PYTHON) -m venv .venv-minimum
	$(PYTHON) .ci/minimum.py > .venv-minimum/constraints.txt
	$(MINIMUM)/python $(PIP) --constraint .venv-minimum/constraints.txt --editable '.[test]'
	$(MINIMUM)/$(COMPILE)
	touch $@
