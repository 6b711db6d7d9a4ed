# `make help` lists the targets. Everything is set up in $(VENV), once; later runs start at once.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
ARGS ?=
BENCH ?= step --shape 64x3x224x224 --dtype float32

# What `make test-quick` leaves out: other builds and processes, emulators, sanitizers, whole models.
SLOW_TESTS := cuda emulator triton engine/test_compile.py engine/test_dense.py engine/test_inductor.py \
  engine/test_live.py engine/test_replay.py engine/test_replay_stops.py engine/test_zoo.py \
  test_backend.py test_bench.py test_bench_asked.py test_bench_table.py test_cli.py test_cli_mistakes.py \
  test_cli_universal.py test_data_free.py test_defence.py test_defence_detector.py test_gpu_checks.py \
  test_head.py \
  test_install.py test_moosavi.py test_ops_torch.py test_step_edges.py test_training.py \
  test_universal_ranks.py

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
BUILD_TOOLS := setuptools pybind11 cmake ninja
CXX_SOURCES = $(shell find csrc tests/cuda -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
BUILT_FROM = setup.py CMakeLists.txt $(wildcard cmake/*) $(shell find csrc) # the folders too: a file may go away

# Everywhere in this file a missing extension is an error, never a silent slow install.
export FASTADV_REQUIRE_NATIVE := 1

PIP_FAILED = { echo; echo "pip could not install what fastadv needs; its own message stands above."; \
  echo "If it found no package index: connect to a network, or give pip yours, for example"; \
  echo "  make PIP_FLAGS='--index-url https://your.index/simple'    (or set PIP_INDEX_URL)"; \
  exit 1; } >&2

.DELETE_ON_ERROR:
.PHONY: setup demo test test-quick test-gpu lint format bench clean distclean help

setup: $(VENV)/.built  ## set up the virtual environment and compile fastadv into it (the default)
	@echo "fastadv is ready in $(VENV): try 'make demo', or $(PY)"

demo: $(VENV)/.built  ## train a small net, attack it, print a table and draw a figure (under a minute)
	$(PY) -m fastadv demo $(ARGS)

test: $(VENV)/.built  ## run the tests, on all cores; pytest's options in ARGS, as in ARGS="-k step"
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-quick: $(VENV)/.built  ## the edit loop's tests: what is not slow, no emulator, no sanitizer, no zoo
	$(PY) -m pytest -n auto --dist loadfile -q -m "not slow" $(addprefix --ignore=tests/,$(SLOW_TESTS)) $(ARGS)

test-gpu: $(VENV)/.built  ## check this machine's GPU with every backend; writes gpu-report.md
	PYTHONPATH=. $(PY) tests/gpu/run.py $(ARGS)

lint: $(VENV)/.built  ## check style and types: ruff, mypy --strict, clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict fastadv bench
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.built  ## rewrite the sources in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/.bench  ## measure a kernel; which one in BENCH="step --shape 64x3x224x224 ..."
	$(PY) -m bench.run $(BENCH)

clean:  ## remove what was compiled, and caches
	rm -rf build dist *.egg-info $(VENV)/.built fastadv/_build.json* fastadv/*.so \
	  .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the virtual environment
	rm -rf $(VENV)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: PYTHON (an interpreter, 3.10 or newer), VENV ($(VENV)), CXX (a C++ compiler),"
	@echo "  PIP_FLAGS (options of pip install, such as an index with small, CPU-only builds of torch)"

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "fastadv needs Python 3.10 or newer, and there is \
	no '$(PYTHON)': install it, or name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { echo "fastadv \
	needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1): name another one: \
	make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual \
	environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch and the build tools come first: fastadv's build finds them in the environment.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt setup.py
	@compiler=$${CXX:-}; for name in c++ g++ clang++; do \
	  [ -n "$$compiler" ] || compiler=$$(command -v $$name || true); done; \
	command -v $${compiler:-none} >/dev/null 2>&1 || { echo "fastadv needs a C++ compiler\
	$${CXX:+, and there is no '$$CXX'}: install one (Debian, Ubuntu: apt-get install g++; Fedora: \
	dnf install gcc-c++; macOS: xcode-select --install), or name it: make CXX=/path/to/g++" >&2; exit 1; }
	@echo "Installing torch and the build tools (a minute or two, once)"
	@$(PIP) torch $(BUILD_TOOLS) || $(PIP_FAILED)
	@echo "Installing fastadv, editable, with its development tools, and compiling its kernels"
	@$(PIP) --no-build-isolation -e '.[demo,dev]' || $(PIP_FAILED)
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(BUILT_FROM)
	@echo "Compiling what changed in csrc/"
	@$(PY) setup.py -q build_ext --inplace
	@touch $@

# torchattacks and adv-lib declare torchvision and do not need it: see pyproject.toml.
$(VENV)/.bench: $(VENV)/.built
	@echo "Installing the libraries that fastadv is measured against"
	@$(PIP) --no-build-isolation -e '.[bench]' && $(PIP) --no-deps torchattacks adv-lib || $(PIP_FAILED)
	@touch $@
