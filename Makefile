# `make demo` and `make test` need Python 3.11 or newer, pip and make; everything else they install themselves.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# An interpreter of Python 3.13, for `make test-newest`.
NEWEST ?= python3.13
TESTS ?= tests
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-fast test-slow test-sweep test-lowest test-newest test-backends test-serving backends wheel-test lint format bench docs clean

demo: $(READY)
	$(BIN)/python examples/quickstart.py

test: lint test-fast

test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not sweep and not serving" $(TESTS)

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m "slow and not serving"

# What fast tests try on a few networks, on all that there are: before a release, and after a change of the graph.
test-sweep: $(READY)
	$(BIN)/python -m pytest -n 2 -m sweep

# The same tests with the lowest versions that pyproject.toml allows, and on the newest Python, in environments
# of their own. TESTS chooses some of them: make test-lowest TESTS=tests/attach
test-lowest:
	$(MAKE) VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt test-fast

test-newest:
	$(MAKE) VENV=.venv-newest PYTHON=$(NEWEST) test-fast

# What holds on every backend of Keras, on JAX and on PyTorch; `test-fast` tries it on TensorFlow.
# JAX compiles much longer than these small networks run: it keeps what it compiled, and optimises little.
test-backends: backends
	KERAS_BACKEND=torch .venv-torch/bin/python -m pytest -n 2 tests/contract
	KERAS_BACKEND=jax JAX_COMPILATION_CACHE_DIR=.venv-jax/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
		XLA_FLAGS=--xla_backend_optimization_level=0 .venv-jax/bin/python -m pytest -n 2 tests/contract

backends: .venv-jax/.ready .venv-torch/.ready

# An environment without TensorFlow.
.venv-jax/.ready .venv-torch/.ready: .venv-%/.ready: pyproject.toml constraints.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet -c constraints.txt --upgrade pip setuptools wheel
	.venv-$*/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[$*,tuner]' \
		scikit-learn matplotlib pytest pytest-xdist
	touch $@

# Ray Serve and Triton Inference Server themselves, one after the other: they share two cores with their clients.
test-serving: $(READY) .venv-triton/.ready
	$(BIN)/python -m pytest -m serving

# Triton's server is in a wheel for Python programs; it wants an older NumPy.
.venv-triton/.ready: Makefile
	test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --upgrade pip
	.venv-triton/bin/python -m pip install --quiet "nvidia-pytriton==0.7.0" "numpy<2" "onnxruntime>=1.20"
	touch $@

# Builds sdist and wheel into dist/, and tries the wheel, without extras, in an environment made for that.
wheel-test: $(READY)
	$(BIN)/python tests/support/wheel.py --keep dist

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The quick benchmarks, a few minutes altogether; those of the documents take more rounds and larger networks.
bench: $(READY)
	$(BIN)/python benchmarks/placement_table.py
	$(BIN)/python benchmarks/calibration_speed.py --rows 5000 10000 --rounds 3
	$(BIN)/python benchmarks/training_speed.py --parts keras --batches 32 --rounds 3 --results runs/training_speed.json
	$(BIN)/python benchmarks/deployment_speed.py --network ResNet18 --size 32 --batches 1 8 --rounds 3 --results runs/deployment_speed.json
	$(BIN)/python benchmarks/tensorboard_overhead.py --images 1000 --epochs 10
	$(BIN)/python benchmarks/scaling.py --paper

# Into site/; a warning is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The environment is made once, from the tested versions, and again only when these files change.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-jax .venv-torch .venv-triton build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
