# make run | test | browser | lab | lint | exercises | guide | docs | slides | site | clean: each sets up
# .venv first where it is missing or out of date.
# Options: make run ARGS="--profile smoke --only 02"; make run PYTHON=/path/to/python3.12
# make run TORCH=cpu sets up PyTorch without CUDA's 5 GB, from PyTorch's own index.
PYTHON ?= python3
TORCH ?= lock
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=
FRESH := build/test

.PHONY: run test browser lab exercises guide docs slides lint site clean

run: .venv/.ready
	.venv/bin/python -m lib run $(ARGS)

# Two halves at once, one thread each: on two cores that takes little more than the longer one.
HALF := tests/methods tests/evaluation tests/learning

test: lint
	rm -rf $(FRESH)
	mkdir -p $(FRESH)
	@echo "== Unit tests, the form of the notebooks, the smoke profile run by papermill;"
	@echo "== meanwhile the committed notebooks are run again by nbval, from nothing, then the other"
	@echo "== unit tests: $(HALF)"
	@export OMP_NUM_THREADS=1; \
	( env -u COMPANION_DATASETS COMPANION_DATA="$(CURDIR)/$(FRESH)/data" COMPANION_BUILD="$(CURDIR)/$(FRESH)/build" \
		.venv/bin/pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks; run=$$?; \
		.venv/bin/pytest $(HALF); exit $$((run || $$?)) ) > $(FRESH)/other.log 2>&1 & \
	other=$$!; trap "pkill -P $$other; kill $$other" INT TERM; \
	.venv/bin/pytest -m "not browser" tests $(HALF:%=--ignore=%); unit=$$?; \
	wait $$other; others=$$?; cat $(FRESH)/other.log; exit $$((unit || others))

# The site, the slides, the notebooks' pages and the figures to play with, in a browser without a network.
browser: site slides
	OMP_NUM_THREADS=1 .venv/bin/pytest -m browser tests/test_browser.py tests/test_play_browser.py

lint: .venv/.ready
	@echo "== Lint"
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports --no-cache

lab: .venv/.ready
	.venv/bin/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks

# The committed notebooks as they are, the texts and the API of lib, to be read without the network.
site: .venv/.ready
	.venv/bin/python -m sphinx -q -W --keep-going -E -d build/doctrees -c docs . build/site
	@echo "Open build/site/index.html"

# Student and solution notebooks; one that somebody has worked in is kept beside the new one.
exercises: .venv/.ready
	.venv/bin/python exercises/make_copies.py

# The lecturer's guide: its table of minutes, the glossary's pictures.
guide: .venv/.ready
	.venv/bin/python teaching/make_guide.py

# README.md and docs/findings.md, from their templates and the recorded results.
docs: .venv/.ready
	.venv/bin/python docs/make_pages.py

# Slides from the notebooks' figures and formulas, to be shown without the network.
slides: .venv/.ready
	.venv/bin/python teaching/make_slides.py

clean:
	rm -rf build .pytest_cache .ruff_cache *.egg-info
	rm -rf data/raw/phantom data/raw/phantom-* data/prepared/phantom-* data/sequencers/phantom data/sequencers/phantom[-+.]* data/sequencers/*-bundled* data/sequencers/*-smoke*
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 | xargs -0 rm -rf
	@echo "Kept: .venv, downloads, and what was prepared from them or trained on them, in data/."

.venv/.ready: requirements.lock pyproject.toml
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Setting up .venv with $$python (a few minutes, once)"; exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "Python 3.11 or later is needed, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1
	@cp requirements.lock .venv/requirements.txt
ifeq ($(TORCH),cpu)
	@echo "Asking $(TORCH_INDEX) for PyTorch without CUDA"
	@if .venv/bin/python -m pip --disable-pip-version-check --retries 1 install --quiet --no-deps \
		--index-url $(TORCH_INDEX) $$(sed -nE 's/^(torch(vision)?==[0-9.]+).*/\1+cpu/p' requirements.lock); then \
		grep -vE '^(cuda|nvidia|triton)' requirements.lock > .venv/requirements.txt; \
	else \
		echo "It does not offer the lock's versions, or cannot be reached: as the lock says, then"; \
	fi
else ifneq ($(TORCH),lock)
	@echo "TORCH=$(TORCH) is not known: cpu leaves CUDA out, lock takes what the lock names" >&2; exit 1
endif
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch .venv/.ready
