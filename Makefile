# Isocenter. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What is never imported need not be compiled; the rest is at its first import.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
PORT   ?= 8000
IMAGES ?= nuclei_dsb2018
CHECKPOINT ?= nuclei.pt
HEADS ?=
BRAIN_CHECKPOINT ?= brain_tumor.pt
export OPENBLAS_NUM_THREADS := 1
# Where it is set, each of the hundred processes that the tests start would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
# `make test TEST_MINUTES=70` begins no slow test and none of several parts together after these minutes, and none at all
# ten minutes later.
# Once: what make is called from here would count from its own start.
ifndef TESTS_END_AT
export TESTS_END_AT := $(if $(TEST_MINUTES),$(shell expr $$(date +%s) + 60 \* $(TEST_MINUTES)))
endif

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-slow test-long test-real faults check check-code check-docs format bench bench-peers bench-runtimes bench-scans bench-users bench-volumes cell-models train-nuclei train-brain docs clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.core ## Install, serve, classify phantom slices, show the result
	@$(BIN)/python examples/demo.py

serve: $(VENV)/.core ## Serve models/ at PORT (8000)
	@$(BIN)/isocenter serve --models models --port $(PORT)

test: $(VENV)/.dev ## Everything that must hold: checks, then fast tests, then slow ones
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check
	BUILT_MANUAL='$(CURDIR)/site' $(PYTEST) -m "not slow" src tests/unit tests/integration tests/contract
	@$(MAKE) --no-print-directory test-slow

# To collect them alone takes minutes where no time is left.
test-slow: $(VENV)/.dev
	@if [ $$(date +%s) -lt $${TESTS_END_AT:-9999999999} ]; \
		then $(PYTEST) -m "slow and not gpu and not long" tests; \
		else echo "The slow tests are left out: TEST_MINUTES are over."; fi

test-long: $(VENV)/.dev ## Networks at full size in every runtime, crowds, cohorts: half an hour
	$(BIN)/python -m pytest -m long tests

faults: $(VENV)/.dev ## Break things on purpose; who was answered, told why not, lost: benchmarks/results/faults.md
	$(BIN)/python -m pytest -m fault --fault-table benchmarks/results/faults.md tests

test-real: $(VENV)/.dev ## Against real third-party parts, which scripts in tests/real install; on a network of its own
	tests/real/install_tritonserver.sh
	tests/real/install_nnunet.sh
	unshare --net $$([ "$$(id -u)" = 0 ] || echo --map-root-user) sh -c 'ip link set lo up && exec "$$@"' sh \
		$(BIN)/python -m pytest -m real tests/real

check: check-code check-docs ## Format, lint, types, import contracts, docs

check-code: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check-docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure the server against the bare model, plain FastAPI and (if installed) LitServe, in one run
	$(BIN)/python benchmarks/serving.py

bench-peers: $(VENV)/.dev ## Measure the server among its peers; needs the peer benchmark kit (PEERBENCH), takes two hours
	$(BIN)/python benchmarks/peers.py $(BENCH)

bench-runtimes: $(VENV)/.dev ## Measure 5 networks in every runtime and precision; needs the extras torch and openvino
	$(BIN)/python benchmarks/runtimes.py $(BENCH)

bench-volumes: $(VENV)/.dev ## Measure volumes beside MONAI's inferer, and eight scans at once; needs torch, monai, openvino
	$(BIN)/python benchmarks/volumes.py $(BENCH)

bench-scans: $(VENV)/.dev ## Measure 90 scans of 256 x 256 x 128 voxels over HTTP, from a path to the checked answer
	$(BIN)/python benchmarks/scans.py $(BENCH)

bench-users: $(VENV)/.dev ## Measure 1 to 8 users of three segmentation networks, and whether sharing helps; needs torch
	$(BIN)/python benchmarks/users.py $(BENCH)

cell-models: $(VENV)/.dev ## HRNet, CBAM-ResUNet and U-Net with random weights, as model folders in build/cell-models
	$(BIN)/python benchmarks/cell_networks.py --out build/cell-models

train-nuclei: $(VENV)/.dev ## Train and measure models/nuclei-segmenter from IMAGES, a copy of the DSB 2018 set; needs torch; two hours
	PYTHONPATH=src $(BIN)/python training/nuclei.py --images $(IMAGES) --checkpoint $(CHECKPOINT)
	PYTHONPATH=src $(BIN)/python training/nuclei_report.py --images $(IMAGES) --checkpoint $(CHECKPOINT) \
		--out models/nuclei-segmenter/1

train-brain: $(VENV)/.dev ## Train and measure models/brain-tumor-3d from drawn heads and those in HEADS; needs torch; four hours
	PYTHONPATH=src $(BIN)/python -m torch.distributed.run --nproc-per-node 2 training/brain_tumor.py \
		$(HEADS:%=--heads %) --checkpoint $(BRAIN_CHECKPOINT) --steps 25000 --minutes 240
	PYTHONPATH=src $(BIN)/python training/brain_tumor_report.py $(HEADS:%=--heads %) --checkpoint $(BRAIN_CHECKPOINT) \
		--figures $(BRAIN_CHECKPOINT).json --out models/brain-tumor-3d/1 --write-package --write-card

docs: $(VENV)/.dev ## Build the manual and serve it at http://127.0.0.1:8001
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

clean: ## Remove what was built
	rm -rf $(VENV) site demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Isocenter needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Isocenter into $(VENV) (about a minute the first time) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Isocenter and its development tools into $(VENV) (about two minutes the first time) ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core
