# `make train`: the main job. `make test`: the tests. Both first install what they need into .venv.
# Three tests at a time on two cores: many of them wait.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-all test-quick exchange network compare optimizers input paper scale lint clean

train: $(VENV)/ready
	$(RUN) train.py

test: $(VENV)/ready lint
	$(RUN) -m pytest -n 3 --dist=worksteal -m "not slow"

# Also the models of the paper at full size, more chaos, the wheel in an environment of its own.
test-all: test
	$(RUN) -m pytest -n 2 --dist=worksteal -m slow

test-quick: $(VENV)/ready
	$(RUN) -m pytest -m "not multiprocess"

exchange: $(VENV)/ready
	$(RUN) benchmarks/exchange.py --workers=4 --output=output/exchange.json

# Hosts behind slow links, on one machine: needs root. Beside PyTorch and tf_keras. Half an hour.
network: $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(RUN) benchmarks/network.py --hosts=8 --mbit=250 --output=output/network.json

# Sixteen workers on a ring, each with two of the ten digits: where averaging matters. 20 minutes.
compare: $(VENV)/ready
	$(RUN) benchmarks/compare.py --seeds=5 --workers=16 --topology=ring --model=mlp \
	  --classes_per_worker=2 --epochs=10 --steps_per_epoch=30 --output=output/compare.json

# SGD, Adam and AdamW with four virtual workers: which learning rate? Some minutes on an idle core.
optimizers: $(VENV)/ready
	$(RUN) benchmarks/optimizers.py --output=output/optimizers.json

input: $(VENV)/ready
	$(RUN) benchmarks/input.py --output=output/input.json

# The paper's logistic regression with virtual workers, and how large a simulation may be. 6 and 2 minutes.
paper: $(VENV)/ready
	$(RUN) benchmarks/paper.py --output=output/paper.json

scale: $(VENV)/ready
	$(RUN) benchmarks/scale.py --output=output/scale.json

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --project pyproject.toml

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) output build *.egg-info
