# `make help` lists the targets. All of them first install what they need into .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-slow test-clusters test-wheel test-all test-quick exchange network compare optimizers input paper graphs scale time-to-loss lint docs build help clean

train: $(VENV)/ready  ## Train ResNet-20 on handwritten digits with 4 local workers. 1 minute.
	$(RUN) train.py

# Three tests at a time on two cores: many of them wait.
test: $(VENV)/ready lint  ## Check style, spelling and types, and run all but the slow tests. 10 minutes.
	$(RUN) -m pytest -n 3 --dist=worksteal -m "not slow and not clusters and not wheels"

# The models of the paper at full size, more chaos, the wheel in an environment of its own.
test-slow: $(VENV)/ready  ## Run the slow tests alone. 20 minutes.
	$(RUN) -m pytest -n 2 --dist=worksteal -m slow

# On hosts that share this machine. Where the packages cannot be installed, the tests are skipped.
test-clusters: $(VENV)/ready  ## Test Slurm, mpirun and ssh, as root on Debian. Installs them. 5 minutes.
	-tools/install_cluster.sh
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	$(RUN) -m pytest -n 2 --dist=worksteal -m clusters

test-all: test test-slow  ## Run `make test`, then the slow tests.

test-quick: $(VENV)/ready  ## Run the tests that start no worker processes. Some minutes.
	$(RUN) -m pytest -m "not multiprocess"

# Each in an environment of its own, with the Pythons that are installed. Downloads 600 MB for each.
test-wheel: $(VENV)/ready  ## Test the wheel with the oldest and the newest versions. 25 minutes.
	$(RUN) -m pytest -m wheels

lint: $(VENV)/ready  ## Check style (ruff), spelling (codespell) and types (pyright).
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/codespell
	$(RUN) -m pyright --project pyproject.toml

exchange: $(VENV)/ready  ## Measure exchanges next to MultiWorkerMirroredStrategy's all-reduce, on loopback.
	$(RUN) benchmarks/exchange.py --workers=4 --output=output/exchange.json

network: $(VENV)/ready  ## Measure behind slow links, next to PyTorch. Needs root. 30 minutes.
	$(RUN) -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(RUN) benchmarks/network.py --hosts=8 --mbit=250 --output=output/network.json

compare: $(VENV)/ready  ## Compare all algorithms: 16 workers on a ring, two of ten digits each. 20 minutes.
	$(RUN) benchmarks/compare.py --seeds=5 --workers=16 --topology=ring --model=mlp \
	  --classes_per_worker=2 --epochs=10 --steps_per_epoch=30 --output=output/compare.json

optimizers: $(VENV)/ready  ## Compare learning rates of SGD, Adam and AdamW on 4 virtual workers. 30 minutes.
	$(RUN) benchmarks/optimizers.py --output=output/optimizers.json

input: $(VENV)/ready  ## Measure the input pipelines.
	$(RUN) benchmarks/input.py --output=output/input.json

paper: $(VENV)/ready  ## Simulate the paper's logistic regression: transient stages. 6 minutes.
	$(RUN) benchmarks/paper.py --output=output/paper.json

graphs: $(VENV)/ready  ## Compare base_2 with the one-peer exponential graph, simulated. 6 minutes.
	$(RUN) benchmarks/graphs.py --output=output/graphs.json

scale: $(VENV)/ready  ## Measure how large a simulation may be. 2 minutes.
	$(RUN) benchmarks/scale.py --output=output/scale.json

time-to-loss: $(VENV)/ready  ## Measure the time to the loss of synchronous training. Needs root. 30 minutes.
	$(RUN) -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	TF_NUM_INTRAOP_THREADS=1 $(RUN) benchmarks/time_to_loss.py --workers=8 --mbit=100 --batch_size=4 \
	  --learning_rate=0.1 --epochs=15 --steps_per_epoch=20 --output=output/time_to_loss.json

# Pages first, then every example of the reference.
docs: $(VENV)/ready  ## Build the documentation site in build/docs/html. 1 minute.
	$(RUN) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(RUN) -m sphinx -W --keep-going -q -b html -d build/docs/doctrees docs build/docs/html
	$(RUN) -m sphinx -W --keep-going -q -b doctest -d build/docs/doctrees docs build/docs/doctest

build: $(VENV)/ready  ## Build the wheel and the sdist in dist. 1 minute.
	rm -rf dist
	$(RUN) -m tools.build
	$(RUN) -m twine check --strict dist/*

help:  ## Print this table.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

clean:  ## Remove the environment and everything that was built or measured.
	rm -rf $(VENV) output build dist docs/_generated *.egg-info

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
