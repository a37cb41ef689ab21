# `make` lists the targets. `make demo` needs nothing installed but Python 3.11, git and make.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# its progress bars are for a terminal; in a log they are noise
QUIET := $(shell [ -t 2 ] || echo --quiet)
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$name" && break; done)

TARGET ?= cpu
BASE ?= python:3.11-slim-bookworm
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= contrique-python:$(VERSION)
DOCKER ?= docker
DATA ?= s3://contrique/pictures
NAMESPACE ?=
MINUTES ?= 10
# of docker build, such as --build-arg PIP_INDEX_URL=https://pypi.example.org/simple
BUILD_OPTIONS ?=

AUDIT := .venv-audit
PACKAGES := requirements.lock
VULNERABLE := requests==2.19.0

TESTS := $(shell ls -S tests/test_*.py tests/*/test_*.py)
SLOW := $(shell grep -l mark.slow $(TESTS))
FAULTS := tests/pipelines/test_faults.py tests/pretraining/test_launch.py tests/registry/test_registry.py::TestFaults
QUICK := $(filter-out $(SLOW),$(TESTS))
# Of the demo: a few gentle steps, which show that training goes on and undo nothing of what the encoder has learned.
GENTLY := $(foreach setting,pretrain.steps=3 pretrain.images=20 pretrain.crop=96 pretrain.lr=1e-5 pretrain.calibration=0 \
	pretrain.probe_every=0 pretrain.log_every=1 features.backend=auto,--set $(setting))
BATCHES := batch-1 batch-2 batch-3 batch-4 batch-5 batch-6

export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export ORT_DISABLE_TELEMETRY := 1

.PHONY: $(TESTS) $(BATCHES) help setup data demo kubeflow-check stack stack-stop demo-stack test fuzz faults lint format compile ui containers image image-check audit lock wheel-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## make .venv with everything installed, the package itself editable

$(STAMP): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 is needed and was not found; install it, or: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing $$(grep -c == requirements.lock) packages, PyTorch among them: a few minutes on a fast line"
	@$(PIP) install $(QUIET) --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

data: setup ## pull the sample photographs with DVC
	@$(BIN)/dvc pull

demo: setup data ## the whole pipeline on the sample photographs, minutes on a laptop
	@$(BIN)/python -m pipelines run --data . --encoder bundled --profile demo --seed 0 $(GENTLY)

test: setup ## the tests, two processes at a time; one file: make tests/test_config.py
	@PYTEST_ADDOPTS="$(FAULTS:%=--deselect=%)" $(MAKE) --jobs 2 --keep-going --output-sync=target $(filter-out $(FAULTS),$(SLOW)) $(BATCHES)

faults: setup ## every part of the pipeline fails once: S3, MLflow, PostgreSQL, the disk, a task, a TrainJob; minutes more
	@for suite in $(FAULTS); do OMP_NUM_THREADS=1 $(BIN)/python -m pytest $$suite; done

# What a file leaves behind (threads, patches, a crash) harms few others: a slow one has a process of its own, the quick
# ones share six, for to start one takes as long as they do.
$(TESTS):
	@echo $@
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $@

$(BATCHES): batch-%:
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(foreach n,$(shell seq $* $(words $(BATCHES)) $(words $(QUICK))),$(word $(n),$(QUICK)))

# MINUTES for all targets together; inputs that do what none may are kept in build/fuzz.
fuzz: setup ## draw hostile inputs for every reader of what strangers hand in: make fuzz MINUTES=10
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz/run.py --minutes $(MINUTES)

lint: setup ## ruff, mypy --strict, hadolint, and deploy/ against the schemas of Kubernetes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict contrique
	@$(BIN)/hadolint Dockerfile mlflow/Dockerfile
	@$(BIN)/kubectl kustomize deploy | $(BIN)/kubernetes-validate --strict --quiet /dev/stdin

containers: setup ## the pipeline's tests in containers, and the demo in them; starts a Docker daemon if none answers
	@.ci/containers

format: setup ## let ruff mend and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

compile: setup ## write training.yaml for Kubeflow
	@$(BIN)/python -m pipelines compile --out training.yaml

# HOST: address of the Kubeflow Pipelines API; DATA: pictures that its pods reach; NAMESPACE: the profile, if there are any.
# With MLFLOW_TRACKING_URI and the S3 settings in the environment it looks there, too.
kubeflow-check: setup ## run the demo on a cluster and say what held: make kubeflow-check HOST=http://localhost:8080
	@$(BIN)/python -m pipelines check --host $(HOST) --data $(DATA) --namespace "$(NAMESPACE)"

stack: setup ## start S3 (SeaweedFS), PostgreSQL and the MLflow server on this machine, in the background
	@$(BIN)/python -m pipelines stack up --detach

stack-stop: setup ## stop them; what they hold is kept in .stack
	@$(BIN)/python -m pipelines stack down

# Its data are the sample photographs in a DVC project of their own, whose remote is the stack's S3.
demo-stack: stack ## the demo against the stack: data, checkpoints and models in S3, runs in PostgreSQL
	@mkdir -p .stack/project && cp data.dvc .stack/project
	@$(BIN)/dvc --cd .stack/project init --quiet --no-scm --force
	@$(BIN)/dvc --cd .stack/project remote add --quiet --default s3 s3://contrique/dvc
	@$(BIN)/dvc --cd .stack/project remote modify --quiet s3 verify true
	@exports=$$($(BIN)/python -m pipelines stack env); eval "$$exports"; \
		$(BIN)/python -m contrique.sources.sample .stack/project; \
		$(BIN)/python -m pipelines run --data .stack/project --encoder bundled --profile demo --seed 0 $(GENTLY) \
			--set pretrain.checkpoints=s3://contrique/checkpoints/$$(date +%Y%m%d-%H%M%S)
	@echo; echo 'The stack is still up: make stack-stop ends it'

ui: setup ## open the MLflow UI on the runs and models of this folder
	@echo 'Open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'
	@$(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlruns/mlflow.db}"

image: ## build the container image: make image TARGET=gpu BASE=python:3.11-slim-bookworm@sha256:...
	$(DOCKER) build $(BUILD_OPTIONS) --target $(TARGET) --build-arg BASE=$(BASE) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) -t $(IMAGE) .

image-check: setup ## hadolint, and `make audit` of what the image holds
	@$(BIN)/hadolint Dockerfile mlflow/Dockerfile
	@mkdir -p build
	@$(DOCKER) run --rm $(IMAGE) pip freeze --all --exclude-editable > build/image.txt
	@$(MAKE) audit PACKAGES=build/image.txt

# Where no service answers, pip-audit finds nothing and ends well; so a package with a known vulnerability is asked for first.
audit: $(AUDIT)/.installed ## sbom.json (CycloneDX) of the locked packages, and pip-audit for their known vulnerabilities
	@$(AUDIT)/bin/cyclonedx-py requirements $(PACKAGES) --pyproject pyproject.toml \
		--of JSON --output-reproducible --output-file sbom.json
	@echo "sbom.json: $$($(AUDIT)/bin/python -c 'import json; print(len(json.load(open("sbom.json"))["components"]))') components"
	@$(AUDIT)/bin/pip-audit --version
	@told=$$($(AUDIT)/bin/pip-audit --requirement <(echo $(VULNERABLE)) --no-deps --disable-pip 2>&1 || true); \
	if [[ $$told =~ PYSEC|GHSA|CVE ]]; then $(AUDIT)/bin/pip-audit --requirement $(PACKAGES) --no-deps --disable-pip; \
	else echo "NOT AUDITED, for the vulnerability service does not know $(VULNERABLE): $$(tail -1 <<< "$$told")" >&2; [ -z "$${CONTRIQUE_REQUIRE_AUDIT:-}" ]; fi

$(AUDIT)/.installed: .ci/audit.txt
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/pip install --quiet --disable-pip-version-check -r .ci/audit.txt
	@touch $@

lock: ## write requirements.lock from what .venv holds now, with the hashes that the package index states
	@$(BIN)/python .ci/lock.py requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(STAMP)

wheel-check: setup ## the wheel and the locked base in an environment of their own, which scores without network and MLflow
	@PYTHON="$(PYTHON)" .ci/wheel

clean: ## remove runs and caches; keeps .venv, the data and the registry
	rm -rf runs build dist training.yaml .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
