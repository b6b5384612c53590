# loraway: `make help` lists what there is to do. Needs Python 3.11 and GNU make, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run setup setup-dev setup-sglang setup-bench test check format bench-gateway bench-loop loadtest clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
#: Engines that `make run` starts: vllm, sglang or vllm,sglang.
ENGINE ?= vllm
#: Further options of `loraway up`.
ARGS ?=
PYTEST_ARGS ?=

HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
OUR_PINS := requirements/finetune.txt requirements/gateway.txt requirements/model.txt
DEV_PINS := requirements/dev.txt requirements/loadtest.txt
ifeq ($(HAS_GPU),yes)
# CUDA builds bring their libraries as dependencies, so pip resolves them, held to our pins.
PINS := requirements/vllm.txt $(OUR_PINS)
INSTALL_PINS = -r requirements/vllm.txt $(addprefix -c ,$(filter-out requirements/model.txt,$(OUR_PINS)))
SGLANG_PINS := requirements/sglang.txt
INSTALL_SGLANG = -r requirements/sglang.txt
else
PINS := requirements/torch-cpu.txt requirements/vllm-cpu.txt $(OUR_PINS)
INSTALL_PINS = --no-deps $(addprefix -r ,$(PINS))
SGLANG_PINS := requirements/torch-cpu.txt requirements/sglang-cpu.txt
INSTALL_SGLANG = --no-deps $(addprefix -r ,$(SGLANG_PINS))
endif
BENCH_PINS := requirements/bench.txt

# A stamp names the pins that it stands for: other pins, another stamp, a new install.
stamp = $(1)/.installed-$(shell cat $(2) | sha256sum | cut -c1-16)
READY := $(call stamp,.venv,$(PINS) pyproject.toml)
DEV_READY := $(call stamp,.venv,$(PINS) $(DEV_PINS) pyproject.toml)-dev
SGLANG_READY := $(call stamp,.venv-sglang,$(SGLANG_PINS))
BENCH_READY := $(call stamp,.venv-bench,$(BENCH_PINS))

BIN := .venv/bin
# Byte code is compiled afterwards on all cores: quicker than by pip, and engines start three times as fast with it.
PIP_INSTALL = -m pip install --disable-pip-version-check --no-input --no-compile
# (Some packages ship files that are no valid Python; compileall counts them as failures.)
COMPILE = -m compileall -q -j 0
SHOW_PROGRESS = { n=0; while read -r line; do case "$$line" in \
	Collecting*|Processing*) n=$$((n + 1)); printf '\r  %s packages fetched' $$n;; \
	Installing*) printf '\n  unpacking them (up to a minute)\n';; esac; done; }

help: ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo '  ENGINE=vllm|sglang|vllm,sglang  what make run starts (now: $(ENGINE))'
	@echo "  ARGS='--port 9000'              options of loraway up; see: $(BIN)/loraway up --help"

run: setup $(if $(findstring sglang,$(ENGINE)),setup-sglang) ## Start engine, gateway, controller and trainer; Ctrl-C stops them.
	@exec $(BIN)/loraway up --engine $(ENGINE) $(ARGS)

setup: $(READY) ## Install everything that make run needs into .venv.
setup-dev: $(DEV_READY) ## The same and the tools for checks, tests and load tests.
setup-sglang: $(SGLANG_READY) ## Install SGLang into an environment of its own, .venv-sglang.
setup-bench: $(BENCH_READY) ## Install the routers that bench-gateway compares with into .venv-bench.

$(READY): | .venv/bin/python
	@echo 'Installing the pinned packages into .venv (once, two minutes) ...'
	@$(BIN)/python $(PIP_INSTALL) $(INSTALL_PINS) | $(SHOW_PROGRESS)
	@$(if $(HAS_GPU),$(BIN)/python $(PIP_INSTALL) -q --no-deps $(addprefix -r ,$(OUR_PINS)))
	@$(BIN)/python $(PIP_INSTALL) -q --no-deps --no-build-isolation -e .
	@echo '  compiling byte code'; $(BIN)/python $(COMPILE) .venv/lib >/dev/null || true
	@rm -f .venv/.installed-*; touch $@

$(DEV_READY): $(READY)
	@echo 'Installing the tools for checks and tests into .venv (once, half a minute) ...'
	@$(BIN)/python $(PIP_INSTALL) --no-deps $(addprefix -r ,$(DEV_PINS)) | $(SHOW_PROGRESS)
	@$(BIN)/python $(COMPILE) .venv/lib >/dev/null || true
	@touch $@

$(SGLANG_READY): | .venv-sglang/bin/python
	@echo 'Installing SGLang into .venv-sglang (once, two minutes) ...'
	@.venv-sglang/bin/python $(PIP_INSTALL) $(INSTALL_SGLANG) | $(SHOW_PROGRESS)
	@echo '  compiling byte code'; .venv-sglang/bin/python $(COMPILE) .venv-sglang/lib >/dev/null || true
	@rm -f .venv-sglang/.installed-*; touch $@

$(BENCH_READY): | .venv-bench/bin/python
	@echo 'Installing the routers to compare with into .venv-bench (once) ...'
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements/bench.txt
	@rm -f .venv-bench/.installed-*; touch $@

.venv/bin/python .venv-sglang/bin/python .venv-bench/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "loraway is pinned for Python 3.11; name one: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

test: ## Check, then run all tests, the fast ones first; real engines and real training last.
	@$(MAKE) --no-print-directory -j2 setup-dev setup-sglang
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/integration
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/e2e

check: setup-dev ## Lint, formatting, types and the direction of imports.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev ## Sort imports and format the code.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-gateway: setup-dev setup-bench ## CPU per request and per chunk, beside nginx and two Rust routers.
	$(BIN)/python -m loadtest.benchmarks.gateway $(ARGS)

bench-loop: setup-dev ## Where the time goes from a fine-tuning request to the first token of the new version.
	$(BIN)/python -m loadtest.benchmarks.loop $(ARGS)

loadtest: setup-dev ## A bounded Locust run against the gateway that `make run` started.
	$(BIN)/python -m loadtest $(ARGS)

clean: ## Remove what was built and cached; environments and data stay.
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
