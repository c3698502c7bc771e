# One command each. Everything lives in this checkout's own .venv and build/, so a fresh machine
# needs gcc, make and Python with its headers and venv, nothing else.
#
# The package is installed editable: Python sources are imported from the checkout, the compiled
# module from .venv. Nothing is built on import, because tests start many processes at once; a
# change to C reaches Python by `make build`, which every target that runs Python does first.

PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# More arguments for pytest: make test PYTEST="-k structure"
PYTEST ?=
# More arguments for the demo: make demo DEMO="--peers 3"
DEMO ?=
# What to compare: make bench BENCH="--ranks 2 --ops all_reduce --bytes 4,1M" prints tables. Without
# it everything is measured, which takes hours, and docs/performance.md is written.
BENCH ?= --docs --json build/bench/results.json
# How long to soak, and more: make soak SOAK="--seconds 60 --seed 7"
SOAK ?= --seconds 600
# Which fleets to simulate: make sim SIM="--seeds 100 --first 5000"
SIM ?= --seeds 10000

# Whose torch backend torch's own tests are run for, by how many ranks, and more:
# make test-suite BACKEND=gloo RANKS=4 SUITE="--only broadcast"
BACKEND ?= collectives
RANKS ?= 3
SUITE ?=

# What else for the chaos test: make chaos CHAOS="--seed 7 --faults 60"
CHAOS ?=

# How much of the recovery benchmark: make bench-recovery RECOVERY="--kills 5 --silent 2 --down 5"
RECOVERY ?= --json build/bench/recovery.json --markdown build/bench/recovery.md

# How much of the torch benchmark: make bench-torch TORCH="--rounds 3 --ranks 2"
TORCH ?= --json build/bench/torch.json

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# As in pyproject.toml's [build-system], plus what scikit-build-core would fetch on its own.
BUILD_TOOLS := "scikit-build-core>=0.11" "cffi>=2.1" "cmake>=3.26" "ninja>=1.11"

# cmake finds ninja, and pip finds cmake, in the venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Directories are among them, so that a removed file is noticed too.
NATIVE := CMakeLists.txt $(shell find csrc transport bindings -type d -not -name __pycache__ \
	-o -name '*.[ch]' -o -name '*.py')
# Without tests/wan, which was taken over as it is.
C_FILES = $(shell find csrc transport bindings tests $(wildcard benchmarks) -path tests/wan -prune \
	-o -name '*.[ch]' -print)

CMAKE = $(BIN)/cmake -S . -G Ninja -DCOLLECTIVES_TESTS=ON --log-level=WARNING
NINJA = $(BIN)/cmake --build
CTEST = $(BIN)/ctest --output-on-failure --parallel $(JOBS)

.PHONY: build demo bench bench-recovery bench-torch test test-c test-python test-torch test-suite \
	test-huge sim soak chaos lint format docs \
	sanitize asan tsan clean
.DELETE_ON_ERROR:

build: $(STAMPS)/build

demo: $(STAMPS)/build
	$(BIN)/collectives demo $(DEMO)

bench: $(STAMPS)/build
	mkdir -p build/bench
	$(BIN)/python benchmarks/compare.py $(BENCH)

bench-recovery: $(STAMPS)/build
	mkdir -p build/bench
	$(BIN)/python benchmarks/recovery.py $(RECOVERY)

bench-torch: $(STAMPS)/build
	$(PIP) install torch==2.13.0
	mkdir -p build/bench
	$(BIN)/python benchmarks/torch_compare.py $(TORCH)

test: test-c test-python

test-c: $(STAMPS)/test
	$(CMAKE) -B build/tests
	$(NINJA) build/tests --parallel $(JOBS)
	$(CTEST) --test-dir build/tests

test-python: $(STAMPS)/test
	$(BIN)/python -m pytest $(PYTEST)

# Torch is no requirement of the tests: this installs it (the CPU build where pip finds one).
test-torch: $(STAMPS)/test
	$(PIP) install torch==2.13.0
	-$(PIP) install torch==2.13.0 torchft==0.2.0 # its test is skipped without it
	$(BIN)/python -m pytest tests/python/test_torch.py tests/distributed $(PYTEST)

# torch's own tests, which are in its wheel: docs/torch_suite.md.
test-suite: $(STAMPS)/test
	$(PIP) install torch==2.13.0 expecttest==0.3.0
	$(BIN)/python tests/distributed/suite/run.py --backend $(BACKEND) --ranks $(RANKS) \
		--json build/suite/$(BACKEND)-$(RANKS).json $(SUITE)

# Arrays above 4 GiB: they take 9 GiB of memory, and PYTEST="-k one_result" 5.
test-huge: $(STAMPS)/test
	$(BIN)/python -m pytest -m huge tests/python/test_huge.py $(PYTEST)

# Ten thousand lives of simulated fleets. One again, event by event: make sim SIM="--seed 7 -v"
sim: $(STAMPS)/test
	$(BIN)/python tests/sim/fleet_run.py $(SIM)

soak: $(STAMPS)/test
	PYTHONPATH=tests/python $(BIN)/python tests/soak/soak.py $(SOAK)

# As root with blackholes; without it the run says that they are left out.
chaos: $(STAMPS)/test
	$(BIN)/python tests/chaos/chaos.py $(CHAOS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/mypy
	$(CMAKE) -B build/lint -DCOLLECTIVES_WERROR=ON
	$(NINJA) build/lint --parallel $(JOBS)

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# The pages that are made of the sources; tests compare them.
docs: $(STAMPS)/build
	$(BIN)/python -c 'from collectives import settings; print(settings.page(), end="")' \
		> docs/settings.md

sanitize: asan tsan

asan: $(STAMPS)/test
	$(CMAKE) -B build/asan -DCOLLECTIVES_SANITIZE=address,undefined
	$(NINJA) build/asan --parallel $(JOBS)
	$(CTEST) --test-dir build/asan
	bash tests/smoke_sanitized.sh asan

tsan: $(STAMPS)/test
	$(CMAKE) -B build/tsan -DCOLLECTIVES_SANITIZE=thread
	$(NINJA) build/tsan --parallel $(JOBS)
	TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1" \
		$(CTEST) --test-dir build/tsan --exclude-regex 'test_plan|test_kernels' # no threads
	bash tests/smoke_sanitized.sh tsan

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf $(VENV)

# ---- the venv: a stamp for each stage, made anew only when what it depends on changed -------------

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/tools: $(STAMPS)/venv pyproject.toml
	$(PIP) install $(BUILD_TOOLS)
	touch $@

$(STAMPS)/build: $(STAMPS)/tools $(NATIVE)
	$(PIP) install --no-build-isolation --editable .
	touch $@

# The extras depend on pyproject.toml alone; the module must be built before, in any case.
$(STAMPS)/test: $(STAMPS)/test-extra $(STAMPS)/build
	touch $@

$(STAMPS)/dev: $(STAMPS)/dev-extra $(STAMPS)/build
	touch $@

$(STAMPS)/%-extra: pyproject.toml | $(STAMPS)/build
	$(PIP) install --no-build-isolation --editable '.[$*]'
	touch $@

# Interrupted work must be done again, not deleted as intermediate.
.PRECIOUS: $(STAMPS)/%-extra
