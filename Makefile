# Every target works alone and first: it makes .venv when there is none and installs what it needs.
#   make demo PYTHON=/path/to/python3.12      another interpreter
#   make demo BACKEND=redis://localhost:6379  another backend

SHELL := /bin/sh
.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
BACKEND ?=
ARGS ?=
AT ?=
SCHEDULES ?= 5000
FIRST_SEED ?= 0
CORES := $(shell nproc 2>/dev/null || echo 2)
JOBS ?= $(if $(ARGS),0,$(shell expr $(CORES) + 1))

VENV := .venv
BIN := $(VENV)/bin
PINS := requirements/dev.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PRISM := $(VENV)/prism/node_modules/.bin/prism
OIDC := $(VENV)/oidc/node_modules/oidc-provider
INPUTS := pyproject.toml $(PINS) tests/support/bring_redis.py

# What the demo needs beyond the command line depends on the backend that it is to use.
CLIENT := $(if $(findstring redis,$(BACKEND))$(findstring unix:,$(BACKEND)),redis)$(if $(findstring memcached,$(BACKEND)),memcached)
DEMO_STAMP := $(VENV)/.installed-demo$(addprefix -,$(CLIENT))
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs
BENCH_STAMP := $(VENV)/.installed-bench
PEERS := $(PIP) install --constraint $(PINS) --constraint requirements/bench.txt

# What the tests of a folder need; `check` runs what needs nothing but this process.
PURE := tests/unit tests/contract tests/integrations tests/security tests/meta
PYTHONS := 3.11 3.12 3.13

.PHONY: help demo test check tests-pure test-all test-pure-all lint typecheck format order-service bench bench-quick bench-cells reliability simulate simulate-nightly scale given fuzz openapi oidc wheel clean servers

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO_STAMP) ## See it work: fetch, share, renew, heal. No server, no credentials. BACKEND=URL for another backend.
	@$(BIN)/tokencache demo $(if $(BACKEND),--backend "$(BACKEND)") $(ARGS)

test: $(DEV_STAMP) ## Run all tests on this Python, with branch coverage, JOBS at once. ARGS=… goes to pytest.
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -n $(JOBS) --maxprocesses 4 $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report $(if $(ARGS),--fail-under=0,$$(for program in $(SERVERS); do \
	  command -v $$program >/dev/null || { echo --fail-under=0; break; }; done))

check: lint typecheck tests-pure ## Before each commit, under two minutes: form, types, the tests that need nothing but this process.

tests-pure: $(DEV_STAMP)
	@$(BIN)/python -m pytest -n $(CORES) --maxprocesses 4 -q -r fE $(PURE) $(ARGS)

test-all: ## Run all tests on every supported Python that is installed, each in an environment of its own.
	@$(call each_python,$(PYTHONS),test)

test-pure-all: ## Run the tests that need nothing but this process on the Pythons that `make test` has not tried.
	@$(call each_python,$(filter-out $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null),$(PYTHONS)),tests-pure)

# $(1): versions, $(2): target. A shim on PATH may run nothing, so each candidate is tried.
define each_python
for version in $(1); do \
  python=; for found in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python$$version; do \
    if "$$found" -c '' 2>/dev/null; then python=$$found; break; fi; \
  done; \
  if [ -z "$$python" ]; then echo "Python $$version is not installed: nothing was tried on it."; continue; fi; \
  echo "Python $$version:"; $(MAKE) $(2) PYTHON="$$python" VENV=.venv-$$version; \
done
endef

lint: $(DEV_STAMP) ## Check form: ruff, and the formatter's opinion.
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

typecheck: $(DEV_STAMP) ## Check types: mypy strict, pyright strict.
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pyright

format: $(DEV_STAMP) ## Put the form right.
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

order-service: $(DEV_STAMP) ## See a shop's order service with four workers on a fake QPay, and pay on its page.
	@PYTHONPATH=examples/order_service/src $(BIN)/python -m order_service.demo $(ARGS)

bench: $(BENCH_STAMP) ## Measure us, the limits and every peer in one run; write docs/benchmarks.md. Under ten minutes.
	@PYTHONPATH=benchmarks $(BIN)/python -m suite.run --json docs/benchmarks/results.json --report docs $(ARGS)

bench-quick: $(BENCH_STAMP) ## The same in under a minute, with fewer turns and peers; writes nothing.
	@PYTHONPATH=benchmarks $(BIN)/python -m suite.run --quick $(ARGS)

bench-cells: $(BENCH_STAMP) ## Every backend, sync and async, by situation, with pytest-benchmark. ARGS=… goes to pytest.
	@$(BIN)/python -m pytest benchmarks/cells --benchmark-only -p no:randomly $(ARGS)

simulate: $(DEV_STAMP) ## Run the real flow through 5,000 bad days on a virtual world. SCHEDULES=N; simulate-nightly: 200,000.
	@PYTHONPATH=tests/simulation $(BIN)/python -m simulator --schedules $(SCHEDULES) --first-seed $(FIRST_SEED)

simulate-nightly: SCHEDULES := 200000
simulate-nightly: simulate

scale: $(DOCS_STAMP) ## Simulate fleets of any size and write docs/scale.md with its plots, for some ten minutes.
	@PYTHONPATH=benchmarks:tests/simulation $(BIN)/python -m scale.run

reliability: $(DEV_STAMP) ## Run the fault matrix and write docs/reliability.md.
	@$(BIN)/python -m pytest tests/servers/faults --reliability $(ARGS)

given: $(DEV_STAMP) ## Hold the contract and a stampede on servers of yours: AT="/path/to/valkey-server memcached://host redis://host". Empties them.
	@TOKENCACHE_TRY_SERVERS="$(AT)" $(BIN)/python -m pytest tests/servers/given -q -r fE $(ARGS)

fuzz: $(DEV_STAMP) ## Try thousands of inputs and programs of calls, for some ten minutes. ARGS=… goes to pytest.
	@$(BIN)/python -m pytest tests/servers/fuzz --hypothesis-profile=long --durations=0 --durations-min=60 $(ARGS)

openapi: $(DEV_STAMP) ## Hold the QPay client against a server made of docs/qpay-openapi.yaml. Needs npm.
	@if command -v npm >/dev/null; then $(MAKE) $(PRISM) && PRISM=$(PRISM) $(BIN)/python -m pytest tests/npm/openapi $(ARGS); \
	else echo "make openapi: npm is not there, nothing was tried"; fi

$(PRISM):
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/prism @stoplight/prism-cli@5.14.2

oidc: $(DEV_STAMP) ## Hold the grants against a certified authorization server, oidc-provider. Needs npm and node 18.
	@if command -v npm >/dev/null; then $(MAKE) $(OIDC) && OIDC_PROVIDER=$(OIDC) $(BIN)/python -m pytest tests/npm/oidc -n $(JOBS) --maxprocesses 4 $(ARGS); \
	else echo "make oidc: npm is not there, nothing was tried"; fi

$(OIDC):
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/oidc oidc-provider@8.8.1

wheel: $(DEV_STAMP) ## Build the wheel, and try it in an environment of its own, bare and with the command line.
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	$(PIP) wheel --no-deps --wheel-dir "$$work/dist" .; \
	$(BIN)/python -m venv "$$work/venv"; cp tests/meta/wheel_check.py "$$work/"; \
	for extra in bare cli; do \
	  "$$work/venv/bin/python" -m pip --disable-pip-version-check --quiet install --constraint $(PINS) \
	    "$$(echo "$$work"/dist/tokencache-*.whl)$$([ $$extra = bare ] || echo "[$$extra]")"; \
	  (cd "$$work"; venv/bin/python wheel_check.py $$extra); \
	done

clean: ## Remove everything that was made here, .venv too.
	@rm -rf $(VENV) .venv-* dist build htmlcov .coverage .coverage.* coverage.xml
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- servers for the tests ----------------------------------------------------------------------------------------

# No other target changes the system. Only what is missing is installed, nothing is upgraded, and no service is started:
# the tests start servers of their own. Debian asks a policy whether to start a new service; a policy that allows it
# stops the installation.
SERVERS := redis-server memcached
POLICY := /usr/sbin/policy-rc.d
APT := DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -qq -o DPkg::Lock::Timeout=60

servers: ## Install redis-server and memcached from the system's packages, for the tests that need them. Asks for no password.
	@missing=; for program in $(SERVERS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	[ -n "$$missing" ] || exit 0; \
	root=none; if [ "$$(id -u)" = 0 ]; then root=env; elif sudo -n true 2>/dev/null; then root='sudo -n env'; fi; \
	if [ "$$root" != none ] && command -v apt-get >/dev/null; then \
	  echo "Installing$$missing from the system's packages for the live tests, without starting them …"; \
	  if [ ! -e $(POLICY) ]; then \
	    trap "$$root rm -f $(POLICY)" EXIT; trap 'exit 130' INT TERM HUP; \
	    printf '#!/bin/sh\nexit 101\n' | $$root install -m 755 /dev/stdin $(POLICY); \
	  fi; \
	  allowed=0; $$root $(POLICY) redis-server start >/dev/null 2>&1 || allowed=$$?; \
	  if [ "$$allowed" = 101 ]; then \
	    install="$$root $(APT) install --yes --no-install-recommends --no-upgrade --no-remove$$missing"; \
	    $$install >/dev/null 2>&1 || { $$root $(APT) update && $$install >/dev/null; } || true; \
	  fi; \
	fi; \
	missing=; for program in $(SERVERS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	[ -n "$$missing" ] || exit 0; \
	echo "Not installed:$$missing. The tests that need them are skipped, or fail where CI is set, and coverage has" \
	  "no lower limit. On Debian and Ubuntu: sudo apt-get install$$missing; on Fedora: sudo dnf install redis" \
	  "memcached; on macOS: brew install redis memcached. They need not run as services." >&2

# --- the environment ----------------------------------------------------------------------------------------------

# The first interpreter that is new enough and can make a virtual environment with pip in it.
$(BIN)/python:
	@for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$candidate" --version 2>&1) ($$candidate) …"; \
	    "$$candidate" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "'$$candidate' could not make a virtual environment: see its message above." >&2; exit 1; \
	  fi; \
	done; \
	echo "No usable Python found: tokencache needs Python 3.11 or newer with the modules venv and ensurepip." >&2; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3); do \
	  echo "  $$candidate: $$("$$candidate" -c 'import sys; print("version", sys.version.split()[0]); import venv, ensurepip' 2>&1 | tail -n 1)" >&2; \
	done; \
	echo "On Debian and Ubuntu: sudo apt-get install python3 python3-venv. Or name another: make … PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(DEMO_STAMP): $(INPUTS) | $(BIN)/python
	@echo "Installing tokencache for the demo (half a minute the first time) …"
	@$(PIP) install --constraint $(PINS) --editable '.[cli$(addprefix $(comma),$(CLIENT))]'
	@touch $@

$(DEV_STAMP): $(INPUTS) | $(BIN)/python
	@echo "Installing tokencache, its extras, the test tools and the checkers (a minute the first time) …"
	@$(PIP) install --constraint $(PINS) --upgrade pip
	@$(PIP) install --constraint $(PINS) --group dev --editable '.[all]'
	@$(BIN)/python tests/support/bring_redis.py
	@touch $@

$(DOCS_STAMP): $(INPUTS) | $(DEV_STAMP)
	@echo "Installing what draws the plots (half a minute the first time) …"
	@$(PIP) install --constraint $(PINS) --group docs
	@touch $@

# A peer that cannot be installed is said to be missing, here and in the report; the others are measured all the same.
$(BENCH_STAMP): $(INPUTS) requirements/bench.txt | $(DOCS_STAMP)
	@echo "Installing the peers that are measured beside us (a minute the first time) …"
	@$(PEERS) --editable '.[bench]' || $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', \
	  'rb'))['project']['optional-dependencies']['bench'], sep='\n')" | while read -r peer; do \
	  $(PEERS) "$$peer" || echo "Not installed, so not measured: $$peer"; done
	@touch $@

comma := ,
