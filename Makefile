# Every target sets up what it needs first; a second call takes seconds. ARGS are passed on: make run ARGS="--port 8000".
.DEFAULT_GOAL := help
.PHONY: help run test check format docs bench cuda-build gpu-test gpu-bench setup clean cluster-build cluster-up cluster-down images e2e

PYTHON ?= python3
ARGS ?=
export PYTHON

# $(call bootstrap,WHAT)
define bootstrap
@command -v "$$PYTHON" >/dev/null || { echo "oarlock: missing on this machine: $$PYTHON, Python 3.11 or newer (Debian 12: apt install python3 python3-venv python3-dev)" >&2; exit 1; }
@exec "$$PYTHON" tools/bootstrap.py $(1) $(ARGS)
endef

help:
	@echo "make run     set everything up and serve examples/smollm2.yaml on http://127.0.0.1:9965, as a cluster would"
	@echo "make test    set everything up and run all tests, those of the C++ core among them"
	@echo "make check   lint, formatting, types, layers"
	@echo "make bench   measure this machine: floor, decode, prefill, serving"
	@echo "make cuda-build  compile the CUDA kernels; no GPU is needed"
	@echo "make gpu-test, make gpu-bench: the CUDA engine on this machine's GPU, with the Python at hand and no network"
	@echo "make format  format the sources     make docs   write docs/settings.md"
	@echo "make cluster-build, cluster-up, cluster-down: a two-node Kubernetes on this machine; make images, make e2e: tests on it"
	@echo "make clean   remove what was built and installed here"
	@echo
	@echo 'ARGS="…" passes flags on; MODEL=… serves another model or file; CUDA=1 builds for and serves on a GPU;'
	@echo 'PYTHON=… and CXX=… choose the tools.'

run test check bench setup:
	$(call bootstrap,$@)

format: setup
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .
	@find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs .venv/bin/clang-format -i

docs: setup
	@.venv/bin/python -m oarlock_runtime.cli.settings_page >docs/settings.md

cuda-build:
	@exec tools/gpu/compile.sh $(ARGS)

# With the Python at hand; tools/gpu/build.sh says what it needs.
gpu-test:
	@exec tools/gpu/test.sh $(ARGS)

gpu-bench:
	@exec tools/gpu/bench.sh $(ARGS)

# A real two-node Kubernetes on this machine (root; binaries are built once, outside the checkout), and the tests on it.
cluster-build:
	@cd e2e && exec "$$PYTHON" -m cluster build

cluster-up:
	@cd e2e && exec "$$PYTHON" -m cluster up $(ARGS)

cluster-down:
	@cd e2e && exec "$$PYTHON" -m cluster down

images:
	@exec "$$PYTHON" images/build.py operator runtime-cpu $(ARGS)

e2e: setup
	@.venv/bin/pytest e2e/tests $(ARGS)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find operator runtime -name __pycache__ -type d -prune -exec rm -rf {} +
