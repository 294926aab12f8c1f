# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
WORKDIR ?= runs/quickstart
SEED ?= 0
# Test files that run in parallel.
JOBS ?= 2
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SHELL = /bin/bash

.PHONY: quickstart test test-slow lint clean

quickstart: .venv/installed
	@started=$$SECONDS; \
	.venv/bin/python -m nsk.main --flagfile=flags/quickstart.flags --seed=$(SEED) --workdir=$(WORKDIR) || exit $$?; \
	echo "Job: $$((SECONDS - started)) s"

test: .venv/installed-dev
	.venv/bin/python -m pytest -n $(JOBS) --dist loadfile

test-slow: .venv/installed-dev
	.venv/bin/python -m pytest -m slow

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv build nsk.egg-info runs

# Stamp files: an environment newer than its requirements is not installed again.
.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than Python 3.11: name a newer one, as in make PYTHON=python3.12."; exit 2; }
	@echo "Installing into .venv ..."
	@started=$$SECONDS; \
	{ test -x .venv/bin/python || $(PYTHON) -m venv .venv; } && $(PIP) -r requirements.txt && touch $@ && \
	echo "Install: $$((SECONDS - started)) s"

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-beam.txt requirements-video.txt
	@$(PIP) -r requirements.txt -r requirements-beam.txt -r requirements-video.txt -r requirements-dev.txt && touch $@
