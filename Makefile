# Every target sets up what it needs: a virtual environment in .venv with the project installed in it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out/$(if $(filter reproduce-%,$(MAKECMDGOALS)),reproduce-$(PROFILE),demo)
# Tests run in parallel processes of one thread each: two pools of threads would fight for the same cores.
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

# bird reproduce: the folder of the data, paper or demo (which needs no data), training seeds, processes side by side.
DATA    ?=
PROFILE ?= paper
SEEDS   ?= 5
TABLES  := reproduce-table1 reproduce-table2 reproduce-table3 reproduce-table4 reproduce-table5 reproduce-table6 reproduce-table7

# Servers and readers that others wrote, each in an environment of its own: what they need does not go with what we need.
PEERS    ?= .venv-peers
INFINITY ?= $(PEERS)/infinity/bin/infinity_emb
MLSERVER ?= $(PEERS)/mlserver/bin/mlserver
READERS  ?= $(PEERS)/readers/bin/python

.PHONY: $(TABLES) reproduce-figures help demo test quick peers check docs torture bench wheel wheels-gpu clean
help:
	@echo "make demo     the main job on the embedded data set, offline: teacher -> cache -> distil -> report"
	@echo "make reproduce-table1 ... reproduce-table7, reproduce-figures"
	@echo "              the paper's tables beside ours; DATA=folder, or PROFILE=demo (no data needed); SEEDS, OUT, JOBS"
	@echo "make test     the tests"
	@echo "make quick    the quick half of them; with another Python: make quick PYTHON=python3.13 VENV=.venv-3.13"
	@echo "make peers    the tests against Infinity, MLServer and other readers of caches, installed for them in $(PEERS) (about 8 GB)"
	@echo "make check    what CI checks beside the tests: ruff, mypy --strict, import contracts"
	@echo "make docs     these pages as a site in docs/_build, offline, with warnings as errors"
	@echo "make torture  the fault tests with their full counts (long)"
	@echo "make bench    the benchmarks (long)"
	@echo "make wheels-gpu  what a GPU machine without a network lacks, for WHEELS=wheels-gpu bench/gpu.sh"
	@echo "make wheel    build both wheels and run them outside the checkout"

# Two distributions from one tree: bird-cache (cache/), and bird-distill, which requires it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ./cache --editable

$(VENV)/.installed: pyproject.toml cache/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[dev]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/bird demo --out $(OUT)

REPRODUCE = $(BIN)/bird reproduce --profile $(PROFILE) $(if $(DATA),--data-root $(DATA)) --seeds $(SEEDS) --jobs $(JOBS) --out $(OUT)

$(TABLES): reproduce-%: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(REPRODUCE) $*

reproduce-figures: $(VENV)/.installed
	export OMP_NUM_THREADS=1; $(REPRODUCE) figure2; first=$$?; $(REPRODUCE) figure3 && exit $$first

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not torture and not peers and not gpu"

quick: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not torture and not peers and not gpu" tests/cache tests/bird

$(PEERS)/%/.installed: tests/peers/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(PEERS)/infinity/bin/infinity_emb: $(PEERS)/infinity/.installed ;
$(PEERS)/mlserver/bin/mlserver: $(PEERS)/mlserver/.installed ;
$(PEERS)/readers/bin/python: $(PEERS)/readers/.installed ;

peers: $(VENV)/.installed $(INFINITY) $(MLSERVER) $(READERS)
	OMP_NUM_THREADS=1 BIRD_INFINITY=$(abspath $(INFINITY)) BIRD_MLSERVER=$(abspath $(MLSERVER)) BIRD_READERS=$(abspath $(READERS)) \
	  $(BIN)/python -m pytest tests/peers -m peers -s

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) ".[docs]"
	@touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build
	@echo docs/_build/index.html

torture: $(VENV)/.installed
	$(BIN)/python -m pytest -m torture
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not torture and not peers and not gpu" --hypothesis-profile random

bench: $(VENV)/.installed
	$(BIN)/python bench/step.py
	$(BIN)/python bench/parts.py
	$(BIN)/python bench/compiled.py
	$(BIN)/python bench/tangents.py
	$(BIN)/python bench/precompute.py
	$(BIN)/python bench/stream.py
	$(BIN)/python bench/verify.py
	$(BIN)/python bench/compress.py
	$(BIN)/python bench/joint.py
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/waiting.py
	$(BIN)/python bench/stack.py
	for name in grid distill size precision; do OMP_NUM_THREADS=1 $(BIN)/python bench/$$name.py || exit 1; done

wheel: $(VENV)/.installed
	$(BIN)/python tests/wheel_check.py

# For CPython 3.12 on x86-64; pip matches each platform name exactly.
GLIBC = manylinux1 manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_27 manylinux_2_28 manylinux_2_34
wheels-gpu: $(VENV)/.installed
	rm -rf $@
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	  --implementation cp $(foreach name,$(GLIBC),--platform $(name)_x86_64) --dest $@ --requirement bench/gpu/requirements.txt
	@du -sh $@

clean:
	rm -rf $(VENV) dist build wheels-gpu
