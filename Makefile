# One definition of each check: people, pre-commit and CI all come through here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/lock.txt
CODE := planner tests examples

.DEFAULT_GOAL := help
.PHONY: help demo demo-model test check format format-check lint types floors schemas schemas-check effects-sweep torture bench bench-profile bench-apply bench-transaction bench-evidence bench-analyst test-openai3 lock clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What the demo needs: the package with torch and transformers.
$(VENV)/.demo: pyproject.toml .ci/lock.txt | $(BIN)/python
	@echo "installing into $(VENV) (a minute or two the first time)"
	$(PIP) --editable '.[torch]'
	@touch $@

# What the checks need on top of it.
$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the development tools into $(VENV)"
	$(PIP) --editable '.[torch,litellm,spectra,arrow,dev]'
	@touch $@

demo: $(VENV)/.demo ## The whole story on the bundled model: profile ... revert (no key, no network)
	$(BIN)/python examples/demo.py

demo-model: $(VENV)/.demo ## Train the bundled model again, from its seed (about ten minutes)
	$(BIN)/python examples/make_tiny_model.py

test: $(VENV)/.dev ## Run the tests, with branch coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --cov --cov-report=term

# The SDK's next major version stands on another HTTP library; litellm pins the one before, so it has a place of its own.
$(VENV)/openai3/bin/python: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/openai3
	$(VENV)/openai3/bin/python -m pip install --quiet --disable-pip-version-check 'openai>=3,<4' pytest hypothesis
	$(VENV)/openai3/bin/python -m pip install --quiet --disable-pip-version-check --editable .

test-openai3: $(VENV)/openai3/bin/python ## Run the tests of the transport with openai 3
	OMP_NUM_THREADS=1 $(VENV)/openai3/bin/python -m pytest -q tests/llm

check: format-check lint types floors schemas-check test ## Everything CI checks

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix --exit-zero --quiet $(CODE)

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check $(CODE)

lint: $(VENV)/.dev ## Lint the code
	$(BIN)/ruff check $(CODE)

types: $(VENV)/.dev ## Check the types (strict)
	$(BIN)/mypy

floors: $(VENV)/.dev ## Check that modules import only from the floors below them
	$(BIN)/lint-imports

schemas: $(VENV)/.demo ## Write schemas/ from the types
	$(BIN)/planner schemas

schemas-check: $(VENV)/.dev
	$(BIN)/planner schemas --check

effects-sweep: $(VENV)/.dev ## Every operation on every role of every family, against transformers (about 20 minutes on two busy cores)
	PLANNER_SWEEP=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -rA -q tests/effects/test_effects_cells.py \
		tests/effects/test_effects_compensations.py tests/effects/test_effects_loaders.py

torture: $(VENV)/.dev ## Crashes, full and lying disks, power cuts, against apply, revert and recover (20 minutes; root for all of it)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/torture.py

bench: $(VENV)/.dev ## Speed and memory, as ratios side by side in one run
	$(BIN)/python tests/bench/bench.py

bench-profile: $(VENV)/.dev ## The profiler against reading, torch and numpy (about five minutes)
	$(BIN)/python tests/bench/bench_profile.py

# LIST is the published list of 44 modifications; MERGEKIT, if given, a Python that has mergekit.
# mergekit asks for other versions of what the planner uses, so it has an environment of its own.
$(VENV)/mergekit/bin/python: | $(BIN)/python
	@echo "installing mergekit into $(VENV)/mergekit"
	$(BIN)/python -m venv $(VENV)/mergekit
	$@ -m pip install --quiet --disable-pip-version-check mergekit==0.1.5 $$(grep '^torch==' .ci/lock.txt)

bench-apply: $(VENV)/.dev $(VENV)/mergekit/bin/python ## Preview and apply against cp, mergekit, a plain script (LIST=FILE)
	$(BIN)/python tests/bench/bench_apply.py --mergekit $(VENV)/mergekit/bin/python $(if $(LIST),--modifications "$(LIST)")

bench-transaction: $(VENV)/.dev ## Memory, time, room and undo data of apply, revert, verify, patches (LIST=FILE)
	$(BIN)/python tests/bench/bench_transaction.py $(if $(LIST),--modifications "$(LIST)")

# optuna has an environment of its own, too: it is a control here and nothing that the planner needs.
$(VENV)/optuna/bin/python: | $(BIN)/python
	@echo "installing optuna into $(VENV)/optuna"
	$(BIN)/python -m venv $(VENV)/optuna
	$@ -m pip install --quiet --disable-pip-version-check optuna==5.0.0

bench-evidence: $(VENV)/.dev $(VENV)/optuna/bin/python ## Plans from evidence against temperature, random plans, TPE (about half an hour)
	$(BIN)/python tests/bench/bench_evidence.py --optuna $(VENV)/optuna/bin/python

bench-analyst: $(VENV)/.dev ## What the planner adds to each request to a language model (a minute)
	$(BIN)/python tests/bench/bench_analyst.py

lock: $(VENV)/.dev ## Write the versions of this environment into .ci/lock.txt
	@{ head -n 1 .ci/lock.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > .ci/lock.new
	@mv .ci/lock.new .ci/lock.txt

clean: ## Remove what the other targets made
	rm -rf $(VENV) dist runs .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
