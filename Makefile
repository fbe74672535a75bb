# Two commands do all the set-up on a fresh machine: `make sim` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make sim ARGS="--silos 5 --dp-epsilon 3"` passes options on; the last one given wins. `make sim DP=` runs without DP.
DP ?= --dp-epsilon 8
ARGS ?=
# Processes that tests run in, one a core; `make test WORKERS=0` runs them one after another in one.
WORKERS ?= auto

.PHONY: sim test lint bench-sim bench-secagg bench-proofs bench-privacy bench-pruning bench-personal bench-robustness bench-ablations bench-agreement bench-landscape bench-compaction bench-ckks bench-stages bench-threats clean

sim: $(VENV)/.installed
	$(BIN)/python -m autoflip_secure.sim $(DP) $(ARGS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-sim: $(VENV)/.installed
	$(BIN)/python benchmarks/sim.py $(ARGS)

bench-proofs: $(VENV)/.installed
	$(BIN)/python benchmarks/model_proofs.py $(ARGS)

bench-secagg: $(VENV)/.installed
	$(BIN)/python benchmarks/secagg.py $(ARGS)

# Accuracy by epsilon, then what backs it: canaries, noise over its least, agreement under noise. ARGS=--quick is brief.
bench-privacy: $(VENV)/.installed-test
	$(BIN)/python benchmarks/privacy_accuracy.py $(ARGS)
	$(BIN)/python benchmarks/audit.py $(filter --quick --fresh,$(ARGS))
	$(BIN)/python benchmarks/noise.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/agreement_privacy.py $(filter --quick --fresh,$(ARGS))

bench-pruning: $(VENV)/.installed-test
	$(BIN)/python benchmarks/pruning.py $(ARGS)

bench-personal: $(VENV)/.installed-test
	$(BIN)/python benchmarks/personal.py $(ARGS)

bench-ablations: $(VENV)/.installed-test
	$(BIN)/python benchmarks/ablations.py $(ARGS)

bench-agreement: $(VENV)/.installed-test
	$(BIN)/python benchmarks/agreement_levels.py $(ARGS)

bench-landscape: $(VENV)/.installed-test
	$(BIN)/python benchmarks/landscape.py $(ARGS)

bench-compaction: $(VENV)/.installed
	$(BIN)/python benchmarks/compaction.py $(ARGS)

bench-robustness: $(VENV)/.installed-test
	$(BIN)/python benchmarks/robustness.py $(ARGS)

bench-ckks: $(VENV)/.installed
	$(BIN)/python benchmarks/ckks.py $(ARGS)

bench-stages: $(VENV)/.installed-test
	$(BIN)/python benchmarks/stages.py $(ARGS)

bench-threats: $(VENV)/.installed-test
	$(BIN)/python benchmarks/threats.py $(ARGS)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV)
