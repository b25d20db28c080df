# make repro · make sweep · make test · make faults · make lint · make bench · make soak · make experiments · make ui
# Each first builds .venv with pip, if that is missing or older than pyproject.toml or constraints.txt.
# Another Python than the first that is new enough: make PYTHON=/path/to/python3.12 repro

VENV := .venv
READY := $(VENV)/.ready
PYTHON = $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# DVC's stages run whatever `python` comes first.
export PATH := $(abspath $(VENV))/bin:$(PATH)

# What DVC remembers of files, by default outside the checkout.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site

.PHONY: repro sweep test faults lint bench soak experiments ui

# A downloaded zip has no .git, which DVC then has to be told.
repro: $(READY)
	@if LC_ALL=C git rev-parse --git-dir 2>&1 | grep -q 'not a git repository'; then \
		echo "No git repository: dvc repro works, dvc exp run does not"; dvc config --local core.no_scm true; \
	elif grep -qs no_scm .dvc/config.local; then dvc config --local --unset core.no_scm; fi
	@dvc repro
	@echo "Report: data/report/index.html"

# One DVC experiment a row, then one page of the first seed's. The table and pictures of docs/gamma.md are made anew,
# from these seeds alone: 15 runs of about eight minutes on two cores, two hours. One seed: make sweep SEEDS=0
# Two runs at once, each on half of the cores, are done sooner: make sweep JOBS=2
JOBS := 1
GAMMAS := 0.4 0.55 0.7 0.85 1.0
SEEDS := 0 1 2
sweep: $(READY)
	@python -m experiments.gamma --seeds $(SEEDS) --gammas $(GAMMAS) --jobs $(JOBS)
	@python -m pipeline compare $(GAMMAS:%=gamma-%-seed-$(firstword $(SEEDS)))

test: $(READY)
	@python -m pytest -n 2 --dist loadfile

faults: $(READY)
	@python -m pytest tests/faults --whole -n 2 --dist loadfile

lint: $(READY)
	@ruff check
	@mypy

bench: $(READY)
	@for name in train_step read_batches preprocess end_to_end checkpoint features; do echo "benchmarks/$$name.py"; python -m benchmarks.$$name || exit 1; done

soak: $(READY)
	@python -m benchmarks.soak

experiments: $(READY)
	@dvc exp show --only-changed --no-pager --drop '.*/|images|Created|Executor|num_|kid_|reconstruction_|.*_baseline'

ui: $(READY)
	@began ui

# Without the last line an interrupted build is begun again from nothing.
$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) has no venv module: install the package python3-venv" >&2; exit 1; }
	@echo "Building $(VENV) with $(PYTHON) from pyproject.toml and constraints.txt (1.6 GB, a few minutes)"
	@test -e $(READY) || "$(PYTHON)" -m venv --clear $(VENV)
	@rm -f $(READY)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
