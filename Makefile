# Every target sets itself up from nothing, and is quick the second time.

PORT ?= 8000
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin

# The first interpreter that runs and is 3.11 or 3.12. A name on the PATH may be a shim that does not
# run, so each is tried; a PYTHON given by the caller is held to the same versions below.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3; do \
	"$$python" -c '$(SUPPORTED)' 2>/dev/null && { echo "$$python"; break; }; done)
endif

# Without an NVIDIA driver, PyTorch's own index spares several gigabytes of CUDA libraries.
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
CPU_WHEELS := https://download.pytorch.org/whl/cpu
HAS_NVIDIA := $(shell command -v nvidia-smi)

# The environment variable, unlike -c, also holds the packages that build ours.
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Other people's clients, that tests/clients drives; some cannot live in one environment.
CLIENTS := .venv-clients/.installed .venv-clients-openai2/.installed
# Ray Serve, that deploy/ray runs replicas with; its packages are not ours.
RAY := .venv-ray/.installed
# Other versions of triton that the kernels compile with, put before ours on the path.
TRITONS := .venv-triton-3.6.0/.installed .venv-triton-3.9.0/.installed

.PHONY: help serve test check fuzz soak load gpu bench bench-api bench-metrics bench-scheduler kernels-report format clean dashboards pictures

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

serve: $(VENV)/.serve ## Serve the embedded checkpoint on PORT (8000); further flags in ARGS
	@exec $(BIN)/winnow serve --port $(PORT) $(ARGS)

test: $(VENV)/.test ## Lint, types and the tests that need nothing but this machine
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not check and not gpu" $(ARGS)

check: $(VENV)/.test $(CLIENTS) $(TRITONS) $(RAY) ## The slower tests: a clean clone that serves, the whole window, clients
	$(BIN)/python -m pytest -m check $(ARGS)

fuzz: $(VENV)/.test ## Mutated tool calls, prompts, schemas and bodies for FUZZ_MINUTES (10)
	$(BIN)/python -m tests.fuzz.run --minutes $(or $(FUZZ_MINUTES),10) $(ARGS)

soak: $(VENV)/.test ## A server under load that is killed, hung and starved for SOAK_MINUTES (30)
	$(BIN)/python -m tests.soak.run --minutes $(or $(SOAK_MINUTES),30) $(ARGS)

# The kernels first, since the engine can be no more right than they; what only compiles is `test`'s.
gpu: $(VENV)/.test ## The kernels' own tests on a CUDA device, then the engine's that need one
	@export TRITON_INTERPRET=0; status=0; \
	$(BIN)/python -m pytest tests/kernels/hopper -m "not check" \
		--ignore tests/kernels/hopper/test_compile.py \
		--ignore tests/kernels/hopper/test_versions.py $(ARGS) || status=1; \
	$(BIN)/python -m pytest -m gpu $(ARGS) || status=1; \
	exit $$status

load: $(VENV)/.load ## Two minutes of mixed load on the embedded checkpoint; report in runs/
	@mkdir -p runs
	@$(BIN)/winnow load --serve --profile mixed --users 6 --scale 0.03 --pace 0.02 \
		--duration $(or $(LOAD_SECONDS),120) --targets loadtest/targets.toml \
		--report runs/load.html $(ARGS)

bench: $(VENV)/.test ## Measure this machine beside transformers; writes docs/benchmarks
	$(BIN)/winnow bench all $(ARGS)

bench-api: $(VENV)/.test ## Streams of the API beside a bare uvicorn and msgspec application
	$(BIN)/winnow bench api $(ARGS)

bench-metrics: $(VENV)/.test ## What metrics cost a step, scrapes cost a stream, and a dead engine its clients
	$(BIN)/python -m benchmarks.metrics $(ARGS)

bench-scheduler: $(VENV)/.test ## What decisions cost, and what retention saves on a virtual clock (six minutes)
	$(BIN)/python -m benchmarks.scheduler
	$(BIN)/python -m benchmarks.retention $(ARGS)

kernels-report: $(VENV)/.test ## What each kernel uses of a Hopper SM, compiled without a GPU
	@$(BIN)/python -m kernels.hopper.report $(ARGS)

dashboards: $(VENV)/.test ## Write Grafana's boards anew from deploy/grafana
	@$(BIN)/python -m deploy.grafana.generate

pictures: $(VENV)/.test ## Draw the boards of a server under load into docs/boards (needs prometheus)
	@command -v prometheus >/dev/null || { echo "No prometheus (Debian: apt-get install prometheus)" >&2; exit 1; }
	WINNOW_BOARDS=docs/boards $(BIN)/python -m pytest -m check tests/deploy/test_prometheus.py -k every_query

format: $(VENV)/.test ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environments, caches and build outputs
	rm -rf $(VENV) $(dir $(CLIENTS) $(TRITONS) $(RAY)) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c '$(SUPPORTED)' || { \
		echo "Winnow needs Python 3.11 or 3.12 (found: $(or $(PYTHON),none)); set PYTHON=/path/to/it" >&2; \
		exit 1; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.torch: constraints.txt | $(VENV)/.python
	@echo "Installing $(TORCH) (the first time takes minutes)"
	@[ -n "$(HAS_NVIDIA)" ] || \
		$(PIP) --no-deps --retries 1 --timeout 20 --index-url $(CPU_WHEELS) $(TORCH) 2>/dev/null || \
		echo "No CPU build from $(CPU_WHEELS); taking the default one"
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.serve: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing Winnow"
	@$(PIP) -e .
	@touch $@

$(VENV)/.load: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing Winnow with locust"
	@$(PIP) -e '.[load]'
	@touch $(VENV)/.serve $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing Winnow with its development tools"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.serve $@

.venv-clients/.installed: tests/clients/requirements.txt
.venv-clients-openai2/.installed: tests/clients/requirements-openai2.txt
$(CLIENTS): | $(VENV)/.python
	@echo "Installing the clients of $<"
	@$(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@

$(RAY): deploy/ray/requirements.txt | $(VENV)/.python
	@echo "Installing Ray Serve"
	@$(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@

# The interpreter of 3.6 needs an older numpy.
$(TRITONS): .venv-triton-%/.installed: | $(VENV)/.python
	@echo "Installing triton $*"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) triton==$* 'numpy<2.4'
	@touch $@
