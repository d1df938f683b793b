# Every command of the project is defined here only: people, continuous integration and the docs call these targets.
# `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run dev test check lint types layers pytest coverage long fuzz kill-ranks kill-curation kill-batches format demo-data \
        demo-run demo-words train-demo export-demo export-sizes verify-demo wheel bench bench-curate bench-gpu \
        bench-engines bench-export bench-match bench-nonreaders bench-plan bench-queries bench-checkpoints \
        bench-stalls bench-train it-pays scale constraints licences page-pictures k8s-render k8s-secret alert-rules \
        docker-lint clean

RUN_VENV := .venv
DEV_VENV := .venv-dev
DEV := $(DEV_VENV)/bin/
SOURCES := service model_export tests scripts

# Recipe and folders of train-demo
RECIPE ?= model_export/recipes/demo.toml
RUN ?= runs/demo
DATA ?= data
DEMO := service/bundles/demo
# Sizes and precisions of export-sizes
SIZES ?= ViT-B-32 RN50 ViT-L-14
PRECISIONS ?= fp32
# Size that bench-export exports and times
SIZE ?= ViT-B-32
# Requests that fuzz sends
CASES ?= 50000
# Kills of kill-ranks; kill-curation and kill-batches have 20
KILLS ?= 10
# Bundle and providers that bench-engines times
BUNDLE ?= $(DEMO)
PROVIDERS ?= cpu openvino openvino/bf16

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- run ---

# HOST counts only on make's own command line: some shells export a HOST that names the machine.
# $(value …): a dollar sign in a password stays a dollar sign.
ifeq ($(origin HOST),command line)
run: export ANYCLASS_HOST := $(value HOST)
endif
ifneq ($(value PORT),)
run: export ANYCLASS_PORT := $(value PORT)
endif
ifneq ($(value MODEL),)
run: export ANYCLASS_MODEL := $(value MODEL)
endif
ifneq ($(value REDIS_URL),)
run: export ANYCLASS_REDIS_URL := $(value REDIS_URL)
endif
ifneq ($(value STATE_URL),)
run: export ANYCLASS_STATE_URL := $(value STATE_URL)
endif
run: ## Start the service on 127.0.0.1:8000 (PORT=, HOST=, MODEL=hub id, path or bundle, REDIS_URL=, STATE_URL= change it)
	@scripts/venv.sh $(RUN_VENV) cpu
	@$(if $(value MODEL),ANYCLASS_MODEL=$$(scripts/model.sh "$$ANYCLASS_MODEL" $(RUN_VENV)) && )exec \
	 $(RUN_VENV)/bin/anyclass serve

# --- check ---

test: dev redis prometheus clients browser ## Lint, types, layers, then every test but those of make long
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory pytest

check: lint types layers docker-lint ## Everything except the tests

lint: dev ## Style and likely mistakes (ruff)
	@$(DEV)ruff check $(SOURCES)
	@$(DEV)ruff format --check --quiet $(SOURCES) || { echo "run 'make format'"; exit 1; }

types: dev ## Static types (mypy, strict)
	@$(DEV)mypy $(SOURCES)

layers: dev ## Import order of the modules (import-linter)
	@$(DEV)lint-imports --no-cache

# One more than there are cores, four at most: tests that wait for a process or a clock leave a core idle.
pytest: PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 3 ? n + 1 : 4)))
pytest: dev redis prometheus clients browser ## Every test but those of make long, in up to four processes (ARGS= goes to pytest)
	@$(DEV)pytest --numprocesses=$(PROCESSES) $(ARGS)

coverage: ## make pytest with branch coverage; the tests then take a third more time
	@$(MAKE) --no-print-directory pytest ARGS="--cov --cov-report=term $(ARGS)"

long: dev redis ## The tests that make test leaves out for their length: compiled towers, the RayJob's program, whole recipes and kills on Ray, a run killed on tars, the whole of it-pays
	@$(DEV)pytest -m long $(ARGS)

fuzz: dev ## Send generated requests to the service, far more than the tests do (CASES=50000, FUZZ_ARGS="--minutes 15 --seed 7")
	@$(DEV)python -m tests.fuzz --cases $(CASES) $(FUZZ_ARGS)

kill-ranks: dev ## Kill ranks of a training with -9, KILLS=10 times in a run: its weights must be an undisturbed run's
	@KILLS=$(KILLS) $(DEV)pytest tests/model_export/training/test_processes.py -k killed $(ARGS)

kill-curation: KILLS := 20
kill-curation: dev ## Kill driver, worker and node of a curation on Ray with -9 in turn, KILLS=20 times: its bytes must be the same
	@KILLS=$(KILLS) $(DEV)pytest -m long tests/model_export/drivers/test_ray_data.py -k kills_of $(ARGS)

kill-batches: KILLS := 20
kill-batches: dev redis ## Kill the service with -9 in the middle of batch jobs, KILLS=20 times: no line may be lost or doubled
	@KILLS=$(KILLS) $(DEV)pytest tests/service/jobs/test_crashes.py -k kills $(ARGS)

format: dev ## Rewrite the source in the project's style
	@$(DEV)ruff check --fix-only --quiet $(SOURCES)
	@$(DEV)ruff format $(SOURCES)

docker-lint: dev ## Lint the Dockerfile (hadolint, if built for this machine)
	@if [ -x $(DEV)hadolint ]; then $(DEV)hadolint Dockerfile && echo "Dockerfile: no findings"; \
	 else echo "docker-lint: skipped, hadolint has no package for this machine"; fi

# --- models ---

demo-data: dev ## Prepare the demo model's pairs (FROM=folder of the sources, DATA=folder to write; docs/demo-model.md)
	@$(DEV)python scripts/demo_data.py $(FROM) $(DATA)

train-demo: dev ## Train the demo model (DATA=folder of its Parquet files, RECIPE=, RUN=folder, FROM=run; RESUME=1 continues)
	@$(DEV)anyclass-export train $(RECIPE) --data $(DATA) --out $(RUN) $(if $(FROM),--from $(FROM)) $(if $(RESUME),--resume)

demo-words: dev ## Teach a run's text encoder the nouns of WordNet (RUN=, DATA=folder of its Parquet files, OUT=run to write, ARGS=)
	@$(DEV)python scripts/demo_words.py $(RUN) $(DATA) $(OUT) $(ARGS)

demo-run: dev ## Put the shipped bundle back into a training run (DATA=folder of Parquet files with pictures, OUT=run to write)
	@$(DEV)python scripts/demo_run.py $(DEMO) $(DATA) $(OUT)

export-demo: dev ## Export the training run RUN= as the bundle that ships with the service
	@$(DEV)anyclass-export export $(RUN) $(DEMO) --precision fp16-stored --force

export-sizes: dev ## Export SIZES= in full, random weights: parity, time, memory (PRECISIONS=fp32 fp16 int8, EXPORT_ARGS=--help)
	@$(DEV)python scripts/export_sizes.py $(SIZES) --precisions $(PRECISIONS) $(EXPORT_ARGS)

verify-demo: dev ## Check the shipped bundle: digests, shapes, parity
	@$(DEV)anyclass-export verify $(DEMO)

# --- deploy ---

k8s-render: ## Render the Kubernetes overlays into build/k8s/
	@mkdir -p build/k8s
	@for overlay in cpu gpu; do kubectl kustomize k8s/overlays/$$overlay >build/k8s/$$overlay.yaml \
	 && echo "build/k8s/$$overlay.yaml"; done

k8s-secret: ## Print a Secret with a fresh Redis password: make -s k8s-secret | kubectl apply -f -
	@scripts/redis_secret.sh

alert-rules: ## Print the alert rules as a file for Prometheus without its operator: make -s alert-rules >anyclass.rules.yaml
	@sed '1,/^spec:$$/d; s/^  //' k8s/components/monitoring/prometheus-rule.yaml

# --- measure ---

bench: dev redis ## Speed and memory beside other servers, into docs/benchmarks.md (BENCH_ARGS=--help shows the options)
	@$(DEV)python -m tests.bench.run $(BENCH_ARGS)

bench-engines: dev ## Time a bundle on the providers of this machine, in turn (BUNDLE=, PROVIDERS=cpu openvino openvino/bf16)
	@$(DEV)python -m tests.bench.engines $(BUNDLE) $(PROVIDERS) $(BENCH_ARGS)

bench-export: dev ## Speed beside the plain export of transformers' model (SIZE=, BENCH_ARGS=--operators shows the fusions)
	@$(DEV)python -m tests.bench.export $(SIZE) $(BENCH_ARGS)

bench-curate: dev ## Speed of the stages of curation (BENCH_ARGS= names some: filter balance dedup memory embed)
	@$(DEV)python -m tests.bench.curate $(BENCH_ARGS)

bench-match: dev ## Time the search for queries beside pyahocorasick's (pip install pyahocorasick==2.3.1 first)
	@$(DEV)python -m tests.bench.matching $(BENCH_ARGS)

bench-plan: dev ## Memory and time of a training plan on 400 million rows
	@$(DEV)python -m tests.bench.plan $(BENCH_ARGS)

bench-checkpoints: dev ## Cost of a checkpoint in the background to the steps of a training (BENCH_ARGS="--size ViT-B-32")
	@$(DEV)python -m tests.bench.checkpoints $(BENCH_ARGS)

bench-queries: dev ## Time and memory of a query list from 1 GB of made-up text (BENCH_ARGS=--megabytes 100)
	@$(DEV)python -m tests.bench.queries $(BENCH_ARGS)

bench-stalls: dev ## Wait for /livez beside clients that send the costliest requests (BENCH_ARGS=--help shows the options)
	@$(DEV)python -m tests.bench.stalls $(BENCH_ARGS)

bench-train: dev ## Training speed beside open_clip's trainer, with 1 and 2 processes (BENCH_ARGS=--help shows the options)
	@$(DEV)python -m tests.bench.train $(BENCH_ARGS)

it-pays: dev ## Train on a raw pool and on its curated part, and compare (DATA=folder of Parquet files, OUT=runs/it-pays, BENCH_ARGS=--help)
	@$(DEV)python -m tests.bench.pays $(DATA) $(or $(OUT),runs/it-pays) $(BENCH_ARGS)

bench-gpu: dev redis ## The measurements of bench on a GPU: CUDA and TensorRT, ViT-B/32 and ViT-L/14 in fp16
	@$(DEV)python -m tests.bench.run --gpu $(BENCH_ARGS)

bench-nonreaders: dev ## Memory, stop and batches beside clients that never read their answers (BENCH_ARGS=--help shows the options)
	@$(DEV)python -m tests.bench.nonreaders $(BENCH_ARGS)

scale: dev ## Reckon time, machines and money for billions of pairs (SCALE_ARGS="--cores 64 --core-hour 0.03")
	@$(DEV)python scripts/scale.py $(SCALE_ARGS)

# --- upkeep ---

dev: ## Make .venv-dev, with everything for both commands and the tests (docs/install.md)
	@scripts/venv.sh $(DEV_VENV) cpu,convert,train,open-clip,evaluate,curate,scale,dev

wheel: dev ## Build the wheel into dist/
	@$(DEV)python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

constraints: dev ## Resolve the dependencies again and pin them in constraints*.txt
	@$(DEV)python scripts/lock.py

page-pictures: dev browser ## Take the README's pictures of the page, and time a visit to it
	@$(DEV)python scripts/page_pictures.py

licences: dev ## Write the licences of the shipped packages into docs/licences.md
	@$(DEV)python scripts/licences.py

clean: ## Remove the environments and all files of tools
	@rm -rf $(RUN_VENV) $(DEV_VENV) .venv-export build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache \
	 .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Not listed: prerequisites of other targets.
.PHONY: redis prometheus clients browser
redis:
	@scripts/redis.sh
prometheus:
	@scripts/prometheus.sh
clients:
	@scripts/clients.sh
browser:
	@scripts/browser.sh
