# Everything a fresh machine needs: Python 3.11+, pip and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-minimum campaigns lint docs audit

demo: .venv/installed  ## train on the embedded scenes with partial labels
	$(BIN)/htt fit --config synthetic.yaml

test: .venv/installed  ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(OPTIONS)

test-slow: .venv/installed  ## run what it leaves out: notebooks, wheels, sweeps, killed runs, every dataset's config
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(OPTIONS)

lint: .venv/installed  ## style, types, secrets left in files (MD5 sums are none)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-lines '"[0-9a-f]{32}"'

test-minimum:  ## run the tests with the lowest versions that pyproject.toml admits; all have wheels for Python 3.11
	$(PYTHON) -m venv .venv-minimum
	$(PYTHON) .ci/minimum.py > .venv-minimum/constraints.txt
	.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint .venv-minimum/constraints.txt --editable '.[test]'
	OMP_NUM_THREADS=1 .venv-minimum/bin/python -m pytest -n 2 --dist loadfile $(OPTIONS)

campaigns: .venv/installed  ## damage files and kill runs, for a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.damage_campaign --share 0.02
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.kill_runs --kills 4

audit: .venv/installed  ## known vulnerabilities of what is installed; asks a service on the internet
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --skip-editable

docs: .venv/installed  ## build the documentation into site/; any warning is an error
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@
