# Crest: scrape, train CLIP, train the prior, train the decoder, generate, evaluate. `make` lists the targets.
#
#   CONFIG=FILE    the config of one target, or a folder that holds one per target (default: configs/demo;
#                  scrape, caption, shards and verify: configs/sportslogohistory)
#   SET="a.b=c …"  settings to change, separated by spaces; each becomes --set a.b=c
#   NPROC=2        run a training target as that many processes under torchrun (default: 1)
#   ARGS="…"       further words for pytest (make test) or for demo and stock, such as ARGS=--dry-run

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
NPROC  ?= 1
WHAT   ?= demo startup

# GNU OpenMP's default active spin stalls a run five- to tenfold as soon as its cores are contested.
export OMP_WAIT_POLICY = passive
export PYTHONUNBUFFERED = 1

config = $(if $(CONFIG),$(if $(wildcard $(CONFIG)/.),$(patsubst %/,%,$(CONFIG))/$(1).json,$(CONFIG)),configs/$(if $(filter data,$(1)),sportslogohistory,demo)/$(1).json)
flags  = --config '$(call config,$(1))' $(foreach setting,$(SET),--set '$(setting)') $(ARGS)
launch = $(if $(filter-out 1,$(NPROC)),$(PY) -m torch.distributed.run --standalone --nproc_per_node $(NPROC) -m,$(PY) -m)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install demo test check scrape caption caption-report caption-lint shards verify captioner clip folds embed publish prior decoder generate eval survey \
        bench gpu-check stock schema clean

help: ## list the targets
	@echo 'Crest draws logos from text. make TARGET [CONFIG=file or folder] [SET="section.field=value …"] [NPROC=2]'
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## build .venv from pyproject.toml and constraints.txt (the other targets do it by themselves)

$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "$(PYTHON): is $$($(PYTHON) --version 2>/dev/null || echo not installed), Crest needs Python 3.11 or newer;" \
	       "install one, then make PYTHON=/path/to/it" >&2; exit 1; \
	fi; \
	echo "installing PyTorch and what else Crest needs into $(VENV)/ (once: about 6 GB on disk, about two minutes) …"; \
	if ! $(PY) -c '' 2>/dev/null; then \
	  "$$found" -m venv --clear $(VENV) || { \
	    echo "$$found: could not make $(VENV); on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job: site of logos -> tuned model -> drawn logos, scores and a survey; goes on where it stopped
	$(PY) -m demo $(if $(CONFIG),--config '$(CONFIG)') $(foreach setting,$(SET),--set '$(setting)') $(ARGS)

scrape: $(STAMP) ## site or folder of logos -> records and pictures (data.json)
	$(PY) -m scraper $(call flags,data)

captioner: $(STAMP) ## fine-tune the captioner (captioner.json)
	$(launch) caption_train $(call flags,captioner)

caption-report: $(STAMP) ## compare captioners with what people wrote of held-out logos (captions.json)
	$(PY) -m caption_train.report $(call flags,captions)

caption-lint: $(STAMP) ## flag captions that say too little, by named rules (data.json)
	$(PY) -m scraper.lint $(call flags,data)

caption: $(STAMP) ## caption the pictures that have no words (data.json)
	$(PY) -m scraper.caption $(call flags,data)

shards: $(STAMP) ## pictures and captions -> tar shards, split without leaks (data.json)
	$(PY) -m scraper.pack $(call flags,data)

verify: $(STAMP) ## prove that the shards are whole and that nothing alike lies on both sides of the split (data.json)
	$(PY) -m scraper.verify $(call flags,data)

clip: $(STAMP) ## fine-tune CLIP (clip.json)
	$(launch) clip_train $(call flags,clip)

folds: $(STAMP) ## cross-validate a CLIP recipe over train and val (clip.json)
	$(PY) -m clip_train.folds $(call flags,clip)

embed: $(STAMP) ## shards -> CLIP embeddings (embed.json)
	$(PY) -m clip_train.embed $(call flags,embed)

publish: $(STAMP) ## write a CLIP run's model card and OpenCLIP folder, upload it to a hub (publish.json)
	$(PY) -m clip_train.publish $(call flags,publish)

prior: $(STAMP) ## train the diffusion prior, text -> image embedding (prior.json)
	$(launch) prior_train $(call flags,prior)

decoder: $(STAMP) ## train the decoder, image embedding -> picture (decoder_64.json)
	$(launch) decoder_train $(call flags,decoder_64)

generate: $(STAMP) ## prompts -> logos (generate.json)
	$(PY) -m crest $(call flags,generate)

eval: $(STAMP) ## score the logos of several systems against each other (eval.json)
	$(PY) -m eval $(call flags,eval)

survey: $(STAMP) ## export a survey page for people to vote on (survey.json)
	$(PY) -m eval.survey $(call flags,survey)

stock: $(STAMP) ## train the stock weights of crest/stock from nothing (under two hours on two cores)
	$(PY) -m demo.stock $(ARGS)

bench: $(STAMP) ## measure against the upstream code, WHAT="demo startup data clip prior decoder" (CASE=name for one) -> out/bench/<what>.json
	$(PY) -m benchmarks $(WHAT) $(foreach case,$(CASE),--case $(case))

test: $(STAMP) ## the tests: offline, on the CPU, under three minutes; ARGS="-m slow" for the slow ones
	$(PY) -m pytest --numprocesses auto --dist loadfile $(ARGS)

gpu-check: $(STAMP) ## the tests that need a CUDA device, and short training steps on it
	$(PY) -m benchmarks.gpu_check

check: $(STAMP) ## what CI checks before the tests: ruff, formatting, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

schema: $(STAMP) ## write the JSON schemas of all configs to configs/schema
	$(PY) -m configs.make_schema

clean: ## delete .venv and the caches; out/ is kept
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './out/*' -prune -exec rm -rf {} +
