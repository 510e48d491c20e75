# make demo and make test need Python 3.11 or later and make, nothing else: each makes its own environment in .venv.
# A stamp is written when an installation is complete; one that was interrupted is done again.

VENV := .venv
RUN := runs/demo
SOAK := runs/soak
KILLS := 300
INPUTS := 100000
SEED := 0
WORKERS := 2
PYTHON := $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test slow soak lint types audit clean

help:
	@echo "make demo     train a small SMT on handwritten digits, a few minutes on two cores, and classify unseen ones"
	@echo "make test     run the tests"
	@echo "make slow     run the slow tests, e.g. the exports of all detectors to all formats; before a release"
	@echo "make soak     stress tests: KILLS=300 killed runs, INPUTS=100000 fuzzed inputs, about two hours"
	@echo "make lint     ruff: lint and format"
	@echo "make types    mypy"
	@echo "make audit    check the installed packages against a database of vulnerabilities"
	@echo "make clean    remove the environment and what tools left behind; runs/ stays"
	@echo
	@echo "The first call of each installs what it needs into $(VENV)/: several gigabytes, mostly torch."

demo: $(VENV)/.installed-demo
	@echo "==> training: recipe quickstart, into $(RUN)/ (a run that was stopped continues, a finished one is reused;"
	@echo "    to start over: make demo RUN=runs/demo-2)"
	@$(BIN)/smt train quickstart --run $(RUN)
	@echo "==> classifying images that were not trained on"
	@$(BIN)/python examples/demo_images.py $(RUN)/held_out
	@$(BIN)/smt predict $(RUN) $(RUN)/held_out --out $(RUN)/predictions
	@echo "==> done; a file's name begins with the true digit. Look at:"
	@for name in predictions/predictions.png curves.png confusion.png mistakes.png summary.md; do echo "    $(RUN)/$$name"; done

test: $(VENV)/.installed-dev
	@echo "==> tests, on two processes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
	@echo "==> the Triton kernels, in Triton's interpreter"
	@TRITON_INTERPRET=1 SMT_VISION_KERNELS=auto $(BIN)/python -m pytest tests/test_kernels.py

slow: $(VENV)/.installed-dev
	@echo "==> the slow tests, on two processes; those of make soak are left out"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --max-worker-restart 0 --ignore tests/test_soak.py

# What is done is kept in $(SOAK)/; the same command, or one with larger numbers, continues.
soak: $(VENV)/.installed-dev
	@echo "==> the fuzzer itself"
	@$(BIN)/python -m pytest -m slow tests/test_soak.py
	@failed=; \
	echo "==> $(INPUTS) fuzzed inputs, report in $(SOAK)/fuzz.json"; \
	PYTHONPATH=tests $(BIN)/python -m soak fuzz --inputs $(INPUTS) --seed $(SEED) --workers $(WORKERS) --out $(SOAK) || failed=1; \
	echo "==> $(KILLS) killed runs, report in $(SOAK)/kills.json"; \
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m soak kills --kills $(KILLS) --seed $(SEED) --out $(SOAK) || failed=1; \
	test -z "$$failed"

lint: $(VENV)/.installed-dev
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	@echo "==> mypy"
	@$(BIN)/mypy

audit: $(VENV)/.installed-dev
	@echo "==> pip-audit"
	@$(BIN)/python tools/audit.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache src/*.egg-info
	find src tests examples benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

# One pip command for everything: torch and torchvision must come from the same place, or they do not fit each other.
$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	@echo "==> installing the package and its '$*' extra into $(VENV)/ (minutes, the first time)"
	@$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[$*]'
	@touch $@

$(VENV)/.created:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "smt-vision needs Python 3.11 or later; $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1)." \
			"Install it, or name one: make demo PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> making the environment $(VENV)/ with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "No environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@
