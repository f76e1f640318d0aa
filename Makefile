PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := $(if $(wildcard $(READY)),$(READY),.venv/.demo)
GUEST ?= unikernel

.PHONY: help setup demo demo-sites test check docs fuzz bench clean

FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0

help:
	@echo "make demo    boot a virtual machine by a DNS query, and see what it took; GUEST=linux takes another guest"
	@echo "make demo-sites  the same for a template: a virtual machine for each name that is asked for"
	@echo "make test    run all tests; as root also those that need QEMU, a bridge, and a Xen in an emulated machine"
	@echo "make check   linters, types, documentation and the structure: layers, sizes, who calls whom"
	@echo "make docs    the documentation as HTML in build/docs, the manual pages in build/man; a warning is an error"
	@echo "make fuzz    throw octets at all that reads input from outside, FUZZ_SECONDS=60 FUZZ_SEED=0"
	@echo "make bench   measure cold starts"
	@echo "make setup   only install what is missing, from Debian and PyPI; the others do it too"

setup:
	@sh .ci/debian
	@$(MAKE) --silent $(READY)

$(READY): EXTRAS := [dev]
$(READY) .venv/.demo: setup.cfg setup.py
	@echo "Installing from PyPI into .venv; this takes half a minute"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS)'
	@touch $@

demo:
	@sh .ci/debian $(GUEST)
	@$(MAKE) --silent $(DEMO)
	@$(BIN)/python -m demo $(GUEST)

demo-sites:
	@sh .ci/debian unikernel
	@$(MAKE) --silent $(DEMO)
	@$(BIN)/python -m demo.sites

test: setup
	@sh .ci/test

docs: setup
	$(BIN)/python -m sphinx --quiet -W -n --keep-going --fresh-env -b html -d build/doctrees docs build/docs
	$(BIN)/python -m sphinx --quiet -W -n --keep-going -b man -d build/doctrees docs build/man

check: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff check --select C901 --config 'lint.mccabe.max-complexity = 12' jitsu_tw/vm jitsu_tw/cluster jitsu_tw/rules
	$(BIN)/mypy
	$(BIN)/python -m twisted.trial --temp-directory=.venv/trial-check test.structure

fuzz: setup
	$(BIN)/python -m test.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

bench: setup
	$(BIN)/python -m bench.speed.cold

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .hypothesis
