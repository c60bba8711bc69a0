# `make play` and `make test` do all set-up and run; nothing else is needed first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHONSAFEPATH = 1

.PHONY: help play test lint types check setup setup-dev reproduce reproduce-racing clean

help:
	@echo "make play        set up and drive the imagined world"
	@echo "make test        set up and run lint, types and tests"
	@echo "make reproduce   collect, train and evaluate the shipped doom-nano from nothing"
	@echo "make reproduce-racing   the same for racing-nano"

play: setup
	$(BIN)/worldmodel play $(ARGS)

test: lint types
	$(BIN)/python -m pytest $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

check: test

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

# The newest torch that the project allows comes with CUDA where the index has it; one resolve
# of everything keeps torch and torchvision a pair.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; set PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

# The recipes are for one GPU: docs/models.md says what is known of the budget, also of a CPU's.
reproduce: setup
	$(BIN)/worldmodel collect env=doom split=train episodes=640 out=data/doom.zarr
	$(BIN)/worldmodel collect env=doom split=val episodes=24 out=data/doom.zarr
	$(BIN)/worldmodel collect env=doom split=test episodes=16 out=data/doom.zarr
	$(BIN)/worldmodel train experiment=ship-doom
	$(BIN)/worldmodel eval checkpoint=runs/doom-nano/checkpoint store=data/doom.zarr out=runs/eval

reproduce-racing: setup
	$(BIN)/pip install --quiet --editable ".[envs]"
	$(BIN)/worldmodel collect env=carracing policy=drive split=train episodes=157 out=data/carracing.zarr
	$(BIN)/worldmodel collect env=carracing policy=drive split=val episodes=20 out=data/carracing.zarr
	$(BIN)/worldmodel train experiment=ship-racing
	$(BIN)/worldmodel eval checkpoint=runs/racing-nano/checkpoint store=data/carracing.zarr out=runs/eval-racing \
		"instructions=[turn right,turn left,accelerate]"
	$(BIN)/worldmodel eval suite=racing checkpoint=runs/racing-nano/checkpoint out=runs/eval-racing-suite

clean:
	rm -rf $(VENV) build dist *.egg-info
