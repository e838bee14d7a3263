# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check zoo accuracy clean
.DEFAULT_GOAL := demo

# Merge the two fixture networks, print the table, write out/demo/.
demo: $(VENV)/.installed
	$(BIN)/pleas-fx demo

# One thread per worker: small networks gain nothing from more, and workers would fight for cores.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile -q

# Formatting, lint, types.
check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Measure what docs/coverage.json lacks, or one network again: make zoo MODEL=torchvision:resnet18
zoo: $(VENV)/.installed-zoo
	$(BIN)/python -m benchmarks.zoo.run $(MODEL)

# Accuracy of merges against rivals; measures what ~/.cache/pleas_fx_benchmarks lacks. See
# benchmarks/accuracy/README.md for the data. make accuracy ARGS="--only '*/resnet-narrow/*'"
accuracy: $(VENV)/.installed-benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.accuracy.run $(ARGS)

clean:
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Editable, so that fixtures/ is found beside the packages. Reinstalled only when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-zoo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[zoo,packages]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-benchmarks: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[benchmarks]'
	touch $@ $(VENV)/.installed
