# `make` alone lists the targets. Every target sets up .venv first; a second run installs nothing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SCALE  ?= tiny
# Linux without a GPU: set TORCH_INDEX to the CPU index that pytorch.org names under "Get started".
TORCH_INDEX ?=

VENV  := .venv
RUN   := $(VENV)/bin/python
STAMP := $(VENV)/.installed
LATEST := .venv-latest
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder
TORCH ?= $(shell grep '^torch==' constraints.txt)

# Installing without byte-compiling is faster: what the lessons import is compiled once, at the end,
# for which Python must be allowed to keep it.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help course test test-unit test-latest lab lint notebooks data benchmark clean

help: ## list the targets
	@echo "Usage: make TARGET [SCALE=$(SCALE)] [TORCH_INDEX=url of a torch package index]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s%s\n", $$1, $$2 }'

# torch comes first and alone, so that TORCH_INDEX serves torch and nothing else.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --no-compile --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(RUN) -m pip install --no-compile -c constraints.txt -e ".[all]"
	@$(RUN) -c "import deeplake, ipykernel_launcher, jupyterlab, kfp.local, papermill, tensorboard.notebook; \
	from rlhf_helpers import checks, cloud, plots, rest, rlaif; from rlhf_helpers.annotation import labelling; \
	from rlhf_helpers.pipelines import local, submit, vertex_rlhf"
	@touch $@

course: $(STAMP) ## run all notebooks at SCALE, then show the results
	$(RUN) -m rlhf_helpers course --scale $(SCALE)

test: $(STAMP) ## run all tests: the unit tests, then the notebooks at tiny
	$(RUN) -m pytest tests/unit $(PARALLEL)
	$(RUN) -m pytest tests/notebooks

test-unit: $(STAMP) ## run the fast unit tests only
	$(RUN) -m pytest tests/unit -m "not slow" $(PARALLEL)

# Without constraints and upper bounds. torch stays at the tested version, for which this machine has
# the right build; TORCH=torch takes the newest.
test-latest: ## run the unit tests with the newest release of every dependency, in its own .venv-latest
	$(PYTHON) -m venv --clear $(LATEST)
	$(LATEST)/bin/python -m pip install --no-compile $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(LATEST)/bin/python scripts/lower_bounds.py >$(LATEST)/requirements.txt
	$(LATEST)/bin/python -m pip install --no-compile -r $(LATEST)/requirements.txt "$(TORCH)"
	$(LATEST)/bin/python -m pip install --no-deps -e .
	$(LATEST)/bin/python -m pytest tests/unit $(PARALLEL)

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(RUN) -m rlhf_helpers lab

lint: $(STAMP) ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

notebooks: $(STAMP) ## execute the notebooks in place, normalised for committing
	$(RUN) -m rlhf_helpers course --scale tiny --in-place

data: $(STAMP) ## regenerate the data sets of the little world
	$(RUN) -m rlhf_helpers data

benchmark: $(STAMP) ## run every script in benchmarks/
	@for script in benchmarks/*.py; do echo "$$script"; $(RUN) "$$script" || exit 1; done

clean: ## remove .venv, caches and builds (runs/ stays)
	rm -rf $(VENV) $(LATEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
