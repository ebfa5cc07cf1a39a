# make demo   from a fresh clone to a table of predictions
# make test   from a fresh clone through the whole test suite
# make check  what a change must pass before it is committed
# make notebooks  run the notebooks of data/ again, in place
# make heads  train the ready heads again (needs the shared tables, see BIOXFER_SHARED)

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check notebooks heads clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt bioxfer/backbones/kernels.cpp | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt bioxfer/backbones/kernels.cpp | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.core

demo: $(VENV)/.core
	$(VENV)/bin/bioxfer predict data/demo.fasta -o predictions.csv --overwrite
	@cat predictions.csv

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest

notebooks: $(VENV)/.dev
	$(VENV)/bin/python tests/notebooks.py data/first_head.ipynb data/is_transfer_helping.ipynb

heads: $(VENV)/.dev
	test -d scratch/tables || (mkdir -p scratch && $(VENV)/bin/python benchmarks/prepare_tables.py scratch/tables)
	$(VENV)/bin/python benchmarks/train_ready_heads.py scratch/tables --precision bf16

clean:
	rm -rf $(VENV) predictions.csv build *.egg-info
