# make demo   analyse three trained models on real images and write demo/report.html
# make test   style, types and tests
# make test-oldest, make test-newest   the same tests with the lowest and the newest versions of torch and timm
# make docs     the documentation as a site, docs/_build/html/index.html
# make tables   write the tables of settings and analyses in the documentation
# Both set everything up first, in .venv; they need Python 3.11 or later and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

.PHONY: demo test docs test-oldest test-newest tables lock clean

demo: .venv/core
	$(BIN)/backlight demo --out demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src tests docs benchmarks tools README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/mypy
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/pytest -n 2 --dist loadfile

docs: .venv/dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# Environments of their own beside .venv; several GB each.
test-oldest: VERSIONS := torch==2.11.* torchvision==0.26.* timm==1.0.31
test-newest: VERSIONS := torch torchvision timm
test-oldest test-newest: .venv/dev
	$(PYTHON) -m venv .venv/$@
	$(BIN)/uv pip install --quiet --python .venv/$@/bin/python --group dev --editable . $(VERSIONS)
	.venv/$@/bin/pytest -n 2 --dist loadfile

tables: .venv/dev
	$(BIN)/python tools/write_tables.py

.venv/core: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Backlight needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --editable .
	touch $@

.venv/dev: .venv/core requirements-dev.lock
	$(INSTALL) --require-hashes -r requirements-dev.lock
	touch $@

# Pinned versions and hashes, no addresses.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links pyproject.toml --group dev --group docs --extra hf --extra wds --extra corruptions --extra tensorboard --extra ray -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf .venv demo
