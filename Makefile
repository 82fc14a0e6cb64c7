# make demo      what a secret leaves behind, in plain Python and in an arena
# make budget    a JSON document too large for the memory that its parser is given
# make test      C tests, lint, Python tests
# make test-all  the same, with the Python tests on each of 3.11, 3.12, 3.13 that is found
# make test-aarch64      the tests for 64-bit Arm under qemu; WHAT=c or WHAT=python for a part
# make tagged            what memory tags stop: HEAP_TAGGED, glibc and Scudo side by side
# make wheel     dist/: the sdist, and a manylinux wheel for each Python found
# make release-check  the same, built twice, installed into empty environments, with an SBOM
# make threat-model      every promise of docs/threat-model.md, its tests, and their controls
# make soak MINUTES=30   a mixed program under load, with faults injected
# make docs      these documents as pages, in build-docs/html; make man: malloc-arena.1 anew
# make lint, make format, make bench, make clean
#
# All of it in a venv in the checkout. PYTHON=python3.12 picks the interpreter; INSTALL=1 lets root
# install missing Debian packages.

PYTHON ?=
VENV ?= .venv
export PYTHON
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
MAKEFLAGS += --no-print-directory

C_FILES = $(shell find $(wildcard include src tests examples benchmarks fuzz) -name '*.[ch]' -o -name '*.cpp')

.PHONY: demo budget test test-all test-aarch64 tagged threat-model soak ready ctest pytest lint \
  format bench docs man wheel release-check clean

demo: ready
	@malloc-arena demo

budget: ready
	@malloc-arena demo budget

test: ctest lint pytest

ready:
	@sh .ci/setup $(VENV)

ctest: ready
	@test -f build/build.ninja || meson setup build -Dpython=false -Dtests=true -Dwerror=true
	@meson test -C build --print-errorlogs

pytest: ready
	@pytest

threat-model: ready
	@pytest -q -m promise --threat-model

MINUTES ?= 30
soak: ready
	@test -f build/build.ninja || meson setup build -Dpython=false -Dtests=true -Dwerror=true
	@meson compile -C build soak
	@build/tests/c/soak --minutes $(MINUTES)
	@SOAK_SECONDS=$$(($(MINUTES) * 6)) pytest -q -s --timeout=0 tests/py/integration/test_soak.py

WHAT ?= all
test-aarch64: ready
	@sh .ci/aarch64 build-aarch64 $(WHAT)

tagged: ready
	@sh .ci/aarch64 build-aarch64 tree
	@python benchmarks/tagged.py

lint: ready
	@ruff check .
	@ruff format --check .
	@mypy
	@clang-format --dry-run -Werror $(C_FILES)

format: ready
	@ruff check --fix --exit-zero --quiet .
	@ruff format .
	@clang-format -i $(C_FILES)

bench: ready
	@python benchmarks/run.py

# The interpreter of .venv comes last, with everything else that "make test" does.
test-all: ready
	@main=$$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for version in 3.11 3.12 3.13; do \
	  test $$version = $$main && continue; \
	  for python in python$$version \
	      "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python3; do \
	    "$$python" -c '' 2>/dev/null || continue; \
	    echo "test-all: Python $$version"; \
	    $(MAKE) pytest PYTHON="$$python" VENV=.venv-$$version || exit 1; \
	    break; \
	  done; \
	done
	@$(MAKE) test

docs: ready
	@sphinx-build -q -E -W --keep-going -b html docs build-docs/html
	@echo "docs: build-docs/html/index.html"

man: ready
	@python man/generate.py >man/new
	@mv man/new man/malloc-arena.1

wheel release-check: ready
	@python -m pip --disable-pip-version-check -qq install --group release
	@python .ci/release.py $(@:release-%=%)

clean:
	rm -rf dist build-docs .venv .venv-3.* build .mypy_cache .pytest_cache .ruff_cache
