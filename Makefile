# The targets are described in CONTRIBUTING.md. No step asks a question; what is in place is left alone.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help run test test-full check soak bench bench-check schema real-cli real-cli-contract requirements system
.DEFAULT_GOAL := help

LISTEN ?= 127.0.0.1:8765
ADMIN ?= 127.0.0.1:9464
ARGS ?=
SEED ?= 1
SOAK_SECONDS ?= 1800
WORKERS := -n 2 --dist loadscope
PACKAGES := $(wildcard broker protocol simulator bench tests)
REAL_CLI := $(wildcard tests/real_cli/install tests/real_cli/package-lock.json tests/real_cli/requirements.txt)

# What bench-check measures: the total pace of the full size from a quarter of its sessions, whose starts take most of the time.
BASELINE := bench/baselines/peers.json
SHORT_PEERS := --scenario burst,latency,connect,paced --rounds 3 --sessions 25 --rate 400 --seconds 2

# Tests that have a full size: thousands of cuts, kills, cancels, and loads that last.
SOAKS = $(shell grep -rl --include='test_*.py' '^from tests.soak import' tests)

# command:package - what the tests need beside Python, by the names of Debian. The only list of its kind.
TOOLS := chromium:chromium promtool:prometheus ip:iproute2 unshare:util-linux setpriv:util-linux npm:npm bwrap:bubblewrap socat:socat websocketd:websocketd

help:
	@echo "make run        the broker with the simulated CLI on http://$(LISTEN)/"
	@echo "make test       the tests, in a network namespace that has only loopback"
	@echo "make test-full  the same with the larger half: each scene on both versions of the real CLI"
	@echo "make soak       cuts, kills, churn and chaos in their thousands, about an hour (docs/reliability.md)"
	@echo "make check      ruff, mypy, import contracts"
	@echo "make real-cli   install the pinned versions of the real Claude Code CLI into .real-cli/"
	@echo "make real-cli-contract   write down again which shapes those versions send (tests/conformance/contracts/)"
	@echo "make bench      the benchmarks (ARGS=\"cold-vs-warm --cli real\")"
	@echo "make bench-check   a short bench peers beside $(BASELINE); fails when a ratio with a target is 15 % worse"
	@echo "make schema     write the JSON Schema of the protocol again"
	@echo "make requirements   write the pins in requirements.txt again, from pyproject.toml"

run: .venv/.project
	@exec .venv/bin/python -m broker serve --cli simulated --listen $(LISTEN) --admin $(ADMIN) $(ARGS)

check: .venv/.project
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(PACKAGES)
	.venv/bin/lint-imports --no-logo

test: .venv/.project system
	@$(MAKE) -s .real-cli/.installed || echo "the real CLI could not be installed: see above"
	@tests/run $(WORKERS) -m "not full" $(ARGS)

test-full: .venv/.project system .real-cli/.installed
	@tests/run $(WORKERS) $(ARGS)

soak: .venv/.project system
	@SOAK=1 tests/run -s -q $(SOAKS) $(ARGS)
	@tests/run --python -m bench chaos --tenants 50 --seconds 60 --starve 2 --seed $(SEED)
	@tests/run --python -m bench chaos --tenants 50 --seconds 300 --restart-every 30 --seed $(SEED)
	@tests/run --python -m bench chaos --tenants 50 --seconds $(SOAK_SECONDS) --restart-every 0 --flat --seed $(SEED)

bench: .venv/.project
	@.venv/bin/python -m bench $(ARGS)

bench-check: .venv/.project
	@if [ ! -f $(BASELINE) ]; then \
	    echo "no $(BASELINE): on a machine at rest, make bench ARGS=\"peers --output $(BASELINE)\"" >&2; exit 2; fi; \
	result="$$(mktemp --suffix=.json)"; trap 'rm -f "$$result" "$$result.part"' EXIT; \
	.venv/bin/python -m bench peers $(SHORT_PEERS) --output "$$result" $(ARGS); \
	.venv/bin/python -m bench compare $(BASELINE) "$$result" --fail-on-targets 15%

schema: .venv/.project
	.venv/bin/python -m protocol.schema

real-cli: .venv/.project
	.venv/bin/python tests/real_cli/install
	@touch .real-cli/.installed

real-cli-contract: .venv/.project .real-cli/.installed
	@tests/run --python -m tests.conformance.write_contract $(ARGS)

requirements: .venv/.project
	.venv/bin/pip-compile --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links \
	    --no-emit-trusted-host --no-header --strip-extras --extra=dev --extra=uvloop --extra=bench \
	    --output-file=requirements.txt $(ARGS) pyproject.toml

.venv/.requirements: requirements.txt
	@if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then $(create-venv); fi
	@echo "installing the pinned packages into .venv ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt </dev/null
	@touch $@

.venv/.project: .venv/.requirements pyproject.toml
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . </dev/null
	@touch $@

.real-cli/.installed: $(REAL_CLI)
	@$(MAKE) --no-print-directory real-cli

system:
	@missing=""; \
	for pair in $(TOOLS); do command -v "$${pair%%:*}" >/dev/null || missing+=" $${pair#*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	$(call apt-install,$$missing) || echo "missing, so some tests cannot run (Debian: apt-get install$$missing)"

# The first Python that is new enough and works (a pyenv shim may exist without a version behind it).
define create-venv
	python=""; \
	for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed (Debian: apt-get install python3-venv)" >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip' 2>/dev/null; then \
	    $(call apt-install,python3-venv) || { echo "$$python has no ensurepip (Debian: apt-get install python3-venv)" >&2; exit 1; }; \
	fi; \
	echo "creating .venv with $$($$python --version) ..."; \
	"$$python" -m venv .venv
endef

# True if $(1) could be installed: on Debian, as root, without a question.
# RUNLEVEL=1: a package that brings a daemon (prometheus) is installed and not started.
define apt-install
	{ [ -f /etc/debian_version ] && [ "$$(id -u)" = 0 ] && export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	  && echo "installing $(1) ..." \
	  && { apt-get install -qq -y --no-install-recommends $(1) </dev/null >/dev/null 2>&1 \
	       || { apt-get update -qq </dev/null >/dev/null && apt-get install -qq -y --no-install-recommends $(1) </dev/null >/dev/null; }; }; }
endef
