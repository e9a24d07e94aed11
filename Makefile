# One line a target; `make` alone lists them. Everything runs in .venv, made by `make install`;
# what llmscale is compared with, in .venv-peers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed
PYTEST_OPTIONS ?=
DEMO_MINUTES ?= 2
BENCH_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-cluster peers bench bench-gpu soak lint docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(KERNELS)  ## make .venv with everything in it, C++ operations compiled

# Left alone while pyproject.toml and constraints.txt stay as they are: a second `make install` does nothing.
# torch goes first and by itself, so that pip takes a CPU wheel where the machine offers one.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	  || { echo "llmscale needs Python 3.10 or newer, and '$(PYTHON)' is not: make install PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null \
	  || { echo "llmscale needs a C++ compiler, for DeepSpeed's operations; on Debian and Ubuntu: apt-get install g++" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "Python.h is missing, which DeepSpeed's operations include; on Debian and Ubuntu: apt-get install python3-dev" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[data,wandb,report,ray,dev]' -c constraints.txt
	$(BIN)/python -m llmscale.run.build_ops
	@touch $@

$(KERNELS): $(INSTALLED) $(wildcard $(addprefix kernels/llmscale_kernels/cpu/,*.cpp *.h build.py))
	$(BIN)/python -m llmscale_kernels.cpu.build
	@touch $@

demo: install  ## the whole path on real text, in minutes: tokenizer, corpus, training, resume, sample, report
	$(BIN)/python -m llmscale.run.demo --minutes $(DEMO_MINUTES)

test: install  ## every test that needs no GPU, no cluster and no long matrix
	$(BIN)/python -m pytest -m 'not soak and not gpu and not cluster' $(PYTEST_OPTIONS)

test-cluster: install  ## tests against a real SLURM and a real Ray of several nodes on this machine; as root, or with uidmap
	$(BIN)/python -m pytest -m 'cluster and not soak and not gpu' $(PYTEST_OPTIONS)

peers: $(PEERS_INSTALLED)  ## make .venv-peers, the virtual environment of what llmscale is compared with

# torch by itself here too, and all by the same constraints: both sides of a comparison have the same versions.
$(PEERS_INSTALLED): pyproject.toml constraints.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch -c constraints.txt
	$(PEERS)/bin/python -m pip install --quiet -e '.[peers]' -c constraints.txt
	@touch $@

bench: install peers  ## speed beside transformers, TRL, torch and this machine's own peak; BENCH_OPTIONS=--quick for a try
	$(BIN)/python -m bench.training $(BENCH_OPTIONS)
	$(BIN)/python -m bench.layouts $(BENCH_OPTIONS)
	$(BIN)/python -m bench.sft $(BENCH_OPTIONS)
	$(BIN)/python -m bench.dpo $(BENCH_OPTIONS)
	$(BIN)/python -m bench.grpo $(BENCH_OPTIONS)
	$(BIN)/python -m bench.kernels $(BENCH_OPTIONS)
	$(BIN)/python -m bench.products $(BENCH_OPTIONS)
	$(BIN)/python -m bench.loss $(BENCH_OPTIONS)

bench-gpu: install  ## speed on a GPU beside what it can do; without one, BENCH_OPTIONS='--device cpu --quick' for a try
	$(BIN)/python -m bench.gpu $(BENCH_OPTIONS)

soak: install  ## the full matrices: layouts, kills
	$(BIN)/python -m pytest -m 'soak and not gpu' $(PYTEST_OPTIONS)

lint: install  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: install  ## make the generated pages and pictures of docs/ again
	$(BIN)/python -m llmscale.config.reference > docs/configuration.md
	$(BIN)/python docs/architecture.py

clean:  ## remove .venv, .venv-peers and caches; runs/ and demo/ stay
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
